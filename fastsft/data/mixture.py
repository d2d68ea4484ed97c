"""Decides how often each row is used in an epoch, source by source.  Reads no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Use:
    """How a source is mixed: each row `weight` times, or a `share` of all training rows."""

    weight: float = 1.0
    share: float | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return f"share {self.share:.0%}"
        return "once" if self.weight == 1 else f"weight {self.weight:g}"


def counts(rows: Sequence[int], uses: Sequence[Use]) -> list[int]:
    """Rows of each source in an epoch, repetitions included.

    Those with a weight come first; they are what the others' shares are of, so that a share of
    0.1 makes one row in ten.  A source without rows has no part.
    """
    pairs = list(zip(rows, uses, strict=True))
    weighted = sum(round(n * use.weight) for n, use in pairs if use.share is None)
    taken = sum(use.share for n, use in pairs if use.share is not None and n)
    total = weighted / (1 - taken)
    return [
        round(n * use.weight) if use.share is None else round(total * use.share) * bool(n)
        for n, use in pairs
    ]


def chosen(fractions: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Which rows make `count`: places in `fractions` [count], each pass over the source in order.

    All are used before any is used again; a part of a pass takes those with the smallest
    fractions, so the choice depends on the rows alone and keeps most of them as data grows.
    """
    n = len(fractions)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    passes, rest = divmod(count, n)
    part = np.sort(np.argsort(_again(fractions), kind="stable")[:rest])
    order: NDArray[np.int64] = np.concatenate([np.tile(np.arange(n), passes), part])
    return order


def _again(fractions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Other numbers in [0, 1) of the same rows: those below an evaluation share are gone."""
    return np.modf(fractions * 2**20)[0]
