"""Sums up a preparation into the report that `fastsft check` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsft.data import show
from fastsft.data.arrays import TokenRows
from fastsft.data.characters import SCRIPTS
from fastsft.data.checks import Finding
from fastsft.data.gather import Column, Gathered, Rows
from fastsft.data.ledger import Ledger
from fastsft.data.render import Renderer
from fastsft.data.report import (
    FindingReport,
    Lengths,
    Report,
    Sample,
    SourceReport,
    Template,
)
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.recipe import Recipe

SAMPLES = 3
PLACES = 20
BARS = 24
MOST_FAULTS = 2000
"""Faults kept for the report, which must stay readable; the ledger has every one."""


@dataclass(frozen=True)
class Facts:
    """What a preparation knows when it is done."""

    recipe: Recipe
    tokenizer: ChatTokenizer
    parts: Sequence[tuple[str, str]]  # name and use of each source
    shapes: Sequence[Sequence[str]]
    files: Sequence[int]
    gathered: Gathered
    rows: Rows
    used: Column  # training rows of one epoch, by number
    held: Column  # evaluation rows
    findings: Sequence[Finding]
    train: TokenRows
    ledger: Ledger
    seconds: float


def summarise(facts: Facts) -> Report:
    """The report; its name, steps and batching are left to whoever knows them."""
    gathered, train = facts.gathered, facts.train
    pieces = len(facts.rows.pieces)
    return Report(
        recipe="",
        method=facts.recipe.method,
        template=_template(facts) if facts.recipe.method == "sft" else None,
        max_tokens=facts.recipe.data.max_tokens,
        sources=tuple(_sources(facts)),
        totals=facts.ledger.totals(),
        samples=tuple(_samples(facts)),
        tokens=train.tokens,
        trained_tokens=train.trained_tokens,
        stop_share=1 - gathered.unstopped / pieces if pieces else 0.0,
        lengths=_lengths(train.lengths),
        scripts=dict(zip(SCRIPTS, facts.rows.features.scripts.tolist(), strict=True)),
        steps_per_epoch=0,
        total_steps=0,
        batching=None,
        findings=tuple(_finding(facts, finding) for finding in facts.findings),
        notes=(*facts.ledger.notes, *_left_out(len(gathered.faults))),
        faults=tuple(gathered.faults[:MOST_FAULTS]),
        refused=tuple(_refusals(facts)),
        seconds=facts.seconds,
        from_cache=False,
        bad_rows=facts.recipe.data.bad_rows,
    )


def _refusals(facts: Facts) -> Iterator[str]:
    """Why the data cannot be trained on; `what; cure` each."""
    gathered, data = facts.gathered, facts.recipe.data
    if gathered.faults and data.bad_rows == "error":
        count = len(gathered.faults)
        yield (
            f"{count:,} {'row' if count == 1 else 'rows'} cannot be trained on; mend them, or set "
            "data.bad_rows to skip to leave them out"
        )
    for finding in facts.findings:
        if finding.action == "error":
            yield f"data.checks.{finding.check}: {len(finding.rows)} rows; {finding.what}"
    if gathered.unstopped:
        yield (
            f"{gathered.unstopped} rows do not train their stop token; "
            "take the template of the model's original repository"
        )
    if not len(facts.used):
        yield _nothing_left(facts)
    elif facts.recipe.eval.has_rows and not len(facts.held):
        yield "no row is left to evaluate on; set eval.share to 0, or give more rows"


def _left_out(faults: int) -> Iterator[str]:
    if faults > MOST_FAULTS:
        yield (
            f"of {faults:,} faulty rows the first {MOST_FAULTS:,} are told one by one; with "
            "data.bad_rows skip, ledger.jsonl of the run has all of them"
        )


def _nothing_left(facts: Facts) -> str:
    lengths, limit = sorted(facts.gathered.overlong), facts.recipe.data.max_tokens
    if len(lengths) == facts.ledger.rows_in and lengths:
        return (
            f"every row is longer than max_tokens = {limit}: the shortest has {lengths[0]} tokens, "
            f"the longest {lengths[-1]}; set max_tokens to {lengths[-1]} to keep all rows, to "
            f"{lengths[len(lengths) // 2]} to keep half of them"
        )
    gone = ", ".join(f"{count} {reason}" for reason, count in facts.ledger.dropped.items())
    return (
        f"no row is left to train on: {facts.ledger.rows_in} rows in, {gone or 'none dropped'}, "
        f"{facts.ledger.evaluation} held out; mend the rows, or change what drops them"
    )


def _template(facts: Facts) -> Template:
    tokenizer, data = facts.tokenizer, facts.recipe.data
    return Template(
        name=data.template or "the tokenizer's own",
        stop_token=tokenizer.turn.stop,
        pad_token=tokenizer.pad_token,
        bos_token=tokenizer.bos_token,
        adds=Renderer(tokenizer, system=data.system, date=data.date).added(),
        written=tokenizer.special_tokens(),
        stop_id=tokenizer.stop_ids[0],
        base_stop_ids=tuple(sorted(tokenizer.base_eos_ids)),
    )


def _sources(facts: Facts) -> Iterator[SourceReport]:
    rows, pieces = facts.rows, facts.rows.pieces
    tokens = np.bincount(facts.rows.owners, pieces.lengths, minlength=len(rows))
    for number, (name, use) in enumerate(facts.parts):
        used = facts.used[rows.sources[facts.used] == number]
        yield SourceReport(
            name=name,
            shape=", ".join(facts.shapes[number]) or "none",
            files=facts.files[number],
            rows_in=facts.gathered.rows_in[number],
            kept=int((rows.sources == number).sum()),
            held_out=int((rows.sources[facts.held] == number).sum()),
            used=len(used),
            use=use,
            tokens=int(tokens[used].sum()),
        )


def _samples(facts: Facts) -> Iterator[Sample]:
    """The first rows as the model sees them, from every source in turn."""
    rows, train = facts.rows, facts.train
    for place in _first_of_each(rows.sources[train.row_ids]):
        ids, labels = train[place]
        ((file, line),) = facts.gathered.places(rows, train.row_ids[place : place + 1])
        parts = show.segments(ids, labels, facts.tokenizer)
        yield Sample(f"{file}:{line}", tuple(parts))


def _first_of_each(sources: Column) -> list[int]:
    _, firsts = np.unique(sources, return_index=True)
    more = (place for place in range(len(sources)) if place not in set(firsts.tolist()))
    return [*sorted(firsts.tolist()), *(p for p, _ in zip(more, range(SAMPLES), strict=False))][
        :SAMPLES
    ]


def _finding(facts: Facts, finding: Finding) -> FindingReport:
    gathered, rows = facts.gathered, facts.rows
    places = [f"{file}:{line}" for file, line in gathered.places(rows, finding.rows[:PLACES])]
    if finding.of is not None:
        others = gathered.places(rows, finding.of[:PLACES])
        places = [f"{a} ~ {file}:{n}" for a, (file, n) in zip(places, others, strict=True)]
    return FindingReport(
        check=finding.check,
        what=finding.what,
        rows=len(finding.rows),
        action=finding.action,
        where=tuple(places),
    )


def _lengths(lengths: NDArray[np.int64]) -> Lengths | None:
    if not len(lengths):
        return None
    median, p95 = np.percentile(lengths, (50, 95), method="inverted_cdf").tolist()
    longest = int(lengths.max())
    width = -(-longest // BARS)
    edges = np.arange(0, longest + width + 1, width)
    counts, _ = np.histogram(lengths, edges)
    return Lengths(
        shortest=int(lengths.min()),
        median=int(median),
        p95=int(p95),
        longest=longest,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )
