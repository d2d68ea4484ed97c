"""Collects what the stage makes of every batch: one table of rows, one of token rows."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastsft.data.arrays import Index, Writer
from fastsft.data.features import Features
from fastsft.data.ledger import Entry
from fastsft.data.report import Fault
from fastsft.data.stage import Chunk

Column = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """U kept rows of all sources, and the P token rows made of them, in order."""

    sources: Column  # [U]
    files: Column  # [U], places in `Gathered.files`
    lines: Column  # [U]
    features: Features  # [U]
    owners: Column  # [P], the row that a token row is of; rising
    pieces: Index  # [P]

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def trained_tokens(self) -> Column:
        """Trained tokens of each row [U]."""
        weights = self.pieces.trained_lengths
        return np.bincount(self.owners, weights, minlength=len(self)).astype(np.int64)

    def pieces_of(self, rows: Column) -> Column:
        """The token rows of these rows, in this order; a row may be named more than once."""
        first = np.searchsorted(self.owners, rows, side="left")
        counts = np.searchsorted(self.owners, rows, side="right") - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places: Column = np.repeat(first, counts) + within
        return places


@dataclass
class Gathered:
    """Everything that was read so far; the tokens themselves are on the disk."""

    writer: Writer
    files: list[str] = field(default_factory=list)
    rows_in: Counter[int] = field(default_factory=Counter)  # by source
    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    bad: list[Entry] = field(default_factory=list)
    overlong: list[int] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    joined: int = 0
    unstopped: int = 0
    _columns: list[tuple[Column, ...]] = field(default_factory=list)
    _features: deque[Features] = field(default_factory=deque)
    _rows: int = 0

    def file(self, name: str) -> int:
        """Begin a file; its number."""
        self.files.append(name)
        return len(self.files) - 1

    def add(self, source: int, file: int, chunk: Chunk) -> None:
        """Take in what became of one batch of a file."""
        name = self.files[file]
        self.rows_in[source] += chunk.rows_in
        for remarks, is_used in ((chunk.dropped, False), (chunk.changed, True)):
            self.entries += [Entry(name, r.line, r.reason, r.detail, is_used) for r in remarks]
        self.faults += chunk.faults
        self.bad += [Entry(name, _line(fault), fault.reason, fault.what) for fault in chunk.faults]
        self.overlong += chunk.overlong
        self.unread += chunk.unread
        self.joined += chunk.joined
        self.unstopped += chunk.unstopped
        count = len(chunk.lines)
        if not count:
            return
        self.writer.append(chunk.input_ids, chunk.trained)
        where = np.full(count, source), np.full(count, file), chunk.lines
        pieces = chunk.owners + self._rows, chunk.lengths, chunk.trained_lengths
        self._columns.append((*where, *pieces))
        self._features.append(chunk.features)
        self._rows += count

    def finish(self) -> Rows:
        """The tables as they stand at the end."""
        empty = (np.zeros(0, dtype=np.int64),) * 6
        columns = list(zip(empty, *self._columns, strict=True))
        sources, files, lines, owners, lengths, trained = map(np.concatenate, columns)
        return Rows(
            sources=sources,
            files=files,
            lines=lines,
            features=Features.join(self._features.popleft() for _ in range(len(self._features))),
            owners=owners,
            pieces=Index.of(lengths, owners, trained),
        )

    def places(self, rows: Rows, chosen: Column) -> Iterator[tuple[str, int]]:
        """File and line of each of these rows."""
        for number in chosen.tolist():
            yield self.files[int(rows.files[number])], int(rows.lines[number])


def _line(fault: Fault) -> int:
    line = fault.where.rpartition(":")[2]
    return int(line) if line.isdigit() else 0
