"""What each Unicode code point is: its script, its folded form, its oddities.  Knows no rows."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Entry = TypeVar("Entry", np.uint8, np.uint32)

SCRIPTS = ("han", "kana", "hangul", "latin", "cyrillic", "arabic", "devanagari", "other")
CJK = 3
"""The first three scripts are written without (much) space, and say more in a character."""
UNCOUNTED = len(SCRIPTS)

CONTROL, AT, DIGIT, ODD = 1, 2, 4, 8
"""Bits of a character: a control one, `@`, a digit 0 to 9, one that wrong decoding leaves."""

_BMP = 0x10000
_SPACE = 0x20
_RANGES: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    ("han", ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3400, 0x4DBF))),
    ("han", ((0x4E00, 0x9FFF), (0xF900, 0xFAFF))),
    ("kana", ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))),
    ("hangul", ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF))),
    ("latin", ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0x24F))),
    ("latin", ((0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF), (0xAB30, 0xAB6F))),
    ("latin", ((0xFF21, 0xFF3A), (0xFF41, 0xFF5A))),
    ("cyrillic", ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F))),
    ("arabic", ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF))),
    ("arabic", ((0xFE70, 0xFEFE),)),
    ("devanagari", ((0x900, 0x97F), (0xA8E0, 0xA8FF))),
)
"""Source: the blocks of Unicode 16, Blocks.txt."""
_HAN_BEYOND = (0x20000, 0x3FFFF)
_DELETE_TO_C1 = (0x7F, 0x9F)
_BIDI_OVERRIDES = (0x202D, 0x202E)
_LEADS = tuple(range(0xC2, 0xF5))
"""How the first byte of UTF-8 looks when it is read as Latin-1."""
_GARBLED = tuple(map(ord, "\ufffd锟斤拷烫屯锛銆鐨鏄鈥"))


@dataclass(frozen=True)
class Tables:
    """One entry for each code point of the basic plane."""

    script: NDArray[np.uint8]  # index into SCRIPTS, or UNCOUNTED
    folded: NDArray[np.uint32]  # case folded; punctuation, space and controls are a space
    bits: NDArray[np.uint8]


@cache
def tables() -> Tables:
    """The tables, computed once a process (about 30 ms)."""
    characters = [chr(code) for code in range(_BMP)]
    categories = np.array([unicodedata.category(c)[0] for c in characters])
    folded = np.array([ord(c.casefold()[0]) for c in characters], dtype=np.uint32)
    folded[np.isin(categories, ("P", "Z", "C"))] = _SPACE
    folded[0] = 0  # stands between rows
    return Tables(script=_scripts(categories), folded=folded, bits=_bits())


def _scripts(categories: NDArray[np.str_]) -> NDArray[np.uint8]:
    script = np.full(_BMP, SCRIPTS.index("other"), dtype=np.uint8)
    for name, ranges in _RANGES:
        for first, last in ranges:
            script[first : last + 1] = SCRIPTS.index(name)
    script[np.isin(categories, ("N", "P", "S", "Z", "C"))] = UNCOUNTED
    script[0x3007] = SCRIPTS.index("han")  # the zero among the numerals
    return script


def _bits() -> NDArray[np.uint8]:
    bits = np.zeros(_BMP, dtype=np.uint8)
    bits[:_SPACE] = CONTROL
    bits[[ord("\t"), ord("\n"), ord("\r")]] = 0
    for first, last in (_DELETE_TO_C1, _BIDI_OVERRIDES):
        bits[first : last + 1] |= CONTROL
    bits[ord("@")] |= AT
    bits[ord("0") : ord("9") + 1] |= DIGIT
    bits[[*_LEADS, *_GARBLED]] |= ODD
    return bits


def codes(texts: Sequence[str], *, gap: str) -> NDArray[np.uint32]:
    """The code points of all texts, `gap` before, between and after them."""
    joined = gap.join(["", *texts, ""])
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def bits(points: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The bits of each code point; beyond the basic plane none."""
    return _looked_up(tables().bits, points, beyond=0)


def scripts(points: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The script of each code point."""
    found = _looked_up(tables().script, points, beyond=UNCOUNTED)
    far = np.flatnonzero(points >= _BMP)
    is_han = (points[far] >= _HAN_BEYOND[0]) & (points[far] <= _HAN_BEYOND[1])
    found[far[is_han]] = SCRIPTS.index("han")
    return found


def folded(points: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The code points without case, punctuation or kinds of space; nothing is left out yet."""
    found = _looked_up(tables().folded, points, beyond=0)
    far = np.flatnonzero(points >= _BMP)
    found[far] = points[far]
    return found


def _looked_up(table: NDArray[Entry], points: NDArray[np.uint32], *, beyond: int) -> NDArray[Entry]:
    found = table.take(points, mode="clip")
    if len(points) and points.max() >= _BMP:
        found[points >= _BMP] = beyond
    return found
