"""Puts rows together into sequences of a token budget, or into batches of like lengths.  No torch.

No row is cut and none is lost.  Numbers in, numbers out: the rows themselves are only touched by
`join`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsft.data.encode import UNTRAINED
from fastsft.errors import DataError

Row = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Ids [T] and labels [T]."""

WINDOW_BATCHES = 50
"""Batches among which rows are sorted by length: enough to leave 2 to 8 % padding, few enough to
keep what is trained together random.  Source: measured, `bench/data/packing.py`."""


@dataclass(frozen=True)
class Bins:
    """Which rows share a sequence: bin i holds `rows[offsets[i]:offsets[i + 1]]`.

    Rows rise within a bin, and bins come in the order of their first rows, so their order says
    nothing of their lengths; whoever trains on them shuffles them.
    """

    rows: NDArray[np.int64]  # [N], each row once
    offsets: NDArray[np.int64]  # [bins + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """The rows of one bin."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.rows[self.offsets[index] : self.offsets[index + 1]]

    def tokens(self, lengths: ArrayLike) -> NDArray[np.int64]:
        """Tokens in each bin [bins]."""
        before = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64)[self.rows])])
        return np.diff(before[self.offsets])


def pack(lengths: ArrayLike, budget: int) -> Bins:
    """Bins of at most `budget` tokens with every row in exactly one: best fit, longest first.

    Depends on the lengths alone.  Raises DataError for a row that is longer than the budget.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    longer = np.flatnonzero(sizes > budget)
    if len(longer):
        raise DataError(
            f"{sizes[longer[0]]} tokens do not fit a sequence of {budget}",
            where=f"row {longer[0]}",
            hint="raise data.max_tokens, or prepare the rows with the one that is trained with",
        )
    order = np.argsort(-sizes, kind="stable")
    bin_of = np.empty(len(sizes), dtype=np.int64)
    bin_of[order] = _best_fit(sizes[order].tolist(), budget)
    return _by_first_row(bin_of)


def _best_fit(falling: Sequence[int], budget: int) -> list[int]:
    """A bin for each length: of those that it fits, one with the least space left."""
    spaces: list[int] = []  # what open bins have left, each size once, rising
    waiting: dict[int, list[int]] = {}  # space left -> bins
    found, count = [], 0
    for length in falling:
        place = bisect_left(spaces, length)
        if place == len(spaces):
            space, number, count = budget, count, count + 1
        else:
            space = spaces[place]
            number = waiting[space].pop()
            if not waiting[space]:
                del spaces[place], waiting[space]
        found.append(number)
        left = space - length
        if left and left not in waiting:
            insort(spaces, left)
            waiting[left] = []
        if left:
            waiting[left].append(number)
    return found


def _by_first_row(bin_of: NDArray[np.int64]) -> Bins:
    _, first, number = np.unique(bin_of, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    renamed = rank[number]
    counts = np.bincount(renamed, minlength=len(first))
    return Bins(
        rows=np.argsort(renamed, kind="stable"),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def grouped(lengths: ArrayLike, batch_rows: int, *, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """An order of the rows [N] in which every `batch_rows` of them have like lengths.

    The batches themselves are in random order; the last few rows, too few for a batch, end it.
    Depends on the lengths, the seed and the epoch alone.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(sizes)).astype(np.int64)
    batches = len(sizes) // batch_rows
    whole, rest = np.split(order, [batches * batch_rows])
    # At least four windows, or each epoch would have the very same batches.
    window = batch_rows * min(max(batches // 4, 1), WINDOW_BATCHES)
    like = whole[np.lexsort((sizes[whole], np.arange(len(whole)) // window))]
    shuffled = random.permutation(like.reshape(-1, batch_rows), axis=0)
    return np.concatenate([shuffled.ravel(), rest])


@dataclass(frozen=True)
class Efficiency:
    """Share of the computed positions that are tokens of rows, for each way to make batches."""

    padded: float
    grouped: float
    packed: float


def efficiency(lengths: ArrayLike, *, budget: int, batch_rows: int, seed: int) -> Efficiency:
    """What each way to make batches of `batch_rows` would compute for these rows."""
    sizes = np.asarray(lengths, dtype=np.int64)
    sequences = pack(sizes, budget).tokens(sizes)
    random = np.random.default_rng(seed)
    return Efficiency(
        padded=_real_share(random.permutation(sizes), batch_rows),
        grouped=_real_share(sizes[grouped(sizes, batch_rows, seed=seed)], batch_rows),
        packed=_real_share(random.permutation(sequences), batch_rows),
    )


def _real_share(sizes: NDArray[np.int64], batch_rows: int) -> float:
    """Real positions of all, where each batch is padded to its longest; 1.0 without any."""
    starts = np.arange(0, len(sizes), batch_rows)
    if not len(starts):
        return 1.0
    counts = np.diff(np.append(starts, len(sizes)))
    slots = int((np.maximum.reduceat(sizes, starts) * counts).sum())
    return int(sizes.sum()) / max(slots, 1)


@dataclass(frozen=True)
class Packed:
    """One sequence of several documents, which are kept apart by their positions."""

    input_ids: NDArray[np.int32]  # [T]
    labels: NDArray[np.int32]  # [T], -100 where untrained
    lengths: NDArray[np.int32]  # [documents], which add up to T

    @property
    def position_ids(self) -> NDArray[np.int32]:
        """Each token's place in its own document, from 0  # [T]."""
        starts = np.cumsum(self.lengths, dtype=np.int32) - self.lengths
        every = np.arange(len(self.input_ids), dtype=np.int32)
        return every - np.repeat(starts, self.lengths)

    def padded(self, width: int, *, pad_id: int) -> Packed:
        """This sequence with an untrained document of padding behind it, if it is shorter."""
        missing = width - len(self.input_ids)
        if missing <= 0:
            return self
        padding = np.full(missing, pad_id, dtype=np.int32)
        return Packed(
            np.concatenate([self.input_ids, padding]),
            np.concatenate([self.labels, np.full_like(padding, UNTRAINED)]),
            np.append(self.lengths, np.int32(missing)),
        )


def join(rows: Sequence[Row]) -> Packed:
    """The rows as one sequence; the first token of each is untrained.

    Nothing before a document predicts its first token: without that, the last token of one would
    be trained to predict the next.
    """
    lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int32)
    labels = np.concatenate([labels for _, labels in rows])
    labels[np.cumsum(lengths) - lengths] = UNTRAINED
    return Packed(np.concatenate([ids for ids, _ in rows]), labels, lengths)
