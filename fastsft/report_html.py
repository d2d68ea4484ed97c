"""Draws the check's report as one page that loads nothing.  Rows are strangers' text: every
value is made visible and escaped on its way into the page."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from fastsft import report_words as told
from fastsft.data.report import Lengths, Report

ROW_CHARACTERS = 6000
PLACES = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin of the histogram, in hundredths of the chart's width and height."""

    left: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A token count on the axis; `left` is in hundredths of the chart's width."""

    left: float
    label: str
    kind: str


def page(report: Report) -> str:
    """The page, whole: style and chart within it, no script, no address."""
    return template("fastsft", "report.html.jinja").render(
        report=report,
        told=told,
        bars=_bars(report.lengths),
        marks=_marks(report.lengths, report.max_tokens),
        ticks=_ticks(report.lengths),
        row_characters=ROW_CHARACTERS,
        places=PLACES,
    )


def template(package: str, name: str) -> Template:
    """A page's template from our own files; what it puts out is made visible and escaped."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    source = resources.files(package).joinpath(name).read_text("utf-8")
    return environment.from_string(source)


def _finalized(value: Any) -> Any:
    """What a template expression puts out, before it is escaped."""
    return told.visible(value) if type(value) is str else value


def _bars(lengths: Lengths | None) -> list[Bar]:
    if lengths is None:
        return []
    width, top = 100 / len(lengths.counts), max(*lengths.counts, 1)
    return [
        Bar(i * width, width, 100 * count / top, f"{low:,} to {high:,} tokens: {count:,} rows")
        for i, (count, low, high) in enumerate(
            zip(lengths.counts, lengths.edges, lengths.edges[1:], strict=False)
        )
    ]


def _marks(lengths: Lengths | None, max_tokens: int) -> list[Mark]:
    """Median, 95th percentile and the limit; one beyond the axis stands at its end."""
    if lengths is None:
        return []
    arrow = " →" if max_tokens > lengths.edges[-1] else ""
    return [
        Mark(_left(lengths, lengths.median), f"median {lengths.median:,}", "median"),
        Mark(_left(lengths, lengths.p95), f"95% within {lengths.p95:,}", "p95"),
        Mark(_left(lengths, max_tokens), f"max_tokens {max_tokens:,}{arrow}", "limit"),
    ]


def _left(lengths: Lengths, tokens: int) -> float:
    """Where a token count lies; every bin is drawn equally wide, whatever it spans."""
    edges = lengths.edges
    if not edges[0] < tokens < edges[-1]:
        return 0.0 if tokens <= edges[0] else 100.0
    bin_at = bisect_right(edges, tokens) - 1
    inside = (tokens - edges[bin_at]) / (edges[bin_at + 1] - edges[bin_at])
    return 100 * (bin_at + inside) / (len(edges) - 1)


def _ticks(lengths: Lengths | None) -> list[Mark]:
    """Up to five edges along the axis, its ends among them."""
    if lengths is None:
        return []
    bins = len(lengths.edges) - 1
    shown = sorted({round(bins * quarter / 4) for quarter in range(5)})
    return [Mark(100 * i / bins, f"{lengths.edges[i]:,}", "tick") for i in shown]
