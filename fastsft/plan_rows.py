"""Rows of known lengths, and the micro-batches that they make.  Pure: numbers in, numbers out."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsft.data import pack


@dataclass(frozen=True)
class Batches:
    """The micro-batches that rows make: how many an epoch has, and what the mean one holds.

    `length`: of the longest row or sequence.  `count` None: the rows are not known, and each is
    taken to be as long as `data.max_tokens` allows.
    """

    length: int
    slots: float
    real: float
    pairs: float
    count: int | None = None

    @classmethod
    def full(cls, rows: int, length: int) -> "Batches":
        """All rows as long as can be."""
        slots = float(rows * length)
        return cls(length, slots, slots, rows * length * (length + 1) / 2)


class Rows:
    """Rows of known lengths, and the micro-batches that they make; each way is counted once."""

    def __init__(self, lengths: ArrayLike, *, budget: int, seed: int) -> None:
        self._sizes: NDArray[np.int64] = np.asarray(lengths, dtype=np.int64)
        self._budget, self._seed = budget, seed
        self._known: dict[tuple[int, bool], Batches] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return int(self._sizes.sum())

    @cached_property
    def _sequences(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Tokens of each packed sequence, and its attended pairs."""
        bins = pack.pack(self._sizes, self._budget)
        ordered = self._sizes[bins.rows]
        pairs = np.add.reduceat(ordered * (ordered + 1) / 2, bins.offsets[:-1])
        return bins.tokens(self._sizes), pairs

    @property
    def per_sequence(self) -> float:
        """Rows of the mean packed sequence."""
        return len(self._sizes) / len(self._sequences[0])

    def batches(self, rows: int, *, packing: bool) -> Batches:
        """Micro-batches of `rows` rows, or packed sequences, in a random order."""
        key = rows, packing
        if key not in self._known:
            self._known[key] = self._batches(rows, packing=packing)
        return self._known[key]

    def _batches(self, rows: int, *, packing: bool) -> Batches:
        sizes = self._sequences[0] if packing else self._sizes
        order = np.random.default_rng(self._seed).permutation(len(sizes))
        starts = np.arange(0, len(sizes), rows)
        widths = np.maximum.reduceat(sizes[order], starts)
        counts = np.diff(np.append(starts, len(sizes)))
        if packing:
            pairs = float(self._sequences[1].sum())
        else:  # a padded row attends over its padding too
            pairs = float((counts * widths * (widths + 1) / 2).sum())
        n = len(starts)
        slots, real = float((widths * counts).sum()), float(sizes.sum())
        return Batches(int(sizes.max()), slots / n, real / n, pairs / n, n)
