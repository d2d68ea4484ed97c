"""Turns one batch of a file into proved token rows and what was noticed on the way.

Runs in worker processes too: everything that goes in or comes out can be pickled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastsft.data import formats, overlength
from fastsft.data.content import content_of
from fastsft.data.conversation import Conversation
from fastsft.data.documents import DocumentEncoder
from fastsft.data.encode import Encoded, encode_batch, prove_batch
from fastsft.data.features import Content, Features
from fastsft.data.formats import Shape
from fastsft.data.overlength import Overlength
from fastsft.data.render import Rendered, Renderer, TrainOn
from fastsft.data.report import Fault
from fastsft.data.rows import Batch, Row, parse
from fastsft.data.tokenizer import ChatTokenizer, Origin
from fastsft.errors import BadRow

Method = Literal["sft", "pretrain"]


@dataclass(frozen=True)
class Settings:
    """How rows become tokens; the same for every source."""

    origin: Origin
    method: Method
    max_tokens: int
    overlength: Overlength
    train_on: TrainOn
    system: str | None
    date: str | None


@dataclass(frozen=True)
class Task:
    """One batch, and what is known of the file that it is of."""

    batch: Batch
    shape: Shape
    columns: Mapping[str, str]
    is_one_document: bool  # the whole file is one text; its first line begins it


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about one row for the ledger."""

    line: int
    reason: str
    detail: str


@dataclass
class Chunk:
    """What became of one batch: U rows that are kept, P token rows made of them."""

    rows_in: int = 0
    lines: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # [U]
    features: Features = field(default_factory=lambda: Features.of([]))  # [U]
    input_ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    trained: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # [P]
    owners: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # [P], of U
    trained_lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    unstopped: int = 0  # token rows with a trained turn that lacks its stop token
    dropped: list[Remark] = field(default_factory=list)
    changed: list[Remark] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    overlong: list[int] = field(default_factory=list)  # tokens of rows over the limit
    unread: Counter[str] = field(default_factory=Counter)  # keys that nothing reads
    joined: int = 0  # rows with an answer that begins with white space


@dataclass(frozen=True)
class _Unit:
    """A source row and the token rows that it became."""

    line: int
    content: Content
    pieces: Sequence[Encoded]


@dataclass(frozen=True)
class _Ready:
    """A source row, rendered, as one or more conversations."""

    row: Row
    content: Content
    rendered: Sequence[Rendered]
    encoded: Sequence[Encoded]


