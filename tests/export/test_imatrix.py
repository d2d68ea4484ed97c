"""Importance matrices: read in both formats, and refused where they are not this model's."""

from pathlib import Path

import gguf_files
import numpy as np
import pytest

from fastsft.errors import ExportError
from fastsft.export import gguf_index, imatrix
from fastsft.export.gguf_index import Tensor

NAME = "blk.0.attn_q.weight"


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, Tensor]:
    return dict(gguf_index.read(gguf_files.tiny(tmp_path / "model.gguf")).tensors)


def fits(path: Path, tensors: dict[str, Tensor]) -> None:
    imatrix.require_fit(imatrix.read(path), tensors, where=path.name)


def test_the_entries_are_means_of_squares_in_float32(tmp_path: Path):
    sums = {NAME: np.array([1.0, 2.0, 5.0], np.float32)}

    new = imatrix.read(gguf_files.importance(tmp_path / "m.gguf", sums, count=3))
    old = imatrix.read(gguf_files.importance_dat(tmp_path / "m.dat", sums, calls=3))

    wanted = sums[NAME] / np.float32(3)
    assert new.entries[NAME].tobytes() == old.entries[NAME].tobytes() == wanted.tobytes()
    assert (new.dataset, new.chunks) == (old.dataset, old.chunks) == ("calibration.txt", 3)


def test_a_column_never_counted_weighs_one(tmp_path: Path):
    sums = {NAME: np.zeros(4, np.float32)}

    found = imatrix.read(gguf_files.importance(tmp_path / "m.gguf", sums, count=0))

    assert found.entries[NAME].tolist() == [1, 1, 1, 1]


def test_a_matrix_of_the_model_fits(tmp_path: Path, tensors: dict[str, Tensor]):
    fits(gguf_files.importance(tmp_path / "m.gguf", gguf_files.squares(), count=2), tensors)


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"layers": 1}, "it lacks blk.1"),
        ({"layers": 3}, "the model lacks its blk.2"),
        ({"feed": 1024}, "has 1024 columns there and 512 in the model"),
    ],
)
def test_a_matrix_of_another_model_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], sizes: dict[str, int], what: str
):
    path = gguf_files.importance(tmp_path / "m.gguf", gguf_files.squares(**sizes), count=2)

    with pytest.raises(ExportError, match=what):
        fits(path, tensors)


def test_a_value_that_is_no_number_is_refused(tmp_path: Path):
    sums = {NAME: np.array([1.0, np.nan], np.float32)}

    with pytest.raises(ExportError, match="values that are no numbers"):
        imatrix.read(gguf_files.importance(tmp_path / "m.gguf", sums, count=3))


@pytest.mark.parametrize("kept", [3, 40, 300, -1])
@pytest.mark.parametrize("write", ["gguf", "dat"])
def test_a_matrix_cut_short_is_refused(tmp_path: Path, write: str, kept: int):
    path = tmp_path / "m"
    if write == "gguf":
        gguf_files.importance(path, gguf_files.squares(), count=3)
    else:
        gguf_files.importance_dat(path, gguf_files.squares(), calls=3)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 if kept < 0 else kept])

    with pytest.raises(ExportError, match="not a readable"):
        imatrix.read(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is no matrix at all", b"\xff" * 64])
def test_something_else_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "m.dat"
    path.write_bytes(content)

    with pytest.raises(ExportError, match="not a readable importance matrix"):
        imatrix.read(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ExportError, match="no such file"):
        imatrix.read(tmp_path / "none.gguf")
