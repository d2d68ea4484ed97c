"""From a data file to labelled token rows, every row accounted for.  Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastsft.data import show, split
from fastsft.data.arrays import TokenRows
from fastsft.data.ledger import Entry, Ledger
from fastsft.data.reader import Kept, Overlength, Progress, Reader, Settings
from fastsft.data.render import TrainOn
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError

SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One training row to look at: its place, and its text as (text, is it trained)."""

    where: str
    segments: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs to know about its data."""

    train: TokenRows
    eval: TokenRows
    ledger: Ledger
    samples: tuple[Sample, ...]

    @property
    def train_tokens(self) -> int:
        """Tokens of all training rows."""
        return self.train.tokens

    @property
    def trained_tokens(self) -> int:
        """Tokens of the training rows that the loss sees."""
        return self.train.trained_tokens


def prepare(
    path: Path,
    tokenizer: ChatTokenizer,
    *,
    max_tokens: int,
    overlength: Overlength = "drop",
    train_on: TrainOn = "assistant",
    system: str | None = None,
    date: str | None = None,
    eval_path: Path | None = None,
    eval_share: float = 0.0,
    progress: Progress | None = None,
) -> Prepared:
    """The rows of `path` as token arrays, each one's mask proved.

    Evaluation rows are those of `eval_path`, or a stable `eval_share` (0 to 1) of `path`.
    Rows over `max_tokens` are dropped and counted, or an error.  `progress` gets the number
    of rows done.

    Raises `DataError` naming up to 20 faulty rows together, for a file of which nothing is
    left, and for an evaluation that is asked for in two ways.
    """
    _check_request(max_tokens, eval_path, eval_share)
    settings = Settings(tokenizer, max_tokens, overlength, train_on, system, date)
    reader = Reader(settings, progress)
    kept = reader.read(path)
    if eval_path is not None:
        train, evaluation = kept, reader.read(eval_path)
    else:
        sides = split.evaluated([row.fraction for row in kept], eval_share)
        train = [row for row, is_eval in zip(kept, sides, strict=True) if not is_eval]
        evaluation = [row for row, is_eval in zip(kept, sides, strict=True) if is_eval]
    notes = (*reader.notes(), *_overlap(train, evaluation))
    entries = (*reader.dropped, *(Entry(r.file, r.line, "evaluation") for r in evaluation))
    return Prepared(
        train=_arrays(train),
        eval=_arrays(evaluation),
        ledger=Ledger(reader.rows_in, len(train), entries, notes),
        samples=tuple(_sample(row, tokenizer) for row in train[:SAMPLES]),
    )


def _check_request(max_tokens: int, eval_path: Path | None, eval_share: float) -> None:
    if eval_path is not None and eval_share:
        raise DataError(
            f"evaluation rows are asked for twice: {eval_path} and a share of {eval_share}",
            hint="keep one of the two",
        )
    if not 0 <= eval_share < 1:
        raise DataError(
            f"an evaluation share of {eval_share} leaves nothing to train on",
            hint="give a share from 0 up to, not including, 1",
        )
    if max_tokens < 1:
        raise DataError(f"max_tokens is {max_tokens}", hint="give at least 1, say 2048")


def _overlap(train: list[Kept], evaluation: list[Kept]) -> Iterator[str]:
    trained = {row.fraction for row in train}
    count = sum(row.fraction in trained for row in evaluation)
    if count:
        yield f"{count} evaluation rows are also trained on, so their loss flatters"


def _arrays(kept: list[Kept]) -> TokenRows:
    return TokenRows.of((row.index, row.encoded) for row in kept)


def _sample(row: Kept, tokenizer: ChatTokenizer) -> Sample:
    parts = show.segments(row.encoded.input_ids, row.encoded.labels, tokenizer)
    return Sample(f"{row.file}:{row.line}", tuple(parts))
