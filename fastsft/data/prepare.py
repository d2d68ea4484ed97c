"""From sources to labelled token rows, every row accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from fastsft.data import arrays, checks, files, hub, mixture, pool, split, summary
from fastsft.data.arrays import TokenRows, Writer
from fastsft.data.checks import Finding
from fastsft.data.formats import Shape, detect
from fastsft.data.gather import Column, Gathered, Rows
from fastsft.data.ledger import EVALUATION, Entry, Ledger
from fastsft.data.report import Report
from fastsft.data.rows import Batch, DataFile, Row, parse
from fastsft.data.sources import Part, parts
from fastsft.data.stage import Settings, Task
from fastsft.data.together import MAX_FAULTS, together
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import BadRow, DataError
from fastsft.recipe import Recipe, Source

TOKENS = "tokens.safetensors"

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs to know about its data; `folder` holds its files."""

    folder: Path
    train: TokenRows
    eval: TokenRows
    ledger: Ledger
    report: Report

    def require(self) -> None:
        """Return if the data can be trained on.

        Raises `DataError` naming up to 20 faulty rows together, or why nothing is left.
        """
        if self.report.faults and self.report.bad_rows == "error":
            raise together(self.report.faults[:MAX_FAULTS], self._faulty)
        if self.report.refused:
            what, _, hint = self.report.refused[0].partition("; ")
            raise DataError(what, where="data", hint=hint or "`fastsft check` shows all of it")

    @property
    def _faulty(self) -> int:
        """Rows that cannot be trained on; the report tells the first of them only."""
        kinds = {fault.reason for fault in self.report.faults}
        return max(
            len(self.report.faults),
            sum(count for reason, count in self.ledger.dropped.items() if reason in kinds),
        )


def prepare(
    recipe: Recipe,
    tokenizer: ChatTokenizer,
    *,
    folder: Path,
    progress: Progress | None = None,
    workers: int | None = None,
    max_faults: int | None = None,
) -> Prepared:
    """The recipe's rows as token arrays in `folder`, each one's mask proved.

    Reading ends early at `max_faults` bad rows where the recipe does not skip them.  `progress`
    gets the number of rows done.  `workers` is the number of processes, None for as many as
    the size of the data deserves.

    Raises `DataError` for files that cannot be read; what is wrong with rows is in the report,
    and `Prepared.require` raises it.
    """
    began = time.monotonic()
    job = _Job(recipe, tokenizer, parts(recipe), folder, progress)
    try:
        return job.run(workers, max_faults, began)
    except OSError as error:
        raise DataError(
            f"the prepared rows cannot be written: {error.strerror or error}",
            where=str(folder),
            hint="free some space, or set XDG_CACHE_HOME to a folder on another disk",
        ) from error
    finally:
        job.gathered.writer.close()


