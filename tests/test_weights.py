"""safetensors files are read as the format says, or refused with what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastsft.errors import ExportError
from fastsft.weights import Checkpoint, Reader, header, read_header, widen


def write(path: Path, entries: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: Any = 0, end: Any = 4, shape: Any = (2,), dtype: Any = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("entries", "data", "message"),
    [
        ({"a": entry()}, b"123", "its tensors end at byte"),
        ({"a": entry()}, b"12345", "its tensors end at byte"),
        ({"a": entry(), "b": entry()}, b"12345678", "b overlaps its neighbour or leaves a hole"),
        ({"a": entry(), "b": entry(2, 6)}, b"123456", "b overlaps its neighbour"),
        ({"a": entry(), "b": entry(6, 10)}, b"0123456789", "b overlaps its neighbour or leaves a"),
        ({"a": entry(end=6)}, b"123456", "a has shape (2,) but 6 bytes"),
        ({"a": entry(shape=(-2, -1))}, b"1234", "a has shape [-2, -1] at 0:4"),
        ({"a": entry(shape=(True, 2))}, b"1234", "a has shape [True, 2]"),
        ({"a": entry(shape=(2**63, 2))}, b"1234", "a has shape [9223372036854775808, 2]"),
        ({"a": entry(shape=(1,) * 9)}, b"1234", "a has shape"),
        ({"a": entry(dtype="I8")}, b"1234", "a is stored as I8\n  hint: give the 16-bit model"),
        ({"a": entry(dtype=16)}, b"1234", "entry of 'a' is not a tensor"),
        ({"a": 5}, b"", "entry of 'a' is not a tensor"),
        ([], b"", "is not a JSON object"),
        (b'{"a": 1, "a": 2}', b"", "a key appears twice"),
        (b"{", b"", "is not JSON"),
        (b"[" * 100_000, b"", "is not JSON"),
        (b"\xff\xfe", b"", "is not JSON"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, entries, data, message):
    if isinstance(entries, dict):
        entries = {name: _listed(value) for name, value in entries.items()}
    path = write(tmp_path / "model.safetensors", entries, data)

    with pytest.raises(ExportError) as refused:
        read_header(path)

    assert message.replace("(2,)", "[2]") in str(refused.value)
    assert str(path) in str(refused.value)


def _listed(value: Any) -> Any:
    return value | {"shape": list(value["shape"])} if isinstance(value, dict) else value


@pytest.mark.parametrize("length", [0xFFFF_FFFF_FFFF_FFFF, 100_000_001, 3])
def test_a_header_longer_than_its_file_is_refused(tmp_path, length):
    path = write(tmp_path / "model.safetensors", b"{}", length=length)

    with pytest.raises(ExportError, match="its header claims"):
        read_header(path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()

    with pytest.raises(ExportError, match="its header claims 0 bytes of a 0-byte file"):
        Checkpoint.open(tmp_path)


def test_values_read_are_those_that_safetensors_wrote(tmp_path):
    values = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    save_file({"a": values, "b": values.astype(np.float16), "empty": values[:0]}, tmp_path / "x")

    tensors = {tensor.name: tensor for tensor in read_header(tmp_path / "x")}

    with Reader() as reader:
        assert np.array_equal(reader.floats(tensors["a"]).reshape(7, 5), values)
        assert np.array_equal(reader.floats(tensors["b"], 5, 10), _half(values).reshape(-1)[5:15])
        assert reader.floats(tensors["empty"]).size == 0


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


def test_bfloat16_is_the_upper_half_of_float32():
    raw = np.array([0x3F80, 0xC040, 0x7F80, 0x0001, 0x7FC1], np.uint16).view(np.uint8)

    wide = widen(raw, "BF16")

    assert wide[:4].tolist() == [1.0, -3.0, np.inf, 2.0**-133]
    assert np.isnan(wide[4])


def test_the_header_written_is_one_that_safetensors_reads(tmp_path):
    values = np.arange(6, dtype=np.float32)
    text = header([("ä", "F32", (2, 3)), ("half", "F16", (6,))])
    data = values.tobytes() + values.astype(np.float16).tobytes()
    (tmp_path / "x").write_bytes(text + data)

    read = load_file(tmp_path / "x")

    assert read["ä"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read["half"].tolist() == values.tolist()
    assert len(text) % 8 == 0


def shards(folder: Path, weight_map: Any) -> None:
    for name in ("one", "two"):
        save_file({name: np.zeros(4, np.float16)}, folder / f"{name}.safetensors")
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


GOOD = {"one": "one.safetensors", "two": "two.safetensors"}


def test_shards_are_read_by_their_index(tmp_path):
    shards(tmp_path, GOOD)

    tensors = Checkpoint.open(tmp_path).tensors

    assert {name: tensor.path.name for name, tensor in tensors.items()} == GOOD


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (GOOD | {"two": "three.safetensors"}, "shard three.safetensors is missing"),
        (GOOD | {"two": "../two.safetensors"}, "points to '../two.safetensors', not to a file"),
        (GOOD | {"two": ".."}, "shard .. is missing"),
        (GOOD | {"two": 5}, "two points to 5"),
        (GOOD | {"three": "two.safetensors"}, "three is not in the index and a shard alike"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, weight_map, message):
    shards(tmp_path, weight_map)

    with pytest.raises(ExportError) as refused:
        Checkpoint.open(tmp_path)

    assert message in str(refused.value)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards(tmp_path, GOOD)
    save_file({"one": np.zeros(1, np.float16)}, tmp_path / "two.safetensors")

    with pytest.raises(ExportError, match=r"one is in .*one\.safetensors too"):
        Checkpoint.open(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()

    with pytest.raises(ExportError, match=r"pickled weights.*\n.*use the model's safetensors"):
        Checkpoint.open(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"has neither model\.safetensors nor"):
        Checkpoint.open(tmp_path)
