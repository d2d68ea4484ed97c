"""Reads safetensors folders as bytes and floats.  No torch, and no mmap to fill the memory."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fastsft.errors import ExportError

Dtype = Literal["F32", "F16", "BF16"]
StoredDtype = Literal["F32", "F16", "BF16", "U8"]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

ITEM_BYTES: dict[Dtype, int] = {"F32": 4, "F16": 2, "BF16": 2}

# Source: safetensors 0.8 `MAX_HEADER_SIZE`; the format says "N < 100MB".
MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 64 * 1024**2
MAX_DIMS = 8

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DOWNLOAD = "download the file again; its SHA-256 is on the model's page"


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: `nbytes` from `start` in `path`, row-major, little-endian."""

    name: str
    path: Path
    dtype: Dtype
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * ITEM_BYTES[self.dtype]

    @property
    def row_length(self) -> int:
        """Values in one row: the product of every axis but the first."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor of a model folder by name; the values stay on disk."""

    folder: Path
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The folder's `model.safetensors`, or its shards in the index's order.

        Raises: ExportError when a shard is missing, cut, malformed or not 16- or 32-bit floats.
        """
        if (folder / SINGLE).is_file():
            return cls.of_files([folder / SINGLE])
        if (folder / INDEX).is_file():
            return cls._of_shards(folder)
        raise _no_weights(folder)

    @classmethod
    def of_files(cls, paths: Iterable[Path]) -> Self:
        """The tensors of these files together; the first file's folder is the checkpoint's."""
        files = list(paths)
        tensors: dict[str, Tensor] = {}
        for path in files:
            for tensor in read_header(path):
                if tensor.name in tensors:
                    raise _malformed(path, f"{tensor.name} is in {tensors[tensor.name].path} too")
                tensors[tensor.name] = tensor
        return cls(files[0].parent, tensors)

    @classmethod
    def _of_shards(cls, folder: Path) -> Self:
        shards = _shards(folder / INDEX)
        for name in dict.fromkeys(shards.values()):
            if not (folder / name).is_file():
                raise ExportError(f"shard {name} is missing", where=str(folder), hint=_DOWNLOAD)
        opened = cls.of_files(folder / name for name in dict.fromkeys(shards.values()))
        for name in shards.keys() ^ opened.tensors.keys():
            raise _malformed(folder / INDEX, f"{name} is not in the index and a shard alike")
        return opened


class Reader:
    """Reads tensors' bytes from files it keeps open; safe from several threads."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def read_into(self, tensor: Tensor, offset: int, buffer: Bytes) -> None:
        """Fills `buffer` from byte `offset` of the tensor."""
        file, at, rest = self._file(tensor.path), tensor.start + offset, buffer.data
        while rest:
            got = os.preadv(file, [rest], at)
            if not got:
                raise _malformed(tensor.path, f"{tensor.name} ends early; the file was cut")
            rest, at = rest[got:], at + got

    def floats(self, tensor: Tensor, first: int = 0, count: int | None = None) -> Floats:
        """Values `first` to `first + count` (to the end if None), as float32."""
        count = tensor.count - first if count is None else count
        raw = np.empty(count * ITEM_BYTES[tensor.dtype], np.uint8)
        self.read_into(tensor, first * ITEM_BYTES[tensor.dtype], raw)
        return widen(raw, tensor.dtype)

    def _file(self, path: Path) -> int:
        file = self._files.get(path)
        if file is None:
            mine = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            file = self._files.setdefault(path, mine)
            if file != mine:  # another thread was first
                os.close(mine)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        while self._files:
            os.close(self._files.popitem()[1])


def widen(raw: Bytes, dtype: Dtype, out: Floats | None = None) -> Floats:
    """The float32 values of raw tensor bytes, in `out` if given.

    Exact for all three types, NaN and infinity too; F32 is a view of `raw`.
    """
    if dtype == "F32":
        return raw.view(np.float32)
    wide = np.empty(raw.size // 2, np.float32) if out is None else out
    if dtype == "F16":
        np.copyto(wide, raw.view(np.float16))
    else:
        np.copyto(wide.view(np.uint32), raw.view(np.uint16))
        np.left_shift(wide.view(np.uint32), 16, out=wide.view(np.uint32))
    return wide


def read_header(path: Path) -> list[Tensor]:
    """The file's tensors in the order of their bytes.

    Raises: ExportError unless the tensors tile the file exactly, as the format demands.
    Source: https://github.com/huggingface/safetensors#format
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise _malformed(path, f"its header claims {length} bytes of a {size}-byte file")
        entries = _json_object(path, file.read(length))
    entries.pop("__metadata__", None)
    start = 8 + length
    tensors = sorted((_tensor(path, *item, start) for item in entries.items()), key=_place)
    for tensor in tensors:
        if tensor.start != start:
            raise _malformed(path, f"{tensor.name} overlaps its neighbour or leaves a hole")
        start += tensor.nbytes
    if start != size:
        raise _malformed(path, f"its tensors end at byte {start}, the file at {size}")
    return tensors


def header(tensors: Iterable[tuple[str, StoredDtype, tuple[int, ...]]]) -> bytes:
    """Length and JSON that open a safetensors file whose tensors follow in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        end = at + math.prod(shape) * (1 if dtype == "U8" else ITEM_BYTES[dtype])
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    return len(text).to_bytes(8, "little") + text


def read_object(path: Path, *, max_bytes: int = 1024**2) -> dict[str, Any]:
    """A small JSON file that holds one object; duplicate keys are refused.

    Raises: ExportError when it is too large, not JSON or not an object.
    """
    if path.stat().st_size > max_bytes:
        raise _malformed(path, f"is larger than {max_bytes} bytes")
    return _json_object(path, path.read_bytes())


def _tensor(path: Path, name: str, entry: object, data: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            pass
        case _:
            raise _malformed(path, f"the header's entry of {name!r} is not a tensor")
    if not all(map(_is_size, (*shape, begin, end))) or len(shape) > MAX_DIMS:
        raise _malformed(path, f"{name} has shape {shape} at {begin}:{end}")
    if not _is_dtype(dtype):
        raise ExportError(
            f"{name} is stored as {dtype}",
            where=str(path),
            hint="give the 16-bit model (F16, BF16 or F32), not a quantised copy of it",
        )
    tensor = Tensor(name, path, dtype, tuple(shape), data + begin)
    if tensor.nbytes != end - begin:
        raise _malformed(path, f"{name} has shape {shape} but {end - begin} bytes")
    return tensor


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.start, tensor.nbytes


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_dtype(name: str) -> TypeGuard[Dtype]:
    return name in ITEM_BYTES


def _shards(index: Path) -> dict[str, str]:
    """Tensor name -> file name, each a plain name beside the index."""
    shards = read_object(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise _malformed(index, "has no weight_map")
    for name, file in shards.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise _malformed(index, f"{name} points to {file!r}, not to a file beside it")
    return shards


def _json_object(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise _malformed(path, "is not a JSON object")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice")
    return found


def _malformed(path: Path, what: str) -> ExportError:
    return ExportError(what, where=str(path), hint=_DOWNLOAD)


def _no_weights(folder: Path) -> ExportError:
    if any(folder.glob("pytorch_model*.bin")):
        return ExportError(
            "holds pickled weights (pytorch_model.bin), which can run code when read",
            where=str(folder),
            hint="use the model's safetensors files",
        )
    return ExportError(
        f"has neither {SINGLE} nor {INDEX}",
        where=str(folder),
        hint="pass the folder of the 16-bit base model",
    )
