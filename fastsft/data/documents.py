"""Turns raw text into token ids, every token trained, cut into pieces of which none is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsft.data.conversation import Document
from fastsft.data.encode import UNTRAINED, Encoded
from fastsft.data.templates import NamedTemplate
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import BadRow

PLAIN = NamedTemplate(
    "plain text", "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", None
)
"""For a base without a chat template that goes on reading raw text: no roles, no markers."""


@dataclass(frozen=True)
class DocumentEncoder:
    """Ids of documents: BOS where the family has one, the text, and the end-of-text token.

    A long text comes in pieces: BOS stands before the first, the end-of-text token after the
    last.
    """

    tokenizer: ChatTokenizer
    max_tokens: int

    def __call__(self, document: Document, *, is_first: bool) -> list[Encoded]:
        """The document in rows of at most `max_tokens`, one after the other.

        Raises `BadRow` for an empty text, one with a control token written out, and one that
        its tokens do not read back.
        """
        self._refuse(document)
        (tokens,) = self.tokenizer.encode_batch([document.text])
        self._prove(tokens.ids, document)
        bos = [self.tokenizer.bos_id] if is_first and self.tokenizer.bos_id is not None else []
        end = [] if document.continues else [self._end_id()]
        ids = np.array([*bos, *tokens.ids, *end], dtype=np.int32)
        return [_row(piece) for piece in self._pieces(ids)]

    def _pieces(self, ids: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
        """Full rows and a rest; a rest of one token, which could teach nothing, gets a second."""
        start = 0
        while start < len(ids):
            left = len(ids) - start
            size = self.max_tokens - (left == self.max_tokens + 1)
            yield ids[start : start + size]
            start += size

    def _end_id(self) -> int:
        token = self.tokenizer.family.end_of_text
        return self.tokenizer.require_id(token, "end-of-text token")

    def _refuse(self, document: Document) -> None:
        if not document.text.strip() and not document.continues:
            raise BadRow(
                "the text is empty",
                reason="empty_text",
                where=document.where,
                hint="write its text, or remove the row",
            )
        t = self.tokenizer
        controls = {*t.stop_tokens, t.pad_token, t.bos_token, t.family.end_of_text} - {None}
        pattern = "|".join(re.escape(str(token)) for token in sorted(controls, key=str))
        found = re.search(pattern, document.text)
        if found is not None:
            raise BadRow(
                f"the text contains {found.group()}, which the tokenizer reads as a control token",
                reason="control_token",
                where=document.where,
                hint="remove it: fastsft ends each document itself; one document a row",
            )

    def _prove(self, ids: list[int], document: Document) -> None:
        decoded = self.tokenizer.decode(ids)
        if decoded not in (document.text, self.tokenizer.stored(document.text)):
            raise BadRow(
                "the tokens do not read back as the text",
                reason="unproved",
                where=document.where,
                hint="remove the row; if many fail, check the model folder's tokenizer",
            )


def _row(ids: NDArray[np.int32]) -> Encoded:
    """All trained but the first token, which has nothing before it to be predicted from."""
    labels = ids.copy()
    labels[0] = UNTRAINED
    return Encoded(ids, labels)
