"""Holds labelled token rows as flat arrays, in memory and in one file.  No torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors import SafetensorError

from fastsft.data.encode import UNTRAINED, Encoded
from fastsft.errors import DataError

Array = NDArray[Any]

HEADER_BYTES = 4096
"""Room for the file's header, whose sizes are known only at the end; JSON padded with spaces."""
BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Index:
    """Which stretches of a store are rows: N of them; a stretch may be listed twice.

    `row_ids[i]` numbers the source row, over all sources, from 0.
    """

    starts: NDArray[np.int64]  # [N]
    lengths: NDArray[np.int64]  # [N]
    row_ids: NDArray[np.int64]  # [N]
    trained_lengths: NDArray[np.int64]  # [N], trained tokens of each row

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, order: Array) -> Index:
        """The rows at these places, in this order."""
        return Index(*(getattr(self, field.name)[order] for field in fields(self)))

    @classmethod
    def of(cls, lengths: Array, row_ids: Array, trained_lengths: Array) -> Self:
        """Rows that stand one after the other."""
        ends = np.cumsum(lengths, dtype=np.int64)
        columns = (ends - lengths, lengths, row_ids, trained_lengths)
        return cls(*(np.asarray(column, dtype=np.int64) for column in columns))


@dataclass(frozen=True)
class TokenRows:
    """N rows of tokens in a flat store, which a file may back."""

    input_ids: NDArray[np.int32]  # [S]
    trained: NDArray[np.bool_]  # [S]
    index: Index

    @classmethod
    def of(cls, rows: Iterable[tuple[int, Encoded]]) -> TokenRows:
        """The rows, each with its source row's number, in the order given."""
        items = list(rows)
        no_ids, no_marks = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_)
        return cls(
            input_ids=np.concatenate([no_ids, *(row.input_ids for _, row in items)]),
            trained=np.concatenate([no_marks, *(row.trained for _, row in items)]),
            index=Index.of(
                np.array([len(row.input_ids) for _, row in items], dtype=np.int64),
                np.array([number for number, _ in items], dtype=np.int64),
                np.array([np.count_nonzero(row.trained) for _, row in items], dtype=np.int64),
            ),
        )

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids [T] and labels [T] of one row; a label is -100 where untrained."""
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        start = int(self.index.starts[place])
        row = slice(start, start + int(self.index.lengths[place]))
        ids = np.array(self.input_ids[row])
        return ids, np.where(self.trained[row], ids, np.int32(UNTRAINED))

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """The source row's number of each row [N]."""
        return self.index.row_ids

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row [N]."""
        return self.index.lengths

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.index.lengths.sum())

    @property
    def trained_tokens(self) -> int:
        """Tokens whose label is not -100."""
        return int(self.index.trained_lengths.sum())

    def sha256(self) -> str:
        """A hash of every row's content in order, the same on every machine."""
        digest = hashlib.sha256()
        for column in (self.index.lengths, self.index.row_ids):
            digest.update(f"{len(column)}\n".encode() + column.astype("<i8").tobytes())
        for ids, labels in self:
            digest.update(ids.astype("<i4").tobytes() + (labels != UNTRAINED).tobytes())
        return digest.hexdigest()


class Writer:
    """Writes a token file as its rows come, in bounded memory; `finish` makes it whole.

    The file is safetensors: `input_ids` I32 [S], `trained` U8 [S], and for `train` and `eval`
    each column of `Index`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._marks_path = self._staged.with_suffix(".marks")
        self._file = self._staged.open("w+b")
        self._marks = self._marks_path.open("w+b")
        self._file.write(bytes(HEADER_BYTES))
        self._digest = hashlib.sha256()
        self._tokens = 0

    def append(self, input_ids: Array, trained: Array) -> None:
        """Add tokens, of one row or of many."""
        self._put(input_ids.astype("<i4").tobytes())
        self._marks.write(trained.astype(np.bool_).tobytes())
        self._tokens += len(input_ids)

    def finish(self, train: Index, evaluation: Index) -> None:
        """Write which stretches are rows, then the header; a crash leaves no file or all of it."""
        sizes: dict[str, tuple[str, int, int]] = {
            "input_ids": ("I32", self._tokens, 4 * self._tokens),
            "trained": ("U8", self._tokens, self._tokens),
        }
        self._marks.seek(0)
        while block := self._marks.read(BLOCK_BYTES):
            self._put(block)
        for side, rows in (("train", train), ("eval", evaluation)):
            for field in fields(rows):
                column = getattr(rows, field.name).astype("<i8")
                sizes[f"{side}.{field.name}"] = ("I64", len(column), column.nbytes)
                self._put(column.tobytes())
        self._file.seek(0)
        self._file.write(_header(sizes, self._digest.hexdigest()))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._staged.replace(self.path)
        self.close()

    def close(self) -> None:
        """Take away what is not whole."""
        self._file.close()
        self._marks.close()
        self._staged.unlink(missing_ok=True)
        self._marks_path.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


def _header(sizes: Mapping[str, tuple[str, int, int]], digest: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"sha256": digest}}
    at = 0
    for name, (dtype, count, size) in sizes.items():
        entries[name] = {"dtype": dtype, "shape": [count], "data_offsets": [at, at + size]}
        at += size
    room = HEADER_BYTES - 8
    return room.to_bytes(8, "little") + json.dumps(entries).encode().ljust(room)


def load(path: Path) -> tuple[TokenRows, TokenRows]:
    """Train and evaluation rows of a token file, which stays mapped: memory is used as rows are.

    Raises `DataError` when the file is missing, or is not what was written.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            recorded: Mapping[str, str] = file.metadata() or {}
            indexes = [_index(file, side) for side in ("train", "eval")]
            tokens = file.get_slice("input_ids").get_shape()[0]
            file.get_slice("trained")
    except (OSError, SafetensorError, KeyError) as error:
        raise _broken(path, str(error)) from error
    if recorded.get("sha256") != _digest(path):
        raise _broken(path, "its hash differs")
    ids = _mapped(path, np.dtype("<i4"), tokens, HEADER_BYTES)
    trained = _mapped(path, np.dtype(np.bool_), tokens, HEADER_BYTES + 4 * tokens)
    train, evaluation = (TokenRows(ids, trained, index) for index in indexes)
    return train, evaluation


def link(source: Path, path: Path) -> None:
    """Put a token file at a second place: the same file where the disk can, else a copy."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def _index(file: Any, side: str) -> Index:
    columns = (file.get_tensor(f"{side}.{field.name}") for field in fields(Index))
    return Index(*(column.astype(np.int64) for column in columns))


def _mapped(path: Path, dtype: np.dtype[Any], count: int, offset: int) -> Array:
    if count == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))


def _digest(path: Path) -> str:
    """The hash of everything behind the header."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _broken(path: Path, why: str) -> DataError:
    return DataError(
        f"not a whole token file: {why}", where=str(path), hint="prepare the data again"
    )
