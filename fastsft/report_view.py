"""Draws the check's report on stdout: the rows are strangers' text and cannot pose as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fastsft import report_words as told
from fastsft.console import out
from fastsft.data.report import FindingReport, Lengths, Report, Sample, SourceReport

ROW_CHARACTERS = 700
PLACES = 5
BAR = 24
STYLES: Mapping[told.Kind, str] = {"trained": "green", "given": "dim", "cut": "yellow italic"}


def show(report: Report) -> None:
    """The whole report; the verdict comes last, where it cannot scroll away."""
    _say((f"fastsft check {told.one_line(report.recipe)}", "bold"), indent=0)
    _sources(report.sources)
    _heading("Rows")
    _say(told.adds_up(report))
    if told.changed(report):
        _say(told.changed(report))
    _samples(report.samples)
    _facts("Training", told.training(report))
    _facts("Template", told.template(report))
    _lengths(report.lengths)
    _batching(report)
    _findings(report)
    _faults(report)
    _list("Notes", report.notes)
    _verdict(report)


def row(sample: Sample, facts: Mapping[str, str]) -> None:
    """One row in full, then what is known of it."""
    _row(sample, limit=None)
    out.print()
    _pairs(facts)


def _say(*spans: str | tuple[str, str], indent: int = 2) -> None:
    """A paragraph; the terminal's width is kept, and no other's."""
    text = Text.assemble(*spans)
    if out.is_terminal:
        out.print(Padding(text, (0, 0, 0, indent)))
    else:
        print(" " * indent + text.plain.rstrip())


def _heading(title: str) -> None:
    out.print()
    _say((title, "bold cyan"), indent=0)


def _facts(title: str, facts: Mapping[str, str]) -> None:
    if facts:
        _heading(title)
        _pairs(facts)


def _pairs(facts: Mapping[str, str]) -> None:
    """Aligned names and values."""
    width = max(map(len, facts), default=0)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        shown = told.one_line(value)
        grid.add_row(Text(name, style="bold"), Text(shown))
        if not out.is_terminal:
            print(f"  {name:<{width}}  {shown}")
    if out.is_terminal:
        out.print(Padding(grid, (0, 0, 0, 2)))


def _list(title: str, lines: Sequence[str]) -> None:
    if lines:
        _heading(title)
    for line in lines:
        _say(f"- {told.one_line(line)}")


def _sources(sources: Sequence[SourceReport]) -> None:
    if not sources:
        return
    _heading("Sources")
    if out.is_terminal:
        out.print(Padding(_source_table(sources), (0, 0, 0, 2)))
        return
    for source in sources:
        print(
            f"  {told.one_line(source.name)}: {_kind(source)}; {source.rows_in:,} rows in, "
            f"{source.kept:,} kept, {source.held_out:,} held out; an epoch uses "
            f"{told.many(source.used, 'row')}, {told.many(source.tokens, 'token')}"
        )


def _kind(source: SourceReport) -> str:
    return f"{told.one_line(source.shape)}, {told.many(source.files, 'file')}, {source.use}"


def _source_table(sources: Sequence[SourceReport]) -> Table:
    """Two lines a source, so that it fits 80 columns."""
    drawn = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    drawn.add_column("", overflow="fold")
    for column in ("rows in", "kept", "held out", "an epoch", "tokens"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for source in sources:
        name = Text.assemble(told.one_line(source.name), "\n", (f"  {_kind(source)}", "dim"))
        counts = (source.rows_in, source.kept, source.held_out, source.used, source.tokens)
        drawn.add_row(name, *(f"{count:,}" for count in counts))
    return drawn


def _samples(samples: Sequence[Sample]) -> None:
    if not samples:
        return
    _heading("As the model sees them")
    for sample in samples:
        _row(sample, limit=ROW_CHARACTERS)
    _say(("`--row FILE:LINE` shows any row in full", "dim"))


def _is_coloured() -> bool:
    return out.is_terminal and out.color_system is not None and not out.no_color


def _row(sample: Sample, *, limit: int | None) -> None:
    """One row behind a bar, so that none of its lines passes for the report's."""
    how = "green" if _is_coloured() else "in [[ ]]"
    _say((told.one_line(sample.where), "bold"), (f"  what is trained is {how}", "dim"))
    text = Text()
    for piece, kind in told.pieces(sample, limit=limit):
        is_marked = kind == "trained" and not _is_coloured()
        text.append(f"[[{piece}]]" if is_marked else piece, STYLES[kind])
    if not out.is_terminal:
        print("\n".join(f"  │ {line}" for line in text.plain.split("\n")))
        return
    for wrapped in text.wrap(out, max(out.width - 4, 8), overflow="fold"):
        out.print(Text("  │ ", "dim", end=""), wrapped, sep="", soft_wrap=True)


