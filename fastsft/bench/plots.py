"""Draws a bench's rows as SVG and PNG files: rates, memory over time, losses.  Draws numbers that
are in the rows, and no others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastsft.bench.row import Arm, Row, Summary
from fastsft.bench.table import rate, share
from fastsft.report_words import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Kind = Literal["trained", "real", "slots"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7A5C00", "#444444")
"""Told apart by colour-blind readers too.  Source: Okabe and Ito 2008, darkened at the end."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
INK, SOFT, LINE = "#1a1a1a", "#555555", "#dddddd"

ONLY_PIPELINE = "CPU: speaks of the pipeline, not of kernels"
GAP_OF_NAMES = 0.09
"""Marks nearer than this share of the axis would write over each other."""

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    # Where the first has no glyph the next are asked; a font that is absent is passed over.
    "font.family": ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei"],
    "font.size": 11,
    "grid.color": LINE,
    "legend.frameon": False,
    "path.simplify": True,
    "svg.fonttype": "path",
    "text.color": INK,
    "text.parse_math": False,  # a recipe's name may hold dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
}
NAMES = ("tokens", "memory", "losses")


def draw(folder: Path, rows: Sequence[Row], summary: Summary) -> list[Path]:
    """Write tokens, memory and losses, each as .svg and .png, into the folder.

    The same rows give the same bytes of SVG with the same matplotlib: no dates, fixed ids.
    A picture for which the rows hold nothing (no samples, no losses) is not written.
    """
    written = []
    with styled():
        for name, figure in _figures(rows, summary):
            written += save(figure, folder / name)
    return written


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png; the name makes one picture's ids differ from another's."""
    import matplotlib

    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
    with styled(), matplotlib.rc_context({"svg.hashsalt": f"fastsft-{stem.name}"}):
        figure.savefig(paths[0], metadata={"Date": None})
        figure.set_layout_engine("none")  # laid out by now, and the slowest part of a picture
        figure.savefig(paths[1], dpi=150, metadata={"Software": None})
    return paths


def _figures(rows: Sequence[Row], summary: Summary) -> Iterator[tuple[str, Figure]]:
    yield "tokens", tokens(rows, summary)
    if any(row.memory.samples for row in rows):
        yield "memory", memory(rows, summary)
    if any(arm.losses for arm in summary.arms):
        yield "losses", losses(summary)


@contextmanager
def styled() -> Iterator[None]:
    """Our style for as long as this lasts, whatever the caller's is."""
    import logging

    import matplotlib

    finder = logging.getLogger("matplotlib.font_manager")
    level = finder.level
    finder.setLevel(logging.ERROR)  # else it tells of each font that is not installed
    try:
        with matplotlib.rc_context(), warnings.catch_warnings():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            yield
    finally:
        finder.setLevel(level)


