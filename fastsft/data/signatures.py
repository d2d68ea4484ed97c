"""Turns texts into small signatures that tell how much two texts have in common.  Reads no file.

A text is folded (case, punctuation and space), cut into n-grams (5 characters, 3 where the first
is Chinese, Japanese or Korean) and hashed.  The smallest hashes stand for the text: minima under
many permutations, in bands, find candidates (locality-sensitive hashing); an odd sketch of them
gives the Jaccard similarity of a candidate pair, nearly exactly for short texts.

Source: Broder 1997 (MinHash, bottom-k); Leskovec, Rajaraman and Ullman, Mining of Massive Datasets
3.4 (banding); Mitzenmacher, Pagh and Pham 2014 (odd sketch).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsft.data import characters

BANDS, BAND_ROWS = 32, 5
"""A pair of similarity s shares a band with probability 1 - (1 - s^5)^32: 0.9998 at 0.75, 0.0003
at 0.1."""
SKETCH_BITS = 2048
SKETCHED = 1024
"""N-grams of a text that its sketch stands for: the ones with the smallest hashes."""
PERMUTED = 256
"""N-grams of a text that are permuted: most of the time goes here."""
LONGEST = 1 << 20
"""Characters of a text that are looked at."""

_GRAM, _CJK_GRAM = 5, 3
_PAD = _GRAM - 1
_PIECE = 1 << 18  # characters that are hashed at once
_CACHED = 64  # texts whose n-grams fit the second-level cache together
_MULTIPLIER = np.uint32(0x01000193)
_SEED = 20261121
_PERMUTATIONS = np.random.default_rng(_SEED).integers(
    0, 1 << 32, BANDS * BAND_ROWS, dtype=np.uint32
) | np.uint32(1)


@dataclass(frozen=True, slots=True)
class Signatures:
    """What is kept of N texts: 388 bytes each."""

    bands: NDArray[np.uint32]  # [N, BANDS]
    sketch: NDArray[np.uint64]  # [N, SKETCH_BITS / 64], parity of the sketched n-grams
    grams: NDArray[np.uint32]  # [N] different n-grams; 0 for a text without letters

    @classmethod
    def of(cls, texts: Sequence[str]) -> Signatures:
        """The signatures of the texts, which are NFKC-normalised already."""
        return cls.join([_signed(piece) for piece in _pieces(texts)])

    @classmethod
    def join(cls, parts: Sequence[Signatures]) -> Signatures:
        """One after the other."""
        empty = cls(
            bands=np.zeros((0, BANDS), dtype=np.uint32),
            sketch=np.zeros((0, SKETCH_BITS // 64), dtype=np.uint64),
            grams=np.zeros(0, dtype=np.uint32),
        )
        return cls(
            bands=np.concatenate([part.bands for part in (empty, *parts)]),
            sketch=np.concatenate([part.sketch for part in (empty, *parts)]),
            grams=np.concatenate([part.grams for part in (empty, *parts)]),
        )

    def __len__(self) -> int:
        return len(self.grams)


def similarity(
    signatures: Signatures, a: NDArray[np.int64], b: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of rows `a` and `b`, pair by pair."""
    odd = np.bitwise_count(signatures.sketch[a] ^ signatures.sketch[b]).sum(axis=1)
    odd = np.minimum(odd, SKETCH_BITS / 2 - 1)
    differing: NDArray[np.float64] = -SKETCH_BITS / 2 * np.log1p(-2 * odd / SKETCH_BITS)
    of_a, of_b = (signatures.grams[rows].astype(np.float64) for rows in (a, b))
    sampled = np.minimum(of_a, SKETCHED) + np.minimum(of_b, SKETCHED)
    thinned = np.maximum(1.0, np.maximum(of_a, of_b) / SKETCHED)
    shared = np.maximum(sampled - differing, 0) / 2 * thinned
    together: NDArray[np.float64] = np.maximum(of_a + of_b - shared, 1)
    similar: NDArray[np.float64] = np.minimum(shared / together, 1.0)
    return similar