def _lengths(lengths: Lengths | None) -> None:
    if lengths is None:
        return
    _heading("Lengths in tokens")
    bars = histogram(lengths.counts, columns=min(max(out.width - 4, 8), 96), levels=4)
    for bar in bars:
        _say((bar, "cyan"))
    first, last = f"{lengths.edges[0]:,}", f"{lengths.edges[-1]:,}"
    _say((f"{first}{last:>{max(len(bars[0]) - len(first), len(last) + 1)}}", "dim"))
    _say(
        f"shortest {lengths.shortest:,}, median {lengths.median:,}, 95% are at most "
        f"{lengths.p95:,}, longest {lengths.longest:,}"
    )


def histogram(counts: Sequence[int], *, columns: int, levels: int) -> list[str]:
    """The counts as `levels` lines of at most `columns` cells; what is not 0 is always seen."""
    each = -(-len(counts) // columns)
    merged = [sum(counts[i : i + each]) for i in range(0, len(counts), each)]
    cells = columns // len(merged)
    top = max(merged) or 1
    eighths = [max(1, round(8 * levels * count / top)) if count else 0 for count in merged]
    return [
        "".join(" ▁▂▃▄▅▆▇█"[min(max(n - 8 * level, 0), 8)] * cells for n in eighths)
        for level in reversed(range(levels))
    ]


def _batching(report: Report) -> None:
    ways = told.batching(report)
    if ways:
        _heading("Batches: real tokens per computed position")
    width = max((len(name) for name, *_ in ways), default=0)
    for name, share, is_used in ways:
        full = int(BAR * share)  # only what is all is drawn full
        _say(
            (f"{name:<{width}}  ", "bold" if is_used else ""),
            ("━" * full, "green" if is_used else "cyan"),
            ("─" * (BAR - full), "dim"),
            f"  {told.percent(share):>5}",
            ("  used" if is_used else "", "bold green"),
        )


def _findings(report: Report) -> None:
    if report.findings:
        _heading("Findings")
    for found in report.findings:
        style = {"error": "bold red", "drop": "yellow"}.get(found.action, "bold")
        _say(
            (told.words(found.check), style),
            f": {told.many(found.rows, 'row')} {told.FOLLOWS[found.action]}",
        )
        _say(told.one_line(found.what), indent=4)
        _places(found)
    if report.findings:
        _say(("data.checks sets what follows: off, report, drop or error", "dim"))


def _places(found: FindingReport | told.FaultGroup) -> None:
    """The first places: pairs one a line, others one after the other."""
    shown = told.places(found.where, limit=PLACES)
    has_pairs = any(" ~ " in place for place in shown)
    paragraphs = shown if has_pairs else [", ".join(shown)]
    paragraphs[-1:] = [f"{place}{told.more(found, limit=PLACES)}" for place in paragraphs[-1:]]
    for place in paragraphs:
        _say((place, "dim"), indent=4)


def _faults(report: Report) -> None:
    groups = told.fault_groups(report)
    if groups:
        _heading("Bad rows")
    for group in groups:
        _say(
            (told.words(group.reason), "bold red"),
            f": {told.many(group.rows, 'row')}; {told.one_line(group.what)}",
        )
        _places(group)
        _say(("hint: ", "bold"), told.one_line(group.hint), indent=4)


def _verdict(report: Report) -> None:
    style = "bold red" if report.refused else "bold green"
    out.print()
    _say((told.verdict(report), style), (f"  ({told.took(report)})", "dim"), indent=0)
    for reason in report.refused:
        _say(f"- {told.one_line(reason)}")
