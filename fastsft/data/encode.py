"""Turns rendered text into token ids and labels, and proves the labels.  Pure: no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsft.data.render import Rendered, Span
from fastsft.data.tokenizer import ChatTokenizer, Offsets
from fastsft.errors import DataError

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
    encodings = tokenizer.encode_batch([row.text for row in rows])
    return [
        Encoded(ids, np.where(_mask(offsets, row.spans), ids, np.int32(UNTRAINED)))
        for row, (ids, offsets) in zip(rows, encodings, strict=True)
    ]


def _mask(offsets: Offsets, spans: Sequence[Span]) -> NDArray[np.bool_]:
    trained = np.zeros(len(offsets), dtype=np.bool_)
    for span in spans:
        trained |= (offsets[:, 1] > span.start) & (offsets[:, 0] < span.end)
    return trained


def prove(encoded: Encoded, rendered: Rendered, tokenizer: ChatTokenizer) -> None:
    """Returns if the arrays train exactly the spans, judged from ids and labels alone.

    Every run of trained tokens decodes to its span: the answer as the template left it and
    its stop token, and nothing but white space of the template joined to its first token.
    Every run of other tokens decodes to the text between the spans.
    The stop token is the only one in a run, and its last.  BOS stands once and first where
    the family has one.  No pad id is trained.  Something is trained.

    Raises `DataError` with the row's place otherwise.
    """
    ids, trained = encoded.input_ids, encoded.trained
    where = rendered.where
    if not trained.any():
        raise _unproved("no token is trained", where)
    if not np.array_equal(encoded.labels[trained], ids[trained]):
        raise _unproved("labels differ from the ids that they stand for", where)
    if (encoded.labels == tokenizer.pad_id).any():
        raise _unproved(f"the pad token {tokenizer.pad_token} is trained", where)
    _prove_bos(encoded, tokenizer, where)
    _prove_text(encoded, rendered, tokenizer)


def _prove_text(encoded: Encoded, rendered: Rendered, tokenizer: ChatTokenizer) -> None:
    """Walks the tokens, run by run, along the text, span by span; nothing may be left over."""
    ids, text = encoded.input_ids, rendered.text
    runs = list(_runs(encoded.trained))
    if len(runs) != len(rendered.spans):
        raise _unproved(
            f"{len(runs)} trained runs for {len(rendered.spans)} answers", rendered.where
        )
    token, char = 0, 0
    for (start, end), span in zip(runs, rendered.spans, strict=True):
        joined = _prove_run(ids[start:end], span, rendered, tokenizer)
        _prove_untrained(ids[token:start], text[char : span.start - joined], rendered, tokenizer)
        token, char = end, span.end
    _prove_untrained(ids[token:], text[char:], rendered, tokenizer)


def _prove_untrained(
    ids: NDArray[np.int32], expected: str, rendered: Rendered, tokenizer: ChatTokenizer
) -> None:
    if tokenizer.decode(ids) != tokenizer.stored(expected):
        raise _unproved(
            f"untrained tokens do not read {expected[-80:]!r} before or after an answer",
            rendered.where,
        )


def _prove_bos(encoded: Encoded, tokenizer: ChatTokenizer, where: str) -> None:
    if tokenizer.bos_id is None:
        return
    places = np.flatnonzero(encoded.input_ids == tokenizer.bos_id)
    if places.tolist() != [0]:
        raise _unproved(
            f"{tokenizer.bos_token} must stand once, at position 0; it stands at "
            f"{places.tolist()[:4] or 'none'}",
            where,
        )
    if encoded.trained[0]:
        raise _unproved(f"{tokenizer.bos_token} is trained", where)


def _runs(trained: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """[start, end) of every stretch of trained positions."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], trained, [False]))))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _prove_run(
    ids: NDArray[np.int32], span: Span, rendered: Rendered, tokenizer: ChatTokenizer
) -> int:
    """Returns how many characters of the template's white space the first token holds."""
    where = rendered.where
    expected = tokenizer.stored(rendered.text[span.start : span.end])
    decoded = tokenizer.decode(ids)
    if not decoded.endswith(expected):
        raise _unproved(f"trained tokens read {decoded[-80:]!r}, not {expected[-80:]!r}", where)
    joined = decoded[: len(decoded) - len(expected)]
    if joined.strip() or not rendered.text[: span.start].endswith(joined):
        raise _unproved(f"the template's text {joined!r} is trained", where)
    if joined and tokenizer.decode(ids[1:]).endswith(expected):
        raise _unproved("a token of the template alone is trained", where)
    if rendered.train_on != "all":
        stops = np.flatnonzero(np.isin(ids, tokenizer.stop_ids)).tolist()
        if stops != [len(ids) - 1]:
            raise _unproved("a trained turn must hold one stop token, its last", where)
    return len(joined)


def _unproved(what: str, where: str) -> DataError:
    return DataError(
        f"the training mask cannot be proved: {what}",
        where=where,
        hint="remove the row; if many rows fail, check the model folder's tokenizer and template",
    )