class _Job:
    """One preparation, from the first file to the report."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: ChatTokenizer,
        sources: list[Part],
        folder: Path,
        progress: Progress | None,
    ) -> None:
        self.recipe, self.tokenizer, self.parts = recipe, tokenizer, sources
        self.folder, self.progress = folder, progress
        self.gathered = Gathered(Writer(folder / TOKENS))
        self.shapes: list[list[str]] = [[] for _ in sources]
        self.notes: list[str] = []
        self._names: set[str] = set()

    def run(self, workers: int | None, max_faults: int | None, began: float) -> Prepared:
        found = [self._files(part) for part in self.parts]
        if workers is None:
            workers = pool.workers_for(sum(f.path.stat().st_size for f in chain(*found) if f.path))
        with pool.stages(self._settings(), self.tokenizer, workers) as stage:
            for number, (part, part_files) in enumerate(zip(self.parts, found, strict=True)):
                for file in part_files:
                    self._read(number, part, file, stage, max_faults)
        rows = self.gathered.finish()
        return self._decide(rows, found, began)

    def _settings(self) -> Settings:
        data = self.recipe.data
        return Settings(
            origin=self.tokenizer.origin,
            method=self.recipe.method,
            max_tokens=data.max_tokens,
            overlength=data.overlength,
            train_on=data.train_on,
            system=data.system,
            date=data.date,
        )

    def _files(self, part: Part) -> list[DataFile]:
        source = part.source
        if hub.is_dataset_id(source.path):
            return [hub.data_file(source.path, source.config, source.split, source.revision)]
        return [self._named_once(file) for file in self._found(source)]

    def _named_once(self, file: DataFile) -> DataFile:
        """The file, named in full where another source has one of the same name."""
        if file.name in self._names:
            file = replace(file, name=str(file.path))
        self._names.add(file.name)
        return file

    def _found(self, source: Source) -> tuple[DataFile, ...]:
        found = files.find(source.path)
        if found.ignored:
            names = ", ".join(found.ignored[:5])
            self.notes.append(f"{len(found.ignored)} files are of no known kind: {names}")
        return found.files

    def _read(
        self, number: int, part: Part, file: DataFile, stage: pool.Run, max_faults: int | None
    ) -> None:
        gathered = self.gathered
        place = gathered.file(file.name)
        for chunk in stage(self._tasks(number, part, file)):
            gathered.add(number, place, chunk)
            if self.progress is not None:
                self.progress(sum(gathered.rows_in.values()))
            is_strict = self.recipe.data.bad_rows == "error" and max_faults is not None
            if is_strict and len(gathered.faults) >= (max_faults or 0):
                raise together(gathered.faults, len(gathered.faults), is_all=False)

    def _tasks(self, number: int, part: Part, file: DataFile) -> Iterator[Task]:
        batches = files.batches(file)
        head = list(islice(batches, 1))
        shape: Shape | None = None
        for batch in chain(head, batches):
            if shape is None:
                shape = _shape(batch, part.source)
                self._note_shape(number, file, shape)
            yield Task(
                batch=batch,
                shape=shape or _fallback(self.recipe),
                columns=part.source.columns,
                is_one_document=file.kind == "text",
            )

    def _note_shape(self, number: int, file: DataFile, shape: Shape | None) -> None:
        if shape is None:
            return
        if (shape == "text") != (self.recipe.method == "pretrain"):
            other, what = ("pretrain", "raw text") if shape == "text" else ("sft", f"{shape} rows")
            raise DataError(
                f"{what}, but method is {self.recipe.method}",
                where=file.name,
                hint=f"--set method={other}, or name other data",
            )
        if shape not in self.shapes[number]:
            self.shapes[number].append(shape)

    def _decide(self, rows: Rows, found: list[list[DataFile]], began: float) -> Prepared:
        """Sides, checks, mixture, ledger, report."""
        is_eval = self._sides(rows)
        findings = checks.find(rows.features, is_eval, rows.trained_tokens, self.recipe.data.checks)
        is_kept = self._without(rows, findings)
        used = self._mixed(rows, is_kept & ~is_eval)
        held = np.flatnonzero(is_kept & is_eval)
        ledger = self._ledger(rows, used, held)
        self.gathered.writer.finish(
            rows.pieces.take(rows.pieces_of(used)), rows.pieces.take(rows.pieces_of(held))
        )
        train, evaluation = arrays.load(self.folder / TOKENS)
        report = summary.summarise(
            summary.Facts(
                recipe=self.recipe,
                tokenizer=self.tokenizer,
                parts=[(part.name, str(part.use)) for part in self.parts],
                shapes=self.shapes,
                files=[len(part_files) for part_files in found],
                gathered=self.gathered,
                rows=rows,
                used=used,
                held=held,
                findings=findings,
                train=train,
                ledger=ledger,
                seconds=time.monotonic() - began,
            )
        )
        return Prepared(self.folder, train, evaluation, ledger, report)

    def _sides(self, rows: Rows) -> np.ndarray:
        """Which rows are evaluated on [U]."""
        names = np.array([part.is_evaluation for part in self.parts])
        is_eval: np.ndarray = names[rows.sources] if len(rows) else np.zeros(0, dtype=np.bool_)
        share = self.recipe.eval.share
        if not share or not len(rows):
            return is_eval
        fractions = split.fractions(rows.features.exact)
        is_eval = split.evaluated(fractions, share)
        if len(rows) > 1 and (is_eval.all() or not is_eval.any()):
            moved = int(np.argmax(fractions) if is_eval.all() else np.argmin(fractions))
            is_eval[moved] = ~is_eval[moved]
            self.notes.append(
                f"a share of {share:g} of {len(rows)} rows put all on one side; one row was moved, "
                "and goes back as the data grows"
            )
        return is_eval

    def _without(self, rows: Rows, findings: list[Finding]) -> np.ndarray:
        """Which rows are left after the checks that drop [U]."""
        is_kept = np.ones(len(rows), dtype=np.bool_)
        for finding in findings:
            if finding.action == "drop":
                gone = finding.rows[is_kept[finding.rows]]
                is_kept[gone] = False
                self.gathered.entries += [
                    Entry(file, line, finding.check)
                    for file, line in self.gathered.places(rows, gone)
                ]
        return is_kept

    def _mixed(self, rows: Rows, is_train: np.ndarray) -> Column:
        """The training rows of an epoch, by number, repetitions included."""
        members = [
            np.flatnonzero(is_train & (rows.sources == number)) for number in range(len(self.parts))
        ]
        wanted = mixture.counts([len(m) for m in members], [part.use for part in self.parts])
        fractions = split.fractions(rows.features.exact)
        used = []
        for part, own, count in zip(self.parts, members, wanted, strict=True):
            taken = own[mixture.chosen(fractions[own], count)]
            used.append(taken)
            self._note_use(rows, part, own, taken)
        return np.concatenate([np.zeros(0, dtype=np.int64), *used])

    def _note_use(self, rows: Rows, part: Part, own: Column, taken: Column) -> None:
        if len(taken) > len(own) > 0:
            self.notes.append(
                f"{part.name}: {len(own)} rows make {len(taken)}, so they are repeated within "
                "an epoch"
            )
        left = np.setdiff1d(own, taken)
        self.gathered.entries += [
            Entry(file, line, "not_sampled", str(part.use))
            for file, line in self.gathered.places(rows, left)
        ]

    def _ledger(self, rows: Rows, used: Column, held: Column) -> Ledger:
        gathered = self.gathered
        evaluated = (Entry(f, line, EVALUATION) for f, line in gathered.places(rows, held))
        gone = {(e.file, e.line) for e in gathered.entries if not e.is_used}
        changed = [e for e in gathered.entries if not e.is_used or (e.file, e.line) not in gone]
        return Ledger(
            rows_in=sum(gathered.rows_in.values()),
            train=len(np.unique(used)),
            entries=(*gathered.bad, *changed, *evaluated),
            notes=(*self.notes, *self._remarks()),
        )

    def _remarks(self) -> Iterator[str]:
        """Facts that no single row tells."""
        for key, count in sorted(self.gathered.unread.items()):
            yield f'the key "{key}" is not read; {count} rows have it'
        if self.gathered.joined:
            yield (
                f"{self.gathered.joined} rows have an answer that begins with white space; the "
                "tokenizer may join it to the template's, where generation would not: better "
                "trim them"
            )
        template = self.tokenizer.template
        if self.recipe.method == "sft" and template.reads_clock and self.recipe.data.date is None:
            yield "the chat template may write today's date; pin one to get the same tokens again"


def _shape(batch: Batch, source: Source) -> Shape | None:
    """The shape of the first row that has one."""
    for item in parse(batch):
        if isinstance(item, Row):
            try:
                keys = item.value if not source.columns else dict.fromkeys(source.columns, "")
                return detect(keys, where=item.where)
            except BadRow:
                continue
    return None


def _fallback(recipe: Recipe) -> Shape:
    """For a batch without a row of any shape, all of which are faults anyway."""
    return "text" if recipe.method == "pretrain" else "messages"