class Stage:
    """Reads, renders, encodes and proves batches with one set of settings."""

    def __init__(self, settings: Settings, tokenizer: ChatTokenizer | None = None) -> None:
        self.settings = settings
        self.tokenizer = tokenizer or settings.origin.load()
        self._renderer = Renderer(
            self.tokenizer,
            train_on=settings.train_on,
            system=settings.system,
            date=settings.date,
        )
        self._documents = DocumentEncoder(self.tokenizer, settings.max_tokens)
        self._stop_ids = np.array(self.tokenizer.stop_ids)

    def __call__(self, task: Task) -> Chunk:
        """Everything that the batch holds, or says."""
        chunk = Chunk()
        make = self._documented if self.settings.method == "pretrain" else self._conversed
        units = make(list(self._rows(task, chunk)), task, chunk)
        self._fill(chunk, units)
        return chunk

    def _rows(self, task: Task, chunk: Chunk) -> Iterable[Row]:
        for item in parse(task.batch):
            chunk.rows_in += 1
            if isinstance(item, BadRow):
                _note_fault(chunk, item)
                continue
            try:
                yield formats.rename(item, task.columns) if task.columns else item
            except BadRow as fault:
                _note_fault(chunk, fault)

    def _documented(self, rows: list[Row], task: Task, chunk: Chunk) -> list[_Unit]:
        units = []
        for row in rows:
            try:
                document = formats.to_document(row, task.shape)
                if not task.is_one_document:
                    document = replace(document, continues=False)
                is_first = not task.is_one_document or row.line == 1
                pieces = self._documents(document, is_first=is_first)
            except BadRow as fault:
                _note_fault(chunk, fault)
                continue
            chunk.unread.update(formats.extra_keys(row.value, task.shape))
            units.append(_Unit(row.line, content_of(document), pieces))
        return units

    def _conversed(self, rows: list[Row], task: Task, chunk: Chunk) -> list[_Unit]:
        read = list(self._rendered(rows, task, chunk))
        encoded = encode_batch([rendered for *_, rendered in read], self.tokenizer)
        ready = [
            made
            for (row, conversation, rendered), tokens in zip(read, encoded, strict=True)
            if (made := self._fitted(row, conversation, rendered, tokens, chunk)) is not None
        ]
        pairs = [pair for r in ready for pair in zip(r.encoded, r.rendered, strict=True)]
        proofs = iter(prove_batch(pairs, self.tokenizer))
        units = []
        for made in ready:
            faults = [fault for _ in made.encoded if (fault := next(proofs)) is not None]
            if faults:
                _note_fault(chunk, faults[0])
                continue
            chunk.joined += any(rendered.begins_with_space for rendered in made.rendered)
            units.append(_Unit(made.row.line, made.content, made.encoded))
        return units

    def _rendered(
        self, rows: list[Row], task: Task, chunk: Chunk
    ) -> Iterable[tuple[Row, Conversation, Rendered]]:
        for row in rows:
            try:
                conversation = formats.to_conversation(row, task.shape)
                rendered = self._renderer(conversation)
            except BadRow as fault:
                _note_fault(chunk, fault)
                continue
            chunk.unread.update(formats.extra_keys(row.value, task.shape))
            yield row, conversation, rendered

    def _fitted(
        self,
        row: Row,
        conversation: Conversation,
        rendered: Rendered,
        tokens: Encoded,
        chunk: Chunk,
    ) -> _Ready | None:
        """The row as it is trained: as it stands where it is short enough."""
        content, length = content_of(conversation), len(tokens.input_ids)
        if length <= self.settings.max_tokens:
            return _Ready(row, content, [rendered], [tokens])
        chunk.overlong.append(length)
        limit = f"{length} tokens, max_tokens is {self.settings.max_tokens}"
        if self.settings.overlength == "error":
            _note_fault(chunk, self._too_long(row, length))
            return None
        fitted = self._cut(conversation)
        if fitted is None:
            chunk.dropped.append(Remark(row.line, "overlength", limit))
            return None
        pieces = [self._renderer(piece) for piece in fitted.pieces]
        pieces = [piece for piece in pieces if piece.spans]
        reason = "split" if self.settings.overlength == "split_turns" else "truncated"
        chunk.changed.append(Remark(row.line, reason, f"{limit}: {fitted.detail}"))
        return _Ready(row, content, pieces, encode_batch(pieces, self.tokenizer))

    def _cut(self, conversation: Conversation) -> overlength.Fitted | None:
        limit, how = self.settings.max_tokens, self.settings.overlength
        conversation = self._renderer.weighted(conversation)
        if how == "truncate_prompt":
            return overlength.truncate_prompt(conversation, limit, self._measure, self.tokenizer)
        if how == "split_turns":
            return overlength.split_turns(conversation, limit, self._measure)
        return None

    def _measure(self, conversation: Conversation) -> int:
        (tokens,) = self.tokenizer.encode_batch([self._renderer(conversation).text])
        return len(tokens.ids)

    def _too_long(self, row: Row, length: int) -> BadRow:
        limit = self.settings.max_tokens
        return BadRow(
            f"the row has {length} tokens, more than max_tokens = {limit}",
            reason="overlength",
            where=row.where,
            hint=f"raise max_tokens to {length}, shorten the row, or drop over-long rows",
        )

    def _fill(self, chunk: Chunk, units: Sequence[_Unit]) -> None:
        """The units' arrays, one after the other."""
        pieces = [piece for unit in units for piece in unit.pieces]
        if not pieces:
            return
        chunk.lines = np.array([unit.line for unit in units], dtype=np.int64)
        chunk.features = Features.of([unit.content for unit in units])
        chunk.input_ids = np.concatenate([piece.input_ids for piece in pieces])
        chunk.trained = np.concatenate([piece.trained for piece in pieces])
        chunk.lengths = np.array([len(piece.input_ids) for piece in pieces], dtype=np.int64)
        counts = [len(unit.pieces) for unit in units]
        chunk.owners = np.repeat(np.arange(len(units)), counts)
        starts = np.cumsum(chunk.lengths) - chunk.lengths
        chunk.trained_lengths = np.add.reduceat(chunk.trained, starts, dtype=np.int64)
        if self.settings.method == "sft":
            chunk.unstopped = self._unstopped(chunk, starts)

    def _unstopped(self, chunk: Chunk, starts: NDArray[np.int64]) -> int:
        """Token rows in which a trained turn does not end in a stop token, from the arrays."""
        is_stop = np.isin(chunk.input_ids, self._stop_ids) & chunk.trained
        if self.settings.train_on == "all":
            return int((np.add.reduceat(is_stop, starts, dtype=np.int64) == 0).sum())
        following = np.append(chunk.trained[1:], False)
        following[starts[1:] - 1] = False  # the next row's first token follows nothing
        ends = chunk.trained & ~following
        return int(np.logical_or.reduceat(ends & ~is_stop, starts).sum())


def _note_fault(chunk: Chunk, fault: BadRow) -> None:
    chunk.faults.append(Fault(fault.where or "", fault.reason, fault.what, fault.hint))
