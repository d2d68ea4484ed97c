"""Reads an importance matrix, the GGUF of today's llama.cpp or the older .dat.  Changes nothing."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastsft.errors import ExportError
from fastsft.export import gguf_index
from fastsft.export.gguf_index import Index, Tensor

Weights = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
_F32 = 0
_LONGEST_NAME = 1024


@dataclass(frozen=True)
class Imatrix:
    """The mean square of each column's inputs, by tensor; from what text, in how many pieces."""

    entries: Mapping[str, Weights]
    dataset: str | None
    chunks: int


def read(path: Path) -> Imatrix:
    """An importance matrix as `llama-imatrix` wrote it.

    Raises: ExportError when the file is missing, is none, is cut, or holds a value that is no
    number.
    """
    if not path.is_file():
        raise ExportError("no such file", where=str(path), hint="name an importance matrix file")
    found = _of_gguf(path) if gguf_index.is_gguf(path) else _of_dat(path)
    if not found.entries:
        raise _unreadable(path, "it has no entry")
    for name, weights in found.entries.items():
        if not np.isfinite(weights).all():
            raise _unreadable(path, f"{name} has values that are no numbers")
    return found


def require_fit(imatrix: Imatrix, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Raises: ExportError unless the matrix was made on a model of these layers and widths.

    llama.cpp quantises a layer that the matrix lacks without it, and says so only in its log.
    """
    wanted = {
        name: tensor.shape[-1]
        for name, tensor in tensors.items()
        if name.startswith("blk.") and len(tensor.shape) > 1
    }
    for name, columns in wanted.items():
        if name not in imatrix.entries:
            raise _misfit(f"it lacks {name}", where)
        if (size := imatrix.entries[name].size) != columns:
            raise _misfit(f"{name} has {size} columns there and {columns} in the model", where)
    strange = [name for name in imatrix.entries if name not in tensors]
    if any(name.startswith("blk.") for name in strange):
        raise _misfit(f"the model lacks its {strange[0]}", where)


def _of_gguf(path: Path) -> Imatrix:
    index = gguf_index.read(path)
    if missing := [key for key in _KEYS if key not in index.metadata]:
        raise _unreadable(path, f"it has no {missing[0]}")
    names = sorted({name.removesuffix(_SUMS) for name in index.tensors if name.endswith(_SUMS)})
    datasets = index.metadata[_KEYS[0]]
    return Imatrix(
        {name: _mean(path, index, name) for name in names},
        datasets[0] if datasets else None,
        int(index.metadata[_KEYS[1]]),
    )


def _mean(path: Path, index: Index, name: str) -> Weights:
    """Sums over counts in float32, as llama.cpp divides them; ones where nothing was counted."""
    if name + _COUNTS not in index.tensors:
        raise _unreadable(path, f"{name} has sums and no counts")
    sums, counts = (_floats(path, index, name + part) for part in (_SUMS, _COUNTS))
    counts = np.round(counts).astype(np.float32).reshape(-1, 1)
    sums = sums.reshape(len(counts), -1)
    counted = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
    return counted.ravel()


def _floats(path: Path, index: Index, name: str) -> Weights:
    tensor = index.tensors[name]
    if tensor.type != _F32:
        raise _unreadable(path, f"{name} is not float32")
    size = int(np.prod(tensor.shape, dtype=np.int64))
    at = index.data_offset + tensor.offset
    if at + 4 * size > path.stat().st_size:
        raise _unreadable(path, "it ends too early")
    return np.fromfile(path, dtype="<f4", count=size, offset=at)


def _of_dat(path: Path) -> Imatrix:
    try:
        with path.open("rb") as opened:
            return _entries(opened, path.stat().st_size)
    except (struct.error, ValueError) as error:
        raise _unreadable(path, str(error)) from error


def _entries(opened: BufferedReader, nbytes: int) -> Imatrix:
    entries: dict[str, Weights] = {}
    for _ in range(_int(opened)):
        name = _text(opened)
        calls, size = _int(opened), _int(opened)
        if not 0 < 4 * size <= nbytes:
            raise ValueError(f"an entry of {size} values")
        sums: Weights = np.frombuffer(opened.read(4 * size), dtype="<f4")
        if sums.size != size:
            raise ValueError("it ends too early")
        entries[name] = np.divide(sums, max(calls, 1), dtype=np.float32)
    if not opened.peek(1):  # the oldest files end here
        return Imatrix(entries, None, 0)
    chunks = _int(opened)
    return Imatrix(entries, _text(opened) or None, chunks)


def _int(opened: BufferedReader) -> int:
    (value,) = struct.unpack("<i", opened.read(4))
    return int(value)


def _text(opened: BufferedReader) -> str:
    size = _int(opened)
    if not 0 <= size <= _LONGEST_NAME:
        raise ValueError(f"a name of {size} bytes")
    return opened.read(size).decode("utf-8")


def _unreadable(path: Path, why: str) -> ExportError:
    return ExportError(
        f"is not a readable importance matrix: {why}",
        where=str(path),
        hint="name the file that llama-imatrix wrote, .gguf or .dat",
    )


def _misfit(why: str, where: str) -> ExportError:
    return ExportError(
        f"the importance matrix is of another model: {why}",
        where=where,
        hint="make one from this run's f16 GGUF, or from its base's, with llama-imatrix",
    )
