"""The tokens of one text, and where in it each stands, as either encoder gives them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding


class Tokens:
    """The tokens of one text: `ids` [T], and where in the text each stands."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self.ids: list[int] = encoding.ids

    def at(self, start: int, end: int) -> tuple[int, int]:
        """The tokens [first, last) that share a character with [start, end) of the text."""
        first = self._encoding.char_to_token(start)
        last = self._encoding.char_to_token(end - 1)
        if first is None or last is None or self._is_split(last):
            return self._searched(start, end)
        return first, last + 1

    def start(self, token: int) -> int:
        """The first character of a token."""
        place = self._encoding.token_to_chars(token)
        return 0 if place is None else int(place[0])

    def _is_split(self, token: int) -> bool:
        """Whether the next token is another part of the same character."""
        following = token + 1
        if following >= len(self.ids):
            return False
        here, there = self._encoding.token_to_chars(token), self._encoding.token_to_chars(following)
        return bool(here is not None and there is not None and there[0] < here[1])

    def _searched(self, start: int, end: int) -> tuple[int, int]:
        """The same from every token's place: for characters that are part of no token."""
        offsets = np.array(self._encoding.offsets, dtype=np.int64).reshape(-1, 2)
        found = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
        return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)


class QuickTokens:
    """The tokens of one text: `ids` [T], and where in the text each stands."""

    def __init__(self, text: str, ids: list[int], byte_lengths: NDArray[np.int64]) -> None:
        self._text = text
        self.ids = ids
        self._ends = np.cumsum(byte_lengths[ids])  # [T], in bytes

    @property
    def is_whole(self) -> bool:
        """Whether the tokens are as long as the text."""
        return bool(len(self.ids)) and int(self._ends[-1]) == self._bytes_to(len(self._text))

    def at(self, start: int, end: int) -> tuple[int, int]:
        """The tokens [first, last) that share a character with [start, end) of the text."""
        first = int(np.searchsorted(self._ends, self._bytes_to(start), side="right"))
        last = int(np.searchsorted(self._ends, self._bytes_to(end), side="left")) + 1
        return first, last

    def start(self, token: int) -> int:
        """The first character of a token."""
        before = int(self._ends[token - 1]) if token else 0
        return len(self._text.encode()[:before].decode("utf-8", "ignore"))

    def _bytes_to(self, place: int) -> int:
        return place if self._text.isascii() else len(self._text[:place].encode())
