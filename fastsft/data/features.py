"""What the checks need to know of each row, in 424 bytes of numpy.  Keeps no text."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsft.data import characters, hints
from fastsft.data.signatures import Signatures

SHORT_ANSWER, MOJIBAKE, CONTROL, EMAIL, PHONE, ID_NUMBER = (1 << bit for bit in range(6))
"""The flags of a row."""
_SENTENCE_END = re.compile(r"[.!?。！？\n](?:(?<=[。！？\n])|(?=\s|$))")
_SHORTEST, _SHORTEST_CJK = 20, 8
_LOOKED_AT = 400  # characters of an answer's beginning or end
_FEWEST_DIGITS = 9
_STEP = 1 << 16  # rows by which joined arrays grow


@dataclass(frozen=True, slots=True)
class Content:
    """What a row says.

    `whole` has the roles and contents of all messages, `text` the contents without the system
    message, `answers` the trained ones.
    """

    whole: str
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Features:
    """What is known of N rows."""

    exact: NDArray[np.uint64]  # [N, 2] hash of the whole, NFKC-normalised
    signatures: Signatures
    flags: NDArray[np.uint32]  # [N]
    openings: NDArray[np.uint64]  # [N] hash of the last answer's first sentence; 0: too short
    closings: NDArray[np.uint64]  # [N] of its last sentence
    scripts: NDArray[np.int64]  # [len(SCRIPTS)] characters of all rows

    @classmethod
    def of(cls, contents: Sequence[Content]) -> Features:
        """The features of the rows, in their order."""
        texts = [_nfkc(content.text) for content in contents]
        opened = [_edges(content.answers) for content in contents]
        return cls(
            exact=_hashes([_nfkc(content.whole) for content in contents], words=2),
            signatures=Signatures.of(texts),
            flags=_flags(contents, texts),
            openings=_hashes([opening for opening, _ in opened], words=1)[:, 0],
            closings=_hashes([closing for _, closing in opened], words=1)[:, 0],
            scripts=_scripts(texts),
        )

    @classmethod
    def join(cls, parts: Iterable[Features]) -> Features:
        """One after the other.  From an iterator the parts are taken, and freed, one by one."""
        nothing = cls.of([])
        columns = [column.copy() for column in nothing._columns()]
        scripts, n = nothing.scripts.copy(), 0
        for part in parts:
            columns = [
                _put(column, n, more) for column, more in zip(columns, part._columns(), strict=True)
            ]
            scripts += part.scripts
            n += len(part)
        return cls._from([column[:n] for column in columns], scripts)

    def __len__(self) -> int:
        return len(self.flags)

    def take(self, rows: NDArray[np.int64]) -> Features:
        """The features of some rows; `scripts` still counts all."""
        return self._from([column[rows] for column in self._columns()], self.scripts)

    def _columns(self) -> tuple[NDArray[np.generic], ...]:
        kept = self.signatures
        rest = (self.exact, self.flags, self.openings, self.closings)
        return (*rest, kept.bands, kept.sketch, kept.grams)

    @classmethod
    def _from(cls, columns: Sequence[NDArray[np.generic]], scripts: NDArray[np.int64]) -> Features:
        exact, flags, openings, closings, bands, sketch, grams = columns
        return cls(
            exact=exact.astype(np.uint64, copy=False),
            signatures=Signatures(
                bands=bands.astype(np.uint32, copy=False),
                sketch=sketch.astype(np.uint64, copy=False),
                grams=grams.astype(np.uint32, copy=False),
            ),
            flags=flags.astype(np.uint32, copy=False),
            openings=openings.astype(np.uint64, copy=False),
            closings=closings.astype(np.uint64, copy=False),
            scripts=scripts,
        )


def edges(answer: str) -> tuple[str, str]:
    """An answer's first sentence and its last one; empty where too short to say anything.

    A short first sentence takes the next along ("Sure! Here is what I found.").
    """
    start, end = answer.strip()[:_LOOKED_AT], answer.strip()[-_LOOKED_AT:]
    stops = (found.end() for found in _SENTENCE_END.finditer(start))
    opening = next((start[:stop] for stop in stops if _is_telling(start[:stop])), "")
    borders = [0, *(found.end() for found in _SENTENCE_END.finditer(end[:-1]))]
    closing = next((end[at:] for at in reversed(borders) if _is_telling(end[at:])), "")
    return opening.strip(), closing.strip() if closing.strip() != answer.strip() else ""


def _edges(answers: tuple[str, ...]) -> tuple[str, str]:
    return edges(answers[-1]) if answers else ("", "")


def _is_telling(sentence: str) -> bool:
    sentence = sentence.strip()
    if sentence.isascii() or len(sentence) >= _SHORTEST:
        return len(sentence) >= _SHORTEST
    points = characters.codes([sentence], gap="")
    return int((characters.scripts(points) < characters.CJK).sum()) >= _SHORTEST_CJK


def _nfkc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _hashes(texts: Sequence[str], *, words: int) -> NDArray[np.uint64]:
    """A hash [N, words] of each text, never 0; 0 for an empty one."""
    digests = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8 * words).digest()
        if text
        else bytes(8 * words)
        for text in texts
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(len(texts), words)


def _flags(contents: Sequence[Content], texts: Sequence[str]) -> NDArray[np.uint32]:
    """The flags of each row; `texts` are normalised, which garbled text would not survive."""
    flags = np.zeros(len(contents), dtype=np.uint32)
    for row, content in enumerate(contents):
        if any(len(answer) < 32 and len(answer.strip()) <= 1 for answer in content.answers):
            flags[row] |= SHORT_ANSWER
    found, digits = _bits([content.text for content in contents])
    flags[(found & characters.CONTROL) > 0] |= np.uint32(CONTROL)
    for row in np.flatnonzero(found & characters.ODD):
        flags[row] |= MOJIBAKE * hints.is_mojibake(contents[row].text)
    if not all(text.isascii() for text in texts):  # else nothing was normalised
        found, digits = _bits(texts)
    for row in np.flatnonzero(found & characters.AT):
        flags[row] |= EMAIL * hints.has_email(texts[row])
    for row in np.flatnonzero(digits >= _FEWEST_DIGITS):
        flags[row] |= PHONE * hints.has_phone(texts[row])
        flags[row] |= ID_NUMBER * hints.has_id_number(texts[row])
    return flags


def _bits(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Which bits any character of each text has, and how many digits it has."""
    if not texts:
        return np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
    bits = characters.bits(characters.codes(texts, gap="\n"))
    lengths = np.array([len(text) + 1 for text in texts])
    starts = np.cumsum(lengths) - lengths
    is_digit = (bits & characters.DIGIT) > 0
    ends = [*starts[1:].tolist(), len(bits)]
    digits = [np.count_nonzero(is_digit[a:b]) for a, b in zip(starts.tolist(), ends, strict=True)]
    return np.bitwise_or.reduceat(bits, starts), np.array(digits, dtype=np.int64)


def _scripts(texts: Sequence[str]) -> NDArray[np.int64]:
    found = characters.scripts(characters.codes(texts, gap=" "))
    return np.bincount(found, minlength=characters.UNCOUNTED + 1)[: characters.UNCOUNTED]


def _put(column: NDArray[np.generic], n: int, more: NDArray[np.generic]) -> NDArray[np.generic]:
    """The column with `more` from row `n` on; grows in place, where the system can remap it."""
    if len(column) < n + len(more):
        column.resize((n + len(more) + _STEP, *column.shape[1:]), refcheck=False)
    column[n : n + len(more)] = more
    return column
