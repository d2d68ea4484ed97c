"""Holds labelled token rows as four flat arrays, in memory and in one file.  No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from fastsft.data.encode import UNTRAINED, Encoded
from fastsft.errors import DataError

DTYPES = {"input_ids": "<i4", "labels": "<i4", "offsets": "<i8", "row_ids": "<i8"}


@dataclass(frozen=True)
class TokenRows:
    """N rows of tokens, one after the other.

    Row i is `input_ids[offsets[i]:offsets[i + 1]]`, its labels likewise; `row_ids[i]` is the
    place of its source among the rows of its file, from 0.
    """

    input_ids: NDArray[np.int32]  # [sum T]
    labels: NDArray[np.int32]  # [sum T], -100 where untrained
    offsets: NDArray[np.int64]  # [N + 1]
    row_ids: NDArray[np.int64]  # [N]

    @classmethod
    def of(cls, rows: Iterable[tuple[int, Encoded]]) -> TokenRows:
        """The rows, each with its source's index, in the order given."""
        items = list(rows)
        empty = np.zeros(0, dtype=np.int32)
        lengths = [len(row.input_ids) for _, row in items]
        return cls(
            input_ids=np.concatenate([empty, *(row.input_ids for _, row in items)]),
            labels=np.concatenate([empty, *(row.labels for _, row in items)]),
            offsets=np.cumsum([0, *lengths], dtype=np.int64),
            row_ids=np.array([index for index, _ in items], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids [T] and labels [T] of one row."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        row = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.input_ids[row], self.labels[row]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row [N]."""
        return np.diff(self.offsets)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        """Tokens whose label is not -100."""
        return int(np.count_nonzero(self.labels != UNTRAINED))

    def sha256(self) -> str:
        """A hash of every array's content, the same on every machine."""
        digest = hashlib.sha256()
        for name, array in self._named().items():
            digest.update(f"{name} {array.dtype.str} {len(array)}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _named(self) -> dict[str, NDArray[np.generic]]:
        return {
            name: np.ascontiguousarray(getattr(self, name), dtype=dtype)
            for name, dtype in DTYPES.items()
        }


def save(path: Path, train: TokenRows, evaluation: TokenRows) -> None:
    """Writes both into one safetensors file; a crash leaves the old file or the new one."""
    sides = {"train": train, "eval": evaluation}
    arrays = {
        f"{side}.{name}": a for side, rows in sides.items() for name, a in rows._named().items()
    }
    metadata = {f"{side}.sha256": rows.sha256() for side, rows in sides.items()}
    _write_atomically(path, safetensors.numpy.save(arrays, metadata=metadata))


def load(path: Path) -> tuple[TokenRows, TokenRows]:
    """Train and evaluation rows of a file that `save` wrote.

    Raises `DataError` when the file is missing, or is not what was written.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            recorded: Mapping[str, str] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        train, evaluation = (_side(arrays, side) for side in ("train", "eval"))
    except (OSError, SafetensorError, KeyError) as error:
        raise _broken(path, str(error)) from error
    for side, rows in (("train", train), ("eval", evaluation)):
        if recorded.get(f"{side}.sha256") != rows.sha256():
            raise _broken(path, f"the hash of {side} differs")
    return train, evaluation


def _side(arrays: Mapping[str, NDArray[np.generic]], side: str) -> TokenRows:
    return TokenRows(**{name: arrays[f"{side}.{name}"].astype(t) for name, t in DTYPES.items()})


def _broken(path: Path, why: str) -> DataError:
    return DataError(
        f"not a whole token file: {why}", where=str(path), hint="prepare the data again"
    )


def _write_atomically(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