def canvas(width: float, height: float) -> Figure:
    """An empty figure of that size in inches; nothing of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def tokens(rows: Sequence[Row], summary: Summary) -> Figure:
    """Rates by arm: a bar to the median of the valid rows, a dot for every process."""
    arms = summary.arms
    wrong = [row for row in rows if not row.validity.is_valid]
    figure = canvas(11, 2.6 + 0.75 * len(arms) + 0.22 * len(wrong))
    panels = figure.subplots(1, 3, sharey=True)
    _rate_panel(panels[0], "trained", rows, summary)
    _rate_panel(panels[1], "real", rows, summary)
    _rate_panel(panels[2], "slots", rows, summary)
    panels[0].set_title("trained tokens/s", loc="left")
    panels[1].set_title("real tokens/s", loc="left")
    panels[2].set_title("slots/s", loc="left")
    panels[0].set_xlabel(f"the loss sees them{_part(rows, 'trained')}", color=SOFT)
    panels[1].set_xlabel(f"not padding{_part(rows, 'real')}", color=SOFT)
    panels[2].set_xlabel("every position computed", color=SOFT)
    panels[0].set_yticks(range(len(arms)), [_short(arm.arm) for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    _band(panels[0], summary)
    _head(figure, "Tokens per second", summary)
    told = "Bar: median of the valid processes. Dot: one process. Each panel has its own scale."
    _foot(figure, [told, *map(_why_hollow, wrong)])
    return figure


def _rate(row: Row, kind: Kind) -> float | None:
    match kind:
        case "trained":
            return row.rates.trained_tokens_per_s
        case "real":
            return row.rates.real_tokens_per_s
        case "slots":
            return row.rates.slots_per_s


def _median(arm: Arm, kind: Kind) -> float | None:
    match kind:
        case "trained":
            found = arm.trained_tokens_per_s
        case "real":
            found = arm.real_tokens_per_s
        case "slots":
            found = arm.slots_per_s
    return None if found is None else found.median


def _part(rows: Sequence[Row], kind: Kind) -> str:
    """What the kind is of the slots, where every row agrees to a hundredth."""
    parts = set()
    for row in rows:
        one, slots = _rate(row, kind), row.rates.slots_per_s
        if one is not None and slots:
            parts.add(share(one / slots))
    return f": {parts.pop()} of the slots" if len(parts) == 1 else ""


def _rate_panel(axes: Axes, kind: Kind, rows: Sequence[Row], summary: Summary) -> None:
    top = 0.0
    for place, arm in enumerate(summary.arms):
        middle = _median(arm, kind)
        of_arm = [row for row in rows if row.identity.arm == arm.arm]
        if middle is not None:
            axes.barh(place, middle, 0.5, color=_colour(place), alpha=0.3, zorder=2)
            axes.plot([middle] * 2, [place - 0.25, place + 0.25], color=_colour(place), lw=2.5)
        reach = max([middle or 0.0, *_dots(axes, place, kind, of_arm)])
        top = max(top, reach)
        told: dict[str, Any] = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate("no valid row" if middle is None else rate(middle), (reach, place), **told)
    axes.set_xlim(0, 1.35 * top or 1)
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="y", length=0)


def _dots(axes: Axes, place: int, kind: Kind, rows: Sequence[Row]) -> list[float]:
    """Every process at its own height, so that equal ones are seen; hollow where not valid."""
    drawn = []
    for n, row in enumerate(rows):
        value = _rate(row, kind)
        if value is None:
            continue
        drawn.append(value)
        height = place + 0.34 * ((n + 0.5) / len(rows) - 0.5)
        face = _colour(place) if row.validity.is_valid else "white"
        axes.plot(value, height, "o", ms=6.5, mfc=face, mec=_colour(place), mew=1.4, zorder=3)
    return drawn


def _band(axes: Axes, summary: Summary) -> None:
    """What the same arm's repeats differ by, about the peer's median: no claim inside it."""
    band, middle = summary.aa_band, None
    if len(summary.arms) > 1:
        middle = _median(summary.arms[1], "trained")
    if band is None or middle is None:
        return
    axes.axvspan(middle * (1 - band), middle * (1 + band), color="#999999", alpha=0.45, lw=0)
    axes.annotate(
        f"A/A band {100 * band:.1f} %",
        (middle * (1 + band), 0.5),
        xytext=(5, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="center",
        fontsize=9.5,
        color=SOFT,
    )


def _why_hollow(row: Row) -> str:
    """Which gates a row failed."""
    names = ", ".join(gate.name for gate in row.validity.failed)
    arm = _short(row.identity.arm)
    return f"Hollow, not valid: {arm}, process {row.identity.repeat}: {_short(names, 90)}"


def memory(rows: Sequence[Row], summary: Summary) -> Figure:
    """Memory over time, a panel for each arm, a line for each process."""
    figure = canvas(11, 1.4 + 2.5 * len(summary.arms))
    panels = figure.subplots(len(summary.arms), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    drawn: dict[str, Line2D] = {}
    for axes, arm in zip(panels, summary.arms, strict=True):
        of_arm = [row for row in rows if row.identity.arm == arm.arm]
        for row in of_arm:
            drawn |= _over_time(axes, row)
        axes.set_title(_short(arm.arm, 70), loc="left", pad=22)
        axes.set_ylabel("GiB")
        axes.grid(axis="y")
    panels[0].set_ylim(bottom=0)
    panels[0].set_xlim(left=0)
    panels[-1].set_xlabel("seconds since the process began")
    for axes, arm in zip(panels, summary.arms, strict=True):  # the axis is settled by now
        _marks(axes, next((row for row in rows if row.identity.arm == arm.arm), None))
    panels[0].legend(drawn.values(), drawn.keys(), loc="upper left")
    _head(figure, "Memory over time", summary)
    _foot(figure, ["One line a process; dotted where a gate failed. Dashes: where a phase begins."])
    return figure


def _over_time(axes: Axes, row: Row) -> dict[str, Line2D]:
    """Draws one process; gives its lines by what they show."""
    host = [(at, held) for at, held, _ in row.memory.samples]
    device = [(at, held) for at, _, held in row.memory.samples if held is not None]
    drawn = {}
    for name, colour, points in (("host", COLOURS[0], host), ("GPU, process", COLOURS[1], device)):
        if points:
            style = "-" if row.validity.is_valid else ":"
            times, gibs = [at for at, _ in points], [held / 2**30 for _, held in points]
            (drawn[name],) = axes.plot(times, gibs, style, color=colour, alpha=0.75, lw=1.6)
    return drawn


def _marks(axes: Axes, row: Row | None) -> None:
    """Where each phase of a process begins; names that would overlap share one place."""
    groups: list[tuple[float, list[str]]] = []
    for name, at in sorted(row.memory.marks.items(), key=lambda pair: pair[1]) if row else []:
        axes.axvline(at, color=SOFT, lw=0.9, ls=(0, (4, 3)), zorder=1)
        if groups and at - groups[-1][0] < GAP_OF_NAMES * axes.get_xlim()[1]:
            groups[-1][1].append(one_line(name))
        else:
            groups.append((at, [one_line(name)]))
    for at, names in groups:
        above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "color": SOFT}
        above |= {"xytext": (0, 4), "textcoords": "offset points", "fontsize": 9.5}
        axes.annotate(", ".join(names), (at, 1), **above)


def losses(summary: Summary) -> Figure:
    """Loss by step, the arms in one panel; beside it how far they lie from the peer."""
    curves = {arm.arm: arm.losses for arm in summary.arms if arm.losses}
    figure = canvas(11, 4.3)
    panels = figure.subplots(1, min(len(curves), 2), squeeze=False)[0]
    for place, (arm, curve) in enumerate(curves.items()):
        panels[0].plot(range(1, len(curve) + 1), curve, **_line_of(place), label=_short(arm))
    panels[0].set_title("Loss", loc="left")
    panels[0].legend(loc="best")
    if len(curves) > 1:
        _differences(panels[1], curves)
    for axes in panels:
        axes.set_xlabel("step, warm-up included")
        axes.locator_params(axis="x", integer=True)
        axes.grid()
    _head(figure, "Loss by step", summary)
    return figure


def _differences(axes: Axes, curves: Mapping[str, Sequence[float]]) -> None:
    """Each arm's loss less the second's, step by step."""
    peer = list(curves)[1]
    others = [(place, arm) for place, arm in enumerate(curves) if arm != peer]
    for place, arm in others:
        apart = [one - two for one, two in zip(curves[arm], curves[peer], strict=False)]
        axes.plot(range(1, len(apart) + 1), apart, **_line_of(place), label=_short(arm))
    axes.axhline(0, color=INK, lw=0.8)
    if len(others) > 1:
        axes.legend(loc="best")
    first = f"{_short(others[0][1], 20)} less " if len(others) == 1 else "less "
    axes.set_title(f"Difference: {first}{_short(peer, 20)}", loc="left")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _line_of(place: int) -> dict[str, Any]:
    """Arms differ in colour and in dashes; the second lies on top of the first, and shows it."""
    dashes = DASHES[place % len(DASHES)]
    return {"color": _colour(place), "ls": dashes, "lw": 2.6 if place == 0 else 1.8}


def _head(figure: Figure, what: str, summary: Summary) -> None:
    """Title, and below it which recipe and which device; on a CPU what that says."""
    about = f"{_short(summary.recipe, 60)} on {_short(summary.device, 60)}"
    if summary.speaks_of == "pipeline":
        about += f"\n{ONLY_PIPELINE}"
    figure.suptitle(f"{what}: {about}", x=0.01, ha="left", fontsize=13, fontweight="bold")


def _foot(figure: Figure, lines: Sequence[str]) -> None:
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9.5, color=SOFT)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _short(text: str, limit: int = 32) -> str:
    """A stranger's name: on one line, nothing invisible, not wider than the picture."""
    shown = one_line(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
