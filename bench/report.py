"""What a run of the grid says: the estimator's error, what recomputation costs, where Python is the
limit.  From result files only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench import matrix
from bench.results import Point, points, read, recompute, setting
from fastsft.bench import plots, row, table
from fastsft.bench.plots import COLOURS, DASHES, SOFT
from fastsft.hardware import gib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE, PICTURE = "report.md", "host-bound"


def write(results: Path, into: Path) -> str:
    """The report as Markdown, written to INTO/report.md with a picture beside it."""
    found = list(points(read(matrix.named_folders(results))))
    curves = host_bound(found)
    text = "\n".join(
        [
            "# What the grid says\n",
            _estimator(found),
            _recomputation(found),
            _host_bound(curves),
            _not_measured(results),
        ]
    )
    into.mkdir(parents=True, exist_ok=True)
    (into / FILE).write_text(text, "utf-8")
    if curves:
        with plots.styled():
            plots.save(picture(curves), into / PICTURE)
    return text


def _estimator(found: Iterable[Point]) -> str:
    known = [point for point in found if point.rows[0].memory.predicted]
    if not known:
        return "## Estimator\n\nNo row has a prediction beside it: it speaks of GPUs only.\n"
    heads = ["device", "recipe", "engine", "setting", "allocated", "predicted", "error"]
    heads += ["process", "predicted", "error"]
    body = [_prediction(point) for point in known]
    summary = [_errors(known, "allocated"), _errors(known, "process")]
    told = "\n".join(line for line in summary if line)
    return f"## Estimator\n\n{table.markdown_table(heads, body)}\n{told}\n"


def _prediction(point: Point) -> tuple[str, ...]:
    """Of the arm's first valid row."""
    memory = point.rows[0].memory
    said = memory.predicted or row.Predicted(
        allocated_bytes=0, reserved_bytes=0, process_bytes=0, host_bytes=0
    )
    return (
        point.group[0],
        point.rows[0].identity.recipe,
        point.arm.engine,
        setting(point.settings),
        gib(memory.allocated_bytes),
        gib(said.allocated_bytes),
        table.signed(error_of(memory, "allocated")),
        gib(memory.process_bytes),
        gib(said.process_bytes),
        table.signed(error_of(memory, "process")),
    )


def error_of(memory: row.Memory, what: str) -> float | None:
    """Predicted over measured less one, by the row's own figures; None where one is not known."""
    measured = getattr(memory, f"{what}_bytes")
    if not measured or memory.predicted is None:
        return None
    return float(getattr(memory.predicted, f"{what}_bytes") / measured - 1)


def _errors(found: Sequence[Point], what: str) -> str:
    errors = [error_of(point.rows[0].memory, what) for point in found]
    known = [abs(error) for error in errors if error is not None]
    if not known:
        return ""
    middle, most = 100 * median(known), 100 * max(known)
    return f"{what}: {len(known)} points, median error {middle:.1f} %, largest {most:.1f} %\n"


def _recomputation(found: Iterable[Point]) -> str:
    """Each setting against full recomputation of the same tokens: what was foretold, and found.

    Of two points of one setting the newer speaks.
    """
    body = []
    for _, alike in _grouped(found, lambda point: (*point.group, f"{point.slots:.0f}")):
        newest = {recompute(p.settings): p for p in sorted(alike, key=_time)}
        full = newest.pop("full", None)
        body += [_gain(p, full) for p in newest.values() if full]
    if not body:
        return "## Recomputation\n\nNo pair of points that differ in it alone.\n"
    heads = ("device", "recipe", "engine", "setting", "predicted", "FLOPs' ratio", "measured")
    heads = (*heads, "off by")
    note = (
        "Gain in trained tokens/s over full recomputation; predicted by the planner's arithmetic, "
        "where the card's peak is known.\n"
    )
    return f"## Recomputation\n\n{note}\n{table.markdown_table(heads, body)}"


def _gain(point: Point, full: Point) -> tuple[str, ...]:
    rates = [table.middle(p.arm.trained_tokens_per_s) for p in (point, full)]
    predicted = _ratio(full.predicted_s, point.predicted_s)
    by_flops = _ratio(full.flops_per_slot, point.flops_per_slot)
    measured = _ratio(*rates)
    off = _ratio(measured, predicted)
    who = (point.group[0], point.rows[0].identity.recipe, point.arm.engine)
    gains = (_times(predicted), _times(by_flops), _times(measured))
    return (*who, setting(point.settings), *gains, table.signed(None if off is None else off - 1))


