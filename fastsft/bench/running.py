"""Runs a bench's processes, each fresh, the arms taking turns; leaves no run folder behind."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from fastsft import events, launch, start
from fastsft.bench.arms import ArmPlan
from fastsft.bench.machine import Load, others_share
from fastsft.bench.measured import Process, Subject, row_of
from fastsft.bench.row import Expected, Row
from fastsft.data.prepare import Prepared
from fastsft.engine.settings import Resolved
from fastsft.errors import ExportError, FastsftError
from fastsft.export import make, make_gguf, trained
from fastsft.export.make import Order
from fastsft.run import Run
from fastsft.sampler import Sampler

SHARD_BYTES = 4 * 2**30
"""As `fastsft export` writes them."""


@dataclass(frozen=True)
class Arm:
    """An arm that is ready: what `auto` means here, and what its steps must be fed."""

    plan: ArmPlan
    resolved: Resolved
    expected: Expected


@dataclass(frozen=True)
class Bench:
    """Everything that the processes need."""

    subject: Subject
    arms: Sequence[Arm]
    prepared: Prepared
    repeats: int
    with_export: bool = False

    @property
    def turns(self) -> list[tuple[int, Arm]]:
        """(Repeat, arm) of each process, in order: A B A B …"""
        return [(repeat, arm) for repeat in range(1, self.repeats + 1) for arm in self.arms]


@dataclass(frozen=True)
class Turn:
    """A process that begins: its place, from 1, among how many."""

    order: int
    total: int
    arm: str
    repeat: int


Watch = Callable[[Turn], AbstractContextManager[Callable[[events.Event], None]]]
"""Shows a process: gets its events as they come."""


def rows(bench: Bench, watch: Watch) -> Iterator[Row]:
    """A row of each process as it ends, not judged yet.

    An arm whose process ended with an error gets no further ones: it would end so again.
    Raises KeyboardInterrupt after Ctrl-C, with the process in hand ended.
    """
    broken: set[str] = set()
    for order, (repeat, arm) in enumerate(bench.turns, 1):
        if arm.plan.name in broken:
            continue
        turn = Turn(order, len(bench.turns), arm.plan.name, repeat)
        with watch(turn) as show:
            row = _measured(bench, arm, turn, show)
        if row.error is not None:
            broken.add(arm.plan.name)
        yield row


def _measured(bench: Bench, arm: Arm, turn: Turn, show: Callable[[events.Event], None]) -> Row:
    """One process, from the making of its run folder to the end of it."""
    with tempfile.TemporaryDirectory(prefix="fastsft-bench-", ignore_cleanup_errors=True) as runs:
        recipe, base = arm.plan.recipe, bench.subject.base
        run = start.start(recipe, base, bench.prepared, runs=Path(runs), name="bench")
        process = _trained(bench, arm, turn, run, show)
        if bench.with_export and turn.order == 1 and process.error is None:
            process = _exported(process, Path(runs))
        return row_of(process)


def _trained(
    bench: Bench, arm: Arm, turn: Turn, run: Run, show: Callable[[events.Event], None]
) -> Process:
    sampler, error, seen = Sampler(), None, _Interruptible(show)
    before, began_s = Load.now(), time.time()
    try:
        launch.train(run, seen, vram_cap_gib=bench.subject.vram_cap_gib, sampler=sampler)
    except FastsftError as failure:
        error = f"{type(failure).__name__}: {failure.what}"
    if seen.was_interrupted:
        raise KeyboardInterrupt
    return Process(
        subject=bench.subject,
        arm=arm.plan,
        repeat=turn.repeat,
        order=turn.order,
        run=run,
        resolved=arm.resolved,
        expected=arm.expected,
        samples=list(sampler.samples),
        peaks=sampler.peaks(),
        began_s=began_s,
        others_cpu_share=others_share(before, Load.now()),
        error=error,
    )


class _Interruptible:
    """Shows events, and remembers Ctrl-C: a child in its last step finishes all the same."""

    def __init__(self, show: Callable[[events.Event], None]) -> None:
        self.show, self.was_interrupted = show, False

    def __call__(self, event: events.Event) -> None:
        is_told = isinstance(event, events.Note) and event.text == launch.STOPPING
        self.was_interrupted |= is_told or isinstance(event, events.Stopped)
        self.show(event)


def _exported(process: Process, folder: Path) -> Process:
    """The process with the times of a merge and of a q8_0 GGUF, or why there are none."""
    found = trained.opened(process.run)
    merged, gguf = Order(folder / "merged"), Order(folder / "gguf")
    jobs: dict[str, Callable[[], object]] = {
        "merge_s": lambda: make.merged(found, merged, dtype="base", max_shard_bytes=SHARD_BYTES),
        "gguf_s": lambda: make_gguf.gguf_files(found, gguf, quants=["q8_0"], imatrix=None),
    }
    for name, job in jobs.items():
        began = time.perf_counter()
        try:
            job()
        except ExportError as error:
            process = replace(process, notes=(*process.notes, f"{name[:-2]}: {error.what}"))
            continue
        seconds = time.perf_counter() - began
        process = (
            replace(process, merge_s=seconds)
            if name == "merge_s"
            else replace(process, gguf_s=seconds)
        )
    return process
