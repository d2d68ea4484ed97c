"""A bench's result as a table of words, for a terminal and for Markdown.  Draws nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from fastsft.bench.row import Arm, Row, Spread, Summary
from fastsft.hardware import gib
from fastsft.report_words import one_line

UNKNOWN = "n/a"

COLUMNS = (
    "arm",
    "engine",
    "valid rows",
    "trained tok/s",
    "real tok/s",
    "slots/s",
    "step",
    "to first step",
    "VRAM allocated",
    "VRAM process",
    "host RAM",
    "of matmul",
    "against peer",
)
"""Rates are the median of an arm's valid rows; the trained one with the lowest and highest of
them.  `of matmul`: FLOPs done, as a share of what a matmul in the same process reaches."""


def columns() -> tuple[str, ...]:
    """The headings, in order."""
    return COLUMNS


def lines(rows: Sequence[Row], summary: Summary) -> list[tuple[str, ...]]:
    """One line of cells for each arm, the arms in the summary's order."""
    return [_line(arm, place, rows, summary) for place, arm in enumerate(summary.arms)]


def markdown(rows: Sequence[Row], summary: Summary) -> str:
    """The same table as Markdown, arms' names made harmless."""
    return markdown_table(COLUMNS, lines(rows, summary))


def markdown_table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Any table as Markdown; cells are text, and stay text."""
    shown = [heads, ["---"] * len(heads), *([harmless(cell) for cell in line] for line in body)]
    return "".join(f"| {' | '.join(line)} |\n" for line in shown)


def harmless(text: str) -> str:
    """Text on one line of Markdown, in which nothing is markup."""
    special = "\\`*_{}[]<>|#!~$&"
    return "".join(f"\\{c}" if c in special else c for c in one_line(text))


def _line(arm: Arm, place: int, rows: Sequence[Row], summary: Summary) -> tuple[str, ...]:
    return (
        one_line(arm.arm),
        one_line(arm.engine),
        f"{arm.valid_rows} of {arm.rows}",
        spread(arm.trained_tokens_per_s),
        rate(middle(arm.real_tokens_per_s)),
        rate(middle(arm.slots_per_s)),
        seconds(middle(arm.step_median_s)),
        seconds(middle(arm.to_first_step_s)) + as_stored(rows),
        gib(middle(arm.allocated_bytes)),
        gib(middle(arm.process_bytes)) + by_difference(rows, arm.arm),
        gib(middle(arm.host_rss_bytes)) + as_stored(rows),
        share(of_matmul(rows, arm.arm)),
        against(place, summary),
    )


def valid(rows: Sequence[Row], arm: str) -> list[Row]:
    """An arm's rows that no gate failed."""
    return [row for row in rows if row.identity.arm == arm and row.validity.is_valid]


def as_stored(rows: Sequence[Row]) -> str:
    """Said beside what loading takes, where the files are smaller than the real model's."""
    base = rows[0].identity.base
    return " (base stored in 4 bits)" if base.is_synthetic and base.stored == "nf4" else ""


def by_difference(rows: Sequence[Row], arm: str) -> str:
    """Said beside a process's VRAM that the driver did not tell."""
    is_so = any(row.memory.is_vram_by_difference for row in valid(rows, arm))
    return " (device less what was in use)" if is_so else ""


def of_matmul(rows: Sequence[Row], arm: str) -> float | None:
    """The arm's median utilisation of the measured matmul; None where no valid row knows."""
    shares = [row.rates.hfu_of_matmul for row in valid(rows, arm)]
    known = [found for found in shares if found is not None]
    return median(known) if known else None


def middle(value: Spread | None) -> float | None:
    """The median, where there is one."""
    return None if value is None else value.median


def spread(value: Spread | None) -> str:
    """`7,412 (7,380 to 7,450)`; without the band where there is none."""
    if value is None:
        return UNKNOWN
    if value.low == value.high:
        return rate(value.median)
    return f"{rate(value.median)} ({rate(value.low)} to {rate(value.high)})"


def against(place: int, summary: Summary) -> str:
    """What the arm is of its peer: the first arm's ratio to the second."""
    if place > 1 or summary.ratio is None:
        return UNKNOWN
    other = ", other settings" if summary.differences else ""
    return "peer" if place == 1 else f"{ratio(summary)}{other}"


def ratio(summary: Summary) -> str:
    """`1.42×` with the A/A band; what lies within it is said to."""
    times, band = summary.ratio, summary.aa_band
    if times is None:
        return UNKNOWN
    if band is None:
        return f"{times:.2f}× (no band)"
    within = "" if summary.is_difference else "within "
    return f"{times:.2f}× ({within}A/A band {100 * band:.1f} %)"


def rate(value: float | None) -> str:
    """Tokens per second: `7,412`, with a decimal below 100."""
    return _known(value, lambda v: f"{v:,.0f}" if v >= 100 else f"{v:,.1f}")


def seconds(value: float | None) -> str:
    """`41.3 ms`, `1.24 s`, or `2 min 5 s`."""
    return _known(value, _clock)


def _clock(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.3g} ms"
    if value < 100:
        return f"{value:.3g} s"
    return f"{round(value) // 60} min {round(value) % 60} s"


def share(value: float | None) -> str:
    """`61 %`."""
    return _known(value, lambda v: f"{100 * v:.0f} %")


def signed(value: float | None) -> str:
    """An error: `+2.1 %`."""
    return _known(value, lambda v: f"{100 * v:+.1f} %")


def _known(value: float | None, word: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else word(value)
