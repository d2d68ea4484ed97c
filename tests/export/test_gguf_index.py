"""The index of a GGUF: what the gguf package reads too, and refusals of what is none."""

from pathlib import Path

import gguf
import gguf_files
import pytest

from fastsft.errors import ExportError
from fastsft.export import gguf_index


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.tiny(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_tensors_are_where_the_gguf_package_finds_them(path: Path):
    index = gguf_index.read(path)

    wanted = {
        tensor.name: (
            tuple(reversed(tensor.shape.tolist())),
            tensor.tensor_type.value,
            tensor.data_offset,
        )
        for tensor in gguf.GGUFReader(path).tensors
    }
    found = {
        name: (tensor.shape, tensor.type, index.data_offset + tensor.offset)
        for name, tensor in index.tensors.items()
    }
    assert found == wanted


def test_short_metadata_is_read_and_long_arrays_are_skipped(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "meta.gguf", "llama")
    writer.add_bool("a.bool", True)
    writer.add_float64("a.float", 0.1)
    writer.add_array("a.texts", ["one", "中"])
    writer.add_array("a.vocabulary", [f"token {n}" for n in range(2000)])
    writer.add_array("a.scores", [0.5] * 2000)
    writer.add_string("a.last", "end")
    gguf_files.finish(writer)

    found = gguf_index.read(tmp_path / "meta.gguf").metadata

    assert found == {
        "general.architecture": "llama",
        "a.bool": True,
        "a.float": 0.1,
        "a.texts": ("one", "中"),
        "a.last": "end",
    }


@pytest.mark.parametrize("kept", [0, 3, 20, 100, 3000, 6000])
def test_a_file_cut_in_its_header_is_refused(path: Path, tmp_path: Path, kept: int):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ExportError, match="not a readable GGUF"):
        gguf_index.read(cut)


def test_something_else_is_refused(tmp_path: Path):
    (tmp_path / "no.gguf").write_bytes(b"PK\x03\x04" * 100)

    with pytest.raises(ExportError, match="does not begin with GGUF"):
        gguf_index.read(tmp_path / "no.gguf")
