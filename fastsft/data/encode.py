"""Turns rendered text into token ids and labels, and proves the labels.  Pure: no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastsft.data.render import Rendered, Span
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import BadRow

UNTRAINED = -100
"""The label that the loss skips.  Source: torch.nn.functional.cross_entropy, ignore_index."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row for training; `labels` is `input_ids` where trained and -100 elsewhere."""

    input_ids: NDArray[np.int32]  # [T]
    labels: NDArray[np.int32]  # [T]

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Which positions are trained [T]."""
        trained: NDArray[np.bool_] = self.labels != UNTRAINED
        return trained


def encode(rendered: Rendered, tokenizer: ChatTokenizer) -> Encoded:
    """Ids and labels of one rendered conversation; see `encode_batch`."""
    return encode_batch([rendered], tokenizer)[0]


def encode_batch(rows: Sequence[Rendered], tokenizer: ChatTokenizer) -> list[Encoded]:
    """Ids and labels of each row, tokenized once and whole, nothing added.

    A token is trained when it shares a character with a trained span.  So one that joins the
    template's white space with the answer's first characters belongs to the answer.
    """
    made = []
    for row, tokens in zip(rows, tokenizer.encode_batch([row.text for row in rows]), strict=True):
        ids = np.array(tokens.ids, dtype=np.int32)
        labels = np.full(len(ids), UNTRAINED, dtype=np.int32)
        for span in row.spans:
            first, last = tokens.at(span.start, span.end)
            labels[first:last] = ids[first:last]
        made.append(Encoded(ids, labels))
    return made


def prove(encoded: Encoded, rendered: Rendered, tokenizer: ChatTokenizer) -> None:
    """Returns if the arrays train exactly the spans; raises what `prove_batch` says otherwise."""
    (fault,) = prove_batch([(encoded, rendered)], tokenizer)
    if fault is not None:
        raise fault


def prove_batch(
    rows: Sequence[tuple[Encoded, Rendered]], tokenizer: ChatTokenizer
) -> list[BadRow | None]:
    """For each row None if its arrays train exactly its spans, judged from ids and labels alone.

    Every run of trained tokens decodes to its span: the answer as the template left it and
    its stop token, and nothing but white space of the template joined to its first token.
    Every run of other tokens decodes to the text between the spans.
    The stop token is the only one in a run, and its last.  BOS stands once and first where
    the family has one.  No pad id is trained.
    """
    proofs = [_Proof(encoded, rendered, tokenizer) for encoded, rendered in rows]
    pieces = [piece for proof in proofs for piece in proof.pieces]
    texts = iter(tokenizer.decode_batch(pieces))
    return [proof.fault([next(texts) for _ in proof.pieces]) for proof in proofs]


class _Proof:
    """One row's ids cut into runs, untrained and trained in turn, to be held against its text."""

    def __init__(self, encoded: Encoded, rendered: Rendered, tokenizer: ChatTokenizer) -> None:
        self.encoded, self.rendered, self.tokenizer = encoded, rendered, tokenizer
        self.trained = encoded.trained
        self.runs = _runs(self.trained)
        edges = [0, *(edge for run in self.runs for edge in run), len(encoded.input_ids)]
        ids = encoded.input_ids.tolist()
        self.pieces = [ids[start:end] for start, end in pairwise(edges)]

    def fault(self, texts: Sequence[str]) -> BadRow | None:
        """What is wrong, given the decoded text of each piece."""
        try:
            self._check_ids()
            self._check_text(texts)
        except BadRow as fault:
            return fault
        return None

    def _check_ids(self) -> None:
        ids, trained = self.encoded.input_ids, self.trained
        if not np.array_equal(self.encoded.labels[trained], ids[trained]):
            raise self._unproved("labels differ from the ids that they stand for")
        if (self.encoded.labels == self.tokenizer.pad_id).any():
            raise self._unproved(f"the pad token {self.tokenizer.pad_token} is trained")
        bos = self.tokenizer.bos_id
        if bos is None:
            return
        places = np.flatnonzero(ids == bos).tolist()
        if places != [0]:
            raise self._unproved(
                f"{self.tokenizer.bos_token} must stand once, at position 0; it stands at "
                f"{places[:4] or 'none'}"
            )
        if trained[0]:
            raise self._unproved(f"{self.tokenizer.bos_token} is trained")

    def _check_text(self, texts: Sequence[str]) -> None:
        """Walks the runs along the text, span by span; nothing may be left over."""
        text, spans = self.rendered.text, self.rendered.spans
        if len(self.runs) != len(spans):
            what = f"{len(self.runs)} trained runs for {len(spans)} answers"
            raise self._unproved(what if self.runs else "no token is trained")
        char = 0
        for number, span in enumerate(spans):
            joined = self._check_run(2 * number + 1, span, texts[2 * number + 1])
            self._check_untrained(texts[2 * number], text[char : span.start - joined])
            char = span.end
        self._check_untrained(texts[-1], text[char:])

    def _check_untrained(self, decoded: str, expected: str) -> None:
        if decoded != expected and decoded != self.tokenizer.stored(expected):
            raise self._unproved(
                f"untrained tokens do not read {expected[-80:]!r} before or after an answer"
            )

    def _check_run(self, piece: int, span: Span, decoded: str) -> int:
        """Returns how many characters of the template's white space the first token holds."""
        ids, text = self.pieces[piece], self.rendered.text
        expected = text[span.start : span.end]
        if decoded != expected:
            expected = self.tokenizer.stored(expected)
        if not decoded.endswith(expected):
            raise self._unproved(f"trained tokens read {decoded[-80:]!r}, not {expected[-80:]!r}")
        joined = decoded[: len(decoded) - len(expected)]
        if joined.strip() or not text[: span.start].endswith(joined):
            raise self._unproved(f"the template's text {joined!r} is trained")
        if joined and self.tokenizer.decode(ids[1:]).endswith(expected):
            raise self._unproved("a token of the template alone is trained")
        if self.rendered.train_on != "all":
            count = sum(map(ids.count, self.tokenizer.stop_ids))
            if count != 1 or ids[-1] not in self.tokenizer.stop_ids:
                raise self._unproved("a trained turn must hold one stop token, its last")
        return len(joined)

    def _unproved(self, what: str) -> BadRow:
        return BadRow(
            f"the training mask cannot be proved: {what}",
            reason="unproved",
            where=self.rendered.where,
            hint="remove the row; if many rows fail, check the model folder's tokenizer and "
            "template",
        )


def _runs(trained: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[start, end) of every stretch of trained positions."""
    edges = (np.flatnonzero(trained[1:] != trained[:-1]) + 1).tolist()
    if len(trained) and trained[0]:
        edges.insert(0, 0)
    if len(trained) and trained[-1]:
        edges.append(len(trained))
    return list(zip(edges[::2], edges[1::2], strict=True))