def _time(point: Point) -> float:
    return point.rows[0].identity.time_s


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def _times(value: float | None) -> str:
    return table.UNKNOWN if value is None else f"{value:.2f}×"


def host_bound(found: Iterable[Point]) -> dict[str, list[Point]]:
    """Curves of two points or more that differ in tokens alone, by name, fewest tokens first."""
    curves = {}
    for _, alike in _grouped(found, lambda p: (*p.group, recompute(p.settings))):
        by_tokens = {f"{p.slots:.0f}": p for p in sorted(alike, key=_time)}  # the newest
        if len(by_tokens) > 1:
            name = f"{alike[0].group[1]}, {alike[0].group[2]}, {alike[0].group[3]} on "
            label = f"{name}{alike[0].group[0]}, recompute {recompute(alike[0].settings)}"
            curves[label] = sorted(by_tokens.values(), key=lambda point: point.slots)
    return curves


def _host_bound(curves: dict[str, list[Point]]) -> str:
    heads = ("curve", "slots of a micro-batch", "time", "slots/s", "of the best")
    body = []
    for name, curve in curves.items():
        best = max(point.slots / point.micro_batch_s for point in curve)
        for point in curve:
            pace = point.slots / point.micro_batch_s
            told = (table.seconds(point.micro_batch_s), table.rate(pace), table.share(pace / best))
            body.append((name, f"{point.slots:,.0f}", *told))
    if not body:
        return "## Host-bound\n\nNo points that differ in tokens alone.\n"
    note = "Where the time hardly grows with the tokens, Python is the limit and not the device.\n"
    shown = table.markdown_table(heads, body)
    return f"## Host-bound\n\n{note}\n{shown}\n![time of a micro-batch]({PICTURE}.png)\n"


def picture(curves: dict[str, list[Point]]) -> Figure:
    """Seconds of a micro-batch over its slots, from zero both ways."""
    figure = plots.canvas(10, 4.6 + 0.25 * len(curves))
    axes = figure.subplots()
    for place, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "marker": "o"}
        style["ls"] = DASHES[place // len(COLOURS) % len(DASHES)]
        slots = [point.slots for point in curve]
        axes.plot(slots, [1000 * point.micro_batch_s for point in curve], **style, label=name)
    every = [point for curve in curves.values() for point in curve]
    axes.set_xlim(0, 1.05 * max(point.slots for point in every))
    axes.set_ylim(0, 1.1e3 * max(point.micro_batch_s for point in every))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.set_xlabel("slots of a micro-batch", color=SOFT)
    axes.set_ylabel("milliseconds", color=SOFT)
    axes.grid()
    pipeline = all(point.bench.summary.speaks_of == "pipeline" for point in every)
    about = f"\n{plots.ONLY_PIPELINE}" if pipeline else ""
    figure.suptitle(f"Time of a micro-batch{about}", x=0.01, ha="left", fontweight="bold")
    figure.legend(loc="outside lower left", fontsize=9.5)
    return figure


def _not_measured(results: Path) -> str:
    """Cells without figures, which is a result where it is memory that was missing."""
    heads = ("cell", "result", "predicted", "allowed", "why")
    body = []
    for path in sorted(results.glob(f"*/{matrix.CELLS}/*.json")):
        record = matrix.read(path)
        if record is not None and record["result"] != "measured":
            cap = record["cell"]["vram_cap_gib"]
            allowed = f"{cap:g} GiB" if cap else table.UNKNOWN
            said = gib(record["predicted_process_bytes"])
            body.append((path.stem, record["result"], said, allowed, record["error"] or ""))
    if not body:
        return ""
    return f"## Cells without figures\n\n{table.markdown_table(heads, body)}"


def _grouped(found: Iterable[Point], key: Any) -> list[tuple[Any, list[Point]]]:
    ordered = sorted(found, key=key)
    return [(name, list(alike)) for name, alike in groupby(ordered, key=key)]
