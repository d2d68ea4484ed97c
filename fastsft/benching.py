"""The verb `bench`: runs the arms, keeps every row as it comes, says what the figures amount to."""

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastsft import console, events, launch
from fastsft.bench import gates, page, plots, ready, row, running, share, statistics, table
from fastsft.bench.row import Row, Summary
from fastsft.bench.running import Bench, Turn
from fastsft.engine import settings
from fastsft.errors import RecipeError, TrainError


@dataclass(frozen=True)
class Asked:
    """What the command line says of a bench."""

    against: str | None = None
    steps: int = 20
    warmup: int = 10
    repeats: int = 3
    is_synthetic: bool = False
    vram_cap_gib: float | None = None
    with_export: bool = False
    out: Path = Path("bench")
    share: Path | None = None


def bench(
    name: str, data: Path | None, overrides: Sequence[str], asked: Asked, *, json: bool = False
) -> None:
    """Measure a recipe, and its peer where one is named; the answer is the results' folder.

    Raises TrainError at the end where no row of an arm is valid.  Ctrl-C keeps the rows of the
    processes that are done.
    """
    order = _order(name, data, overrides, asked)
    ready.plans_of(order, ready.recipe_of(order), settings.here())  # refuse before making folders
    if asked.share is not None:
        share.check(asked.share)
    folder = ready.folder_for(asked.out, name)
    try:
        with ready.ready(order, bench=folder.name) as made:
            _tell(made, order)
            rows, was_interrupted = _run(made, folder)
            plans = [arm.plan for arm in made.arms]
    except BaseException:
        _remove_empty(folder)
        raise
    if not rows:
        _remove_empty(folder)
        console.note("ended before the first process was done; nothing is kept")
        raise SystemExit(128 + signal.SIGINT)
    summary = _finish(folder, rows)
    _answer(folder, rows, summary, json=json)
    if asked.share is not None:  # last, so that trouble with it costs nothing else
        share.write(asked.share, rows, plans)
        console.note(f"to share: {asked.share}; look at it, nothing was uploaded")
    if was_interrupted:
        console.note("ended by Ctrl-C; the rows of the processes that were done are kept")
        raise SystemExit(128 + signal.SIGINT)
    _require_valid(rows, folder)


def _order(name: str, data: Path | None, overrides: Sequence[str], asked: Asked) -> ready.Order:
    for option, value, least in (
        ("--steps", asked.steps, 3),
        ("--warmup", asked.warmup, 1),
        ("--repeats", asked.repeats, 1),
    ):
        if value < least:
            raise RecipeError(f"{value} is too few", where=option, hint=f"at least {least}")
    return ready.Order(
        recipe=name,
        data=data,
        overrides=overrides,
        against=asked.against,
        steps=asked.steps,
        warmup=asked.warmup,
        repeats=asked.repeats,
        is_synthetic=asked.is_synthetic,
        vram_cap_gib=asked.vram_cap_gib,
        with_export=asked.with_export,
    )


def _remove_empty(folder: Path) -> None:
    """Leave no folder without a row behind."""
    if not any(folder.iterdir()):
        folder.rmdir()


def _tell(made: Bench, order: ready.Order) -> None:
    """What will run, before it does."""
    names = [arm.plan.name for arm in made.arms]
    console.facts(
        {
            "arms": " against ".join(names),
            "processes": f"{len(made.turns)}, each fresh: {' '.join(_letters(made))}",
            "steps": f"{order.warmup} to warm up, {order.steps} measured, of "
            f"{made.arms[0].expected.items_per_step} "
            f"{'sequences' if made.arms[0].resolved.batching == 'packed' else 'rows'}",
            "data": f"{made.arms[0].expected.rows:,} rows, "
            f"{made.arms[0].expected.real_tokens:,} tokens an epoch",
            "device": made.subject.gpu.name if made.subject.gpu else made.subject.cpu.name,
        }
    )
    if made.subject.gpu is None:
        console.note(statistics.PIPELINE)
    for arm in made.arms:
        for change in arm.plan.changes:
            console.note(f"{arm.plan.name}: {change}")


def _letters(made: Bench) -> list[str]:
    """A B A B …, as the processes take turns."""
    return ["ABCDEFGH"[place % 8] for _ in range(made.repeats) for place in range(len(made.arms))]


def _run(made: Bench, folder: Path) -> tuple[list[Row], bool]:
    """Every row, written as it comes, and whether Ctrl-C ended it early."""
    rows: list[Row] = []
    try:
        for found in running.rows(made, _watch):
            rows = gates.judged([*rows, found])
            _keep(folder, rows)
            console.note(_line(rows[-1]))
    except KeyboardInterrupt:
        return rows, True
    return rows, False


def _keep(folder: Path, rows: Sequence[Row]) -> None:
    """All rows: a new one may be the peer that an older one is judged by."""
    for one in rows:
        name = ready.slug(f"{one.identity.arm}-{one.identity.repeat}")
        row.write(folder / f"{name}.json", one)


@contextmanager
def _watch(turn: Turn) -> Iterator[Callable[[events.Event], None]]:
    """A live view of a process, below a line that names it."""
    console.note(f"process {turn.order} of {turn.total}: {turn.arm}, repeat {turn.repeat}")
    if not console.err.is_terminal:
        yield _unseen
        return
    with console.TrainView() as view:

        def show(event: events.Event) -> None:
            if isinstance(event, events.Step | events.Phase | events.Note):
                view(event)

        yield show


def _unseen(event: events.Event) -> None:
    """Where nobody looks, a line for each process is enough; and what becomes of Ctrl-C."""
    if isinstance(event, events.Note) and event.text == launch.STOPPING:
        console.note(event.text)


def _line(found: Row) -> str:
    place = f"{found.identity.arm} {found.identity.repeat}"
    failed = found.validity.failed
    if failed:
        told = "; ".join(f"{gate.name}: {gate.measured}" for gate in failed)
        return f"  {place} counts not: {told}"
    return (
        f"  {place}: {table.rate(found.rates.trained_tokens_per_s)} trained tokens/s, step "
        f"{table.seconds(found.time.step_median_s)}, first step after "
        f"{table.seconds(found.time.to_first_step_s)}"
    )


def _finish(folder: Path, rows: Sequence[Row]) -> Summary:
    """Summary, plots and page."""
    summary = statistics.summarise(rows)
    row.write(folder / row.SUMMARY, summary)
    with console.spinner("drawing"):
        plots.draw(folder, rows, summary)
        page.write(folder, rows, summary)
    return summary


def _answer(folder: Path, rows: Sequence[Row], summary: Summary, *, json: bool) -> None:
    alike = {re.sub(r"\d+", "", text): text for one in rows for text in one.notes}
    for text in alike.values():  # such as how busy the machine was, once
        console.note(f"note: {text}")
    console.figures(table.columns(), table.lines(rows, summary))
    console.note(summary.statement)
    if json:
        console.as_json(row.as_dict(summary))
    else:
        console.answer(str(folder))


def _require_valid(rows: Sequence[Row], folder: Path) -> None:
    """Raises TrainError naming an arm of which nothing counts, and why."""
    for name in dict.fromkeys(one.identity.arm for one in rows):
        of_arm = [one for one in rows if one.identity.arm == name]
        if any(one.validity.is_valid for one in of_arm):
            continue
        gate = of_arm[0].validity.failed[0]
        raise TrainError(
            f"no row of {name} is valid; {gate.name}: {gate.measured}, wanted {gate.wanted}",
            where="bench",
            hint=f"{folder} has every row with its gates, and why each matters",
        )
