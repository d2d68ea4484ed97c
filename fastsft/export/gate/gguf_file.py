"""Reads a GGUF file's metadata and where its tensors lie.  Plain code of the gate's own: it
shares nothing with what wrote the file, and keeps no weights in memory."""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from fastsft.errors import ExportError
from fastsft.weights import Bytes

# Source: github.com/ggml-org/ggml docs/gguf.md, "File Structure".
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_MAX_ITEMS = 16 * 1024**2
_MAX_TEXT = 64 * 1024**2


class UnknownType(ExportError):
    """A tensor type that the installed `gguf` package does not know."""


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies.  `shape` is row-major, the slowest axis first, as in safetensors."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int

    @property
    def rows(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Values in one row."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows; a vector may hold blocks that a row of one value does not."""
        values, nbytes = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) * nbytes // values


@dataclass(frozen=True)
class GgufFile:
    """One file's metadata and tensors by name."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def read(self, tensor: GgufTensor, offset: int, nbytes: int) -> Bytes:
        """Bytes of a tensor, from its byte `offset`."""
        data = np.empty(nbytes, np.uint8)
        with self.path.open("rb", buffering=0) as file:
            got = os.preadv(file.fileno(), [data.data], tensor.start + offset)
        if got != nbytes:
            raise _damaged(self.path, f"{tensor.name} ends early")
        return data


def open_gguf(path: Path) -> GgufFile:
    """The file's metadata and tensors, none of which may lie outside the file.

    Raises: ExportError when it is not a GGUF file, or damaged.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except (struct.error, UnicodeDecodeError, ValueError, KeyError, OverflowError) as error:
        raise _damaged(path, str(error)) from error


def _read(path: Path, file: BinaryIO) -> GgufFile:
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensors, fields = _unpack(file, "<IQQ")
    if version not in _VERSIONS or max(tensors, fields) > _MAX_ITEMS:
        raise ValueError(f"version {version}, {tensors} tensors, {fields} fields")
    metadata = dict(_field(file) for _ in range(fields))
    if len(metadata) < fields:
        raise ValueError("a key appears twice")
    infos = [_info(file) for _ in range(tensors)]
    alignment = int(metadata.get("general.alignment", _ALIGNMENT))
    start = -(-file.tell() // alignment) * alignment
    found = {t.name: GgufTensor(t.name, t.type, t.shape, start + t.start) for t in infos}
    _check(found, len(infos), path.stat().st_size)
    return GgufFile(path, metadata, found)


def _check(found: Mapping[str, GgufTensor], count: int, size: int) -> None:
    if len(found) < count:
        raise ValueError("a tensor appears twice")
    end = 0
    for tensor in sorted(found.values(), key=lambda one: one.start):
        if tensor.start < end or tensor.start + tensor.nbytes > size:
            raise ValueError(f"{tensor.name} overlaps its neighbour or the end of the file")
        end = tensor.start + tensor.nbytes


def _field(file: BinaryIO) -> tuple[str, Any]:
    key = _text(file).decode()
    (kind,) = _unpack(file, "<I")
    return key, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file).decode()
    if kind != _ARRAY:
        return _unpack(file, "<" + _SCALARS[kind])[0]
    inner, count = _unpack(file, "<IQ")
    if count > _MAX_ITEMS:
        raise ValueError(f"an array of {count} values")
    if inner == _STRING:
        return [_text(file) for _ in range(count)]
    return list(_unpack(file, f"<{count}{_SCALARS[inner]}"))


def _info(file: BinaryIO) -> GgufTensor:
    name = _text(file).decode()
    (axes,) = _unpack(file, "<I")
    if not 1 <= axes <= 4:
        raise ValueError(f"{name} has {axes} axes")
    shape = _unpack(file, f"<{axes}Q")
    kind, start = _unpack(file, "<IQ")
    return GgufTensor(name, _type(name, kind), tuple(reversed(shape)), start)


def _type(name: str, kind: int) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType(kind)
    except ValueError as error:
        raise UnknownType(
            f"the gguf package does not know {name}'s type, {kind}",
            where="GGUF",
            hint="a newer gguf package may know it: pip install --upgrade gguf",
        ) from error


def _text(file: BinaryIO) -> bytes:
    (length,) = _unpack(file, "<Q")
    if length > _MAX_TEXT:
        raise ValueError(f"a text of {length} bytes")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("it ends early")
    return text


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _damaged(path: Path, why: str) -> ExportError:
    return ExportError(f"is damaged: {why}", where=str(path), hint="export again with --overwrite")
