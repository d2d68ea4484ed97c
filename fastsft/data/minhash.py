"""Finds rows that are nearly the same, by the signatures of their texts.  Reads no text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsft.data.signatures import BANDS, Signatures, similarity

THRESHOLD = 0.7
"""Jaccard similarity from which two texts are nearly the same.  One changed character of 40
leaves 0.8 of the 5-grams (their ends counted); half of the sentences in common leave about 0.35."""
FEWEST = 20
"""Texts of fewer n-grams are nearly the same only when they are the same but for punctuation: one
other character may be all that they say."""

_BUCKET, _NEIGHBOURS = 16, 4
_BLOCK = 1 << 15  # pairs that are compared at once


@dataclass(frozen=True, slots=True)
class Near:
    """For each of N rows a row that is nearly the same, or -1."""

    earlier: NDArray[np.int64]  # [N] an earlier one of the same side, the earliest that was found
    evaluated: NDArray[np.int64]  # [N] for a training row, an evaluation row


def pairs(
    signatures: Signatures, threshold: float = THRESHOLD
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that have an earlier row nearly the same, ascending, and that earlier row."""
    found = near(signatures, np.zeros(len(signatures), dtype=bool), threshold).earlier
    rows = np.flatnonzero(found >= 0)
    return rows, found[rows]


def near(signatures: Signatures, is_eval: NDArray[np.bool_], threshold: float = THRESHOLD) -> Near:
    """Nearest rows within both sides, and of the training rows among the evaluation rows.

    Rows of one bucket are all compared while they are few; in a large one each is compared with
    the earliest and with its neighbours, so that time does not grow with the square.
    """
    n = len(signatures)
    first = _first_twins(signatures, is_eval)
    nobody = np.int64(n)
    earlier = np.full(n, nobody, dtype=np.int64)
    evaluated = np.full(n, nobody, dtype=np.int64)
    for a, b in _candidates(signatures, np.flatnonzero(first == np.arange(n))):
        a, b = _crossing_or_new(np.minimum(a, b), np.maximum(a, b), is_eval, earlier)
        a, b = _verified(signatures, a, b, threshold)
        is_same = is_eval[a] == is_eval[b]
        np.minimum.at(earlier, b[is_same], a[is_same])
        train, held = np.where(is_eval[a], b, a)[~is_same], np.where(is_eval[a], a, b)[~is_same]
        np.minimum.at(evaluated, train, held)
    earlier = np.where(first < np.arange(n), first, earlier)
    evaluated = evaluated[first]
    _add_twins_across(signatures, is_eval, first, evaluated)
    return Near(*(np.where(found < nobody, found, -1) for found in (earlier, evaluated)))


def _first_twins(signatures: Signatures, is_eval: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row [N] the first row of its side with the same n-grams, mostly itself."""
    keys = _twin_keys(signatures)
    keys ^= is_eval.astype(np.uint64)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    rows = np.arange(len(keys), dtype=np.int64)
    return np.where(signatures.grams > 0, first[group], rows).astype(np.int64)


def _twin_keys(signatures: Signatures) -> NDArray[np.uint64]:
    """A number [N] that two rows share when they have the same n-grams; always even."""
    keys = signatures.grams.astype(np.uint64)
    for column in (*signatures.bands.T, *signatures.sketch.T):
        keys ^= column
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys & ~np.uint64(1)


def _add_twins_across(
    signatures: Signatures,
    is_eval: NDArray[np.bool_],
    first: NDArray[np.int64],
    evaluated: NDArray[np.int64],
) -> None:
    """Rows that are the same but for punctuation on both sides, however short."""
    keys = _twin_keys(signatures)
    held = np.flatnonzero(is_eval & (first == np.arange(len(first))) & (signatures.grams > 0))
    if not len(held):
        return
    held = held[np.argsort(keys[held])]
    train = np.flatnonzero(~is_eval & (signatures.grams > 0))
    place = np.minimum(np.searchsorted(keys[held], keys[train]), len(held) - 1)
    is_twin = keys[held[place]] == keys[train]
    evaluated[train[is_twin]] = held[place[is_twin]]


def _candidates(
    signatures: Signatures, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows that share a band, some of them more than once, a bounded number at a time."""
    rows = rows[signatures.grams[rows] >= FEWEST]
    if len(rows) < 2:
        return
    for band in range(BANDS):
        keys = signatures.bands[rows, band].astype(np.uint64) << np.uint64(32)
        # Within a bucket, those that share the next band too are neighbours.
        keys |= signatures.bands[rows, (band + 1) % BANDS]
        order = np.argsort(keys)
        for a, b in _bucketed(rows[order], keys[order] >> np.uint64(32)):
            for start in range(0, len(a), _BLOCK):
                yield a[start : start + _BLOCK], b[start : start + _BLOCK]


def _bucketed(
    rows: NDArray[np.int64], keys: NDArray[np.uint64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows with one key; `keys` are sorted."""
    is_next = keys[1:] == keys[:-1]
    is_shared = np.append(False, is_next) | np.append(is_next, False)
    rows, keys = rows[is_shared], keys[is_shared]
    if not len(rows):
        return
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    sizes = np.diff(np.append(starts, len(rows)))
    is_large = np.repeat(sizes > _BUCKET, sizes)
    yield rows, np.repeat(np.minimum.reduceat(rows, starts), sizes)
    for step in range(1, int(min(_BUCKET, sizes.max()))):
        is_pair = keys[step:] == keys[:-step]
        if step > _NEIGHBOURS:
            is_pair &= ~is_large[step:]
        at = np.flatnonzero(is_pair)
        yield rows[at], rows[at + step]


def _crossing_or_new(
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    is_eval: NDArray[np.bool_],
    earlier: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs that can still tell something: `a` before `b`, and not both known."""
    tells = (a < earlier[b]) | (is_eval[a] != is_eval[b])
    tells &= a != b
    return a[tells], b[tells]


def _verified(
    signatures: Signatures, a: NDArray[np.int64], b: NDArray[np.int64], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    of_a, of_b = signatures.grams[a], signatures.grams[b]
    is_like = np.minimum(of_a, of_b) >= threshold * np.maximum(of_a, of_b)
    a, b = a[is_like], b[is_like]
    is_near = similarity(signatures, a, b) >= threshold
    return a[is_near], b[is_near]
