"""Reads what a GGUF file says of itself: short metadata and its table of tensors, never weights.

The gguf package's reader takes 20 s over a vocabulary of 150 000 tokens; this one skips it.
Source of the format: ggml/docs/gguf.md in ggml-org/ggml.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsft.errors import ExportError

MAGIC = b"GGUF"
LONGEST_ARRAY = 1024
"""Elements of an array that is still read; a vocabulary is skipped."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_MOST = 1 << 20  # tensors or keys; more is no file of ours


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: rows first, as numpy has it; `type` is ggml's number."""

    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Index:
    """A GGUF's short metadata (arrays over 1024 elements are left out) and its tensors.

    `Tensor.offset` counts from `data_offset`.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    data_offset: int


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does."""
    with path.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def read(path: Path) -> Index:
    """The index of a GGUF file, version 2 or 3.

    Raises: ExportError when it is none, or ends before its tensors are told.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return _Cursor(data).index()
    except (struct.error, ValueError, OSError) as error:
        raise ExportError(
            f"is not a readable GGUF file: {error}",
            where=str(path),
            hint="if it was changed or cut since it was written, write it again",
        ) from error


class _Cursor:
    """Walks through a file's header."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.at = 0

    def index(self) -> Index:
        if self.data[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        if (version := self._scalar("I")) not in (2, 3):
            raise ValueError(f"version {version}")
        tensors, keys = self._scalar("Q"), self._scalar("Q")
        if max(tensors, keys) > _MOST:
            raise ValueError(f"{tensors} tensors and {keys} keys")
        pairs = [(self._string(), self._value(self._scalar("I"))) for _ in range(keys)]
        metadata = {key: value for key, value in pairs if value is not None}
        found = {self._string(): self._tensor() for _ in range(tensors)}
        alignment = int(metadata.get("general.alignment", _ALIGNMENT)) or _ALIGNMENT
        return Index(metadata, found, -(-self.at // alignment) * alignment)

    def _tensor(self) -> Tensor:
        sizes = [self._scalar("Q") for _ in range(self._scalar("I"))]
        return Tensor(tuple(reversed(sizes)), self._scalar("I"), self._scalar("Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(self._scalar("I"), self._scalar("Q"))
        if kind not in _SCALARS:
            raise ValueError(f"a value of type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self, kind: int, count: int) -> tuple[Any, ...] | None:
        if kind == _ARRAY:
            raise ValueError("an array of arrays")
        if count <= LONGEST_ARRAY:
            return tuple(self._value(kind) for _ in range(count))
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._scalar("Q"))
        elif kind in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise ValueError(f"an array of type {kind}")
        return None

    def _string(self) -> str:
        size = self._scalar("Q")
        self._skip(size)
        return self.data[self.at - size : self.at].decode("utf-8")

    def _skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("it ends in its header")

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return value
