"""Reads data files row by row into proved token rows; collects faults, drops and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

from fastsft.data import rows as files
from fastsft.data import split
from fastsft.data.encode import Encoded, encode_batch, prove
from fastsft.data.formats import Shape, detect, extra_keys, to_conversation
from fastsft.data.ledger import Entry
from fastsft.data.render import Rendered, TrainOn, render
from fastsft.data.rows import Row
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError

MAX_FAULTS = 20
CHUNK_ROWS = 256

Overlength = Literal["drop", "error"]
Progress = Callable[[int], None]
Ready = tuple[int, Row, Rendered]
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How rows become tokens; the same for training and evaluation rows."""

    tokenizer: ChatTokenizer
    max_tokens: int
    overlength: Overlength
    train_on: TrainOn
    system: str | None
    date: str | None


@dataclass(frozen=True, slots=True)
class Kept:
    """A row that became tokens; `index` counts the rows of its file from 0."""

    index: int
    file: str
    line: int
    fraction: float
    encoded: Encoded


class Reader:
    """Reads files with one set of settings; remembers what it dropped and noticed."""

    def __init__(self, settings: Settings, progress: Progress | None) -> None:
        self.settings = settings
        self.rows_in = 0
        self.dropped: list[Entry] = []
        self._progress = progress
        self._extra: Counter[str] = Counter()
        self._joined = 0
        self._shape: Shape | None = None

    def read(self, path: Path) -> list[Kept]:
        """Every row of the file that is short enough, in order."""
        kept: list[Kept] = []
        faults: list[DataError] = []
        lengths: list[int] = []
        self._shape = None
        for chunk in _chunks(enumerate(files.scan(path))):
            ready = list(self._rendered(chunk, faults))
            kept += self._encoded(ready, faults, lengths)
            if len(faults) >= MAX_FAULTS:
                break
            self.rows_in += len(chunk)
            if self._progress is not None:
                self._progress(self.rows_in)
        if faults:
            raise _together(faults)
        if not kept:
            raise _nothing_left(path, lengths, self.settings.max_tokens)
        return kept

    def notes(self) -> Iterator[str]:
        """Facts that no single row tells."""
        for key, count in sorted(self._extra.items()):
            yield f'the key "{key}" is not read; {count} rows have it'
        if self._joined:
            yield (
                f"{self._joined} rows have an answer that begins with white space; the tokenizer "
                "may join it to the template's, where generation would not: better trim them"
            )
        if self.settings.tokenizer.template.reads_clock and self.settings.date is None:
            yield "the chat template may write today's date; pin one to get the same tokens again"

    def _rendered(
        self, chunk: list[tuple[int, Row | DataError]], faults: list[DataError]
    ) -> Iterator[Ready]:
        """The rows of a chunk that are sound, each with its index."""
        for index, row in chunk:
            if isinstance(row, DataError):
                faults.append(row)
                continue
            try:
                yield index, row, self._render(row)
            except DataError as fault:
                faults.append(fault)

    def _render(self, row: Row) -> Rendered:
        s = self.settings
        shape = self._shape = self._shape or detect(row.value, where=row.where)
        conversation = to_conversation(row, shape)
        self._extra.update(extra_keys(row.value, shape))
        rendered = render(
            conversation, s.tokenizer, train_on=s.train_on, system=s.system, date=s.date
        )
        self._joined += rendered.begins_with_space
        return rendered

    def _encoded(
        self, good: list[Ready], faults: list[DataError], lengths: list[int]
    ) -> Iterator[Kept]:
        """Tokens of the rows that fit; what fails its proof joins the faults."""
        encoded_rows = encode_batch([item for _, _, item in good], self.settings.tokenizer)
        for (index, row, rendered), encoded in zip(good, encoded_rows, strict=True):
            lengths.append(len(encoded.input_ids))
            try:
                prove(encoded, rendered, self.settings.tokenizer)
                if self._fits(row, lengths[-1]):
                    fraction = split.fraction(row.value)
                    yield Kept(index, row.file, row.line, fraction, encoded)
            except DataError as fault:
                faults.append(fault)

    def _fits(self, row: Row, length: int) -> bool:
        limit = self.settings.max_tokens
        if length <= limit:
            return True
        if self.settings.overlength == "error":
            raise DataError(
                f"the row has {length} tokens, more than max_tokens = {limit}",
                where=row.where,
                hint=f"raise max_tokens to {length}, shorten the row, or drop over-long rows",
            )
        detail = f"{length} tokens, max_tokens is {limit}"
        self.dropped.append(Entry(row.file, row.line, "overlength", detail))
        return False


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    source = iter(items)
    while chunk := list(islice(source, CHUNK_ROWS)):
        yield chunk


def _together(faults: list[DataError]) -> DataError:
    """One error for all: the first one's place, a line for each other, every cure once."""
    first, *others = sorted(faults[:MAX_FAULTS], key=_line)
    lines = [first.what, *dict.fromkeys(f"{fault.where}: {fault.what}" for fault in others)]
    if len(faults) >= MAX_FAULTS:
        lines.append(f"stopped after {MAX_FAULTS} faulty rows; there may be more")
    hints = dict.fromkeys(fault.hint for fault in (first, *others))
    return DataError("\n".join(lines), where=first.where, hint="\n  hint: ".join(hints))


def _line(fault: DataError) -> int:
    line = (fault.where or "").rpartition(":")[2]
    return int(line) if line.isdigit() else 0


def _nothing_left(path: Path, lengths: list[int], max_tokens: int) -> DataError:
    ordered = sorted(lengths)
    return DataError(
        f"every row is longer than max_tokens = {max_tokens}: "
        f"the shortest has {ordered[0]} tokens, the longest {ordered[-1]}",
        where=path.name,
        hint=f"set max_tokens to {ordered[-1]} to keep all rows, "
        f"to {ordered[len(ordered) // 2]} to keep half of them",
    )