def _pieces(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in groups of bounded size, cut to what is looked at."""
    piece: list[str] = []
    size = 0
    for text in texts:
        if piece and size + len(text) > _PIECE:
            yield piece
            piece, size = [], 0
        piece.append(text[:LONGEST].replace("\0", " "))
        size += len(piece[-1])
    if piece:
        yield piece


def _signed(texts: list[str]) -> Signatures:
    points, is_cjk, lengths = _folded(texts)
    rows = np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32)
    keys = np.repeat(rows[:-1], lengths)
    keys |= _gram_hashes(points, is_cjk)
    keys.sort()
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    borders = np.searchsorted(keys, rows)
    hashes, grams = keys.astype(np.uint32), np.diff(borders)
    return Signatures(
        bands=_bands(*_smallest(hashes, borders, PERMUTED)),
        sketch=_sketch(*_smallest(hashes, borders, SKETCHED)),
        grams=np.where(lengths > _PAD, grams, 0).astype(np.uint32),
    )


def _folded(
    texts: list[str],
) -> tuple[NDArray[np.uint32], NDArray[np.bool_], NDArray[np.int64]]:
    """Folded code points with zeros around each text, which are CJK, and n-grams of each text."""
    points = characters.folded(characters.codes(texts, gap="\0" * _PAD))
    lengths = np.array([len(text) + _PAD for text in texts])
    is_space = points == ord(" ")
    keep = ~(is_space & np.append(False, is_space[:-1]))
    points, lengths = points[keep], _counted(keep, lengths)
    is_cjk = characters.scripts(points) < characters.CJK
    is_tight = (points == 0) | is_cjk
    beside = np.append(True, is_tight[:-1]) | np.append(is_tight[1:], True)
    keep = ~(beside & (points == ord(" ")))
    return points[keep], is_cjk[keep], _counted(keep, lengths)


def _counted(keep: NDArray[np.bool_], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is kept of each text with the zeros before it."""
    ends = np.cumsum(lengths).tolist()
    return np.array(
        [np.count_nonzero(keep[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)],
        dtype=np.int64,
    )


def _gram_hashes(points: NDArray[np.uint32], is_cjk: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """The hash of the n-gram that begins at each code point but the last four."""
    mixed = _mixed(points + np.uint32(1))  # so that leading zeros count
    last = len(points) - _PAD
    hashes = mixed[:last].copy()
    for place in range(1, _GRAM):
        if place == _CJK_GRAM:
            short = hashes.copy()
        hashes *= _MULTIPLIER
        hashes += mixed[place : last + place]
    return _mixed(np.where(is_cjk[:last], short, hashes))


def _smallest(
    hashes: NDArray[np.uint32], borders: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The `limit` smallest hashes of each text, and how many each has; `hashes` rise in a text."""
    counts = np.minimum(np.diff(borders), limit)
    if counts.sum() == len(hashes):
        return hashes, counts
    starts = borders[:-1].tolist()
    chosen = [hashes[a : a + count] for a, count in zip(starts, counts.tolist(), strict=True)]
    return np.concatenate(chosen), counts


def _mixed(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A permutation of the 32-bit numbers in which every input bit moves every output bit.

    Source: the finaliser of MurmurHash3 (Appleby, public domain).
    """
    values = values ^ (values >> np.uint32(16))
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    values ^= values >> np.uint32(16)
    return values


def _bands(hashes: NDArray[np.uint32], counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Each band's hash of its minima; `counts` hashes belong to each text, at least one."""
    ends = np.cumsum(counts)
    minima = np.empty((BANDS * BAND_ROWS, len(counts)), dtype=np.uint32)
    for first in range(0, len(counts), _CACHED):
        rows = slice(first, first + _CACHED)
        starts = (ends - counts)[rows]
        _add_minima(hashes[starts[0] : ends[rows][-1]], starts - starts[0], minima[:, rows])
    bands = np.zeros((BANDS, len(counts)), dtype=np.uint32)
    for place in range(BAND_ROWS):
        bands = _mixed(bands * _MULTIPLIER + minima[place::BAND_ROWS])
    return np.ascontiguousarray(bands.T)


def _add_minima(
    hashes: NDArray[np.uint32], starts: NDArray[np.int64], minima: NDArray[np.uint32]
) -> None:
    """Sets `minima` [permutations, texts]; texts begin at `starts`."""
    permuted = np.empty_like(hashes)
    for multiplier, smallest in zip(_PERMUTATIONS, minima, strict=True):
        np.multiply(hashes, multiplier, out=permuted)
        np.minimum.reduceat(permuted, starts, out=smallest)


def _sketch(hashes: NDArray[np.uint32], counts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """For each text the parity of its n-grams in each of the bits."""
    n = len(counts)
    words = SKETCH_BITS // 64
    mixed = _mixed(~hashes)
    sketch = np.zeros(n * words, dtype=np.uint64)
    bit = np.uint64(1) << (mixed & np.uint32(63)).astype(np.uint64)
    word = np.repeat(np.arange(n) * words, counts) + ((mixed >> np.uint32(6)) % words)
    np.bitwise_xor.at(sketch, word, bit)
    return sketch.reshape(n, words)
