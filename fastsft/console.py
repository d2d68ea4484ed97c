"""The only module that draws.  stdout carries the answer; everything else goes to stderr."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from fastsft import events, meter
from fastsft.errors import FastsftError
from fastsft.hardware import gib
from fastsft.meter import Lap, Rates, Tokens, rates
from fastsft.report_words import visible
from fastsft.sampler import Peaks, Sampler

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)


def error(failure: FastsftError) -> None:
    """`error: where: what`, then the hint."""
    place, _, hint = str(failure).rpartition("\n  hint: ")
    err.print(Text.assemble(("error: ", "bold red"), place), soft_wrap=True)
    err.print(Text.assemble(("  hint: ", "bold"), hint), soft_wrap=True)


def answer(text: str) -> None:
    """The command's answer, as it stands, on stdout."""
    print(text)


def as_json(value: Any) -> None:
    """The command's answer as JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """A line for people."""
    err.print(Text(text), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A table on stdout; tab-separated lines where that is no terminal."""
    if not out.is_terminal:
        for row in rows:
            print("\t".join(row))
        return
    drawn = Table(title=title or None, box=None, pad_edge=False, header_style="bold")
    for name in columns:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    out.print(drawn)


def aside(columns: Sequence[str], rows: Sequence[Sequence[str]], *, first: str = "") -> None:
    """A table for people, on stderr; the row that begins with `first` stands out."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row), style="green" if first and row[0] == first else None)
    if err.is_terminal:
        err.print(drawn)
        return
    for row in rows:
        print("\t".join(row), file=sys.stderr)


def checks(rows: Sequence[Sequence[str]]) -> None:
    """The parity gate's findings: check, file, result, measured, threshold."""
    columns = ("check", "file", "result", "measured", "wanted")
    if not err.is_terminal:
        for row in rows:
            print("\t".join(row), file=sys.stderr)
        return
    colours = {"passed": "green", "failed": "bold red"}
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        drawn.add_column(name, overflow="fold")
    for check, file, result, measured, wanted in rows:
        shown = Text(result, style=colours.get(result, "yellow"))
        drawn.add_row(escape(check), escape(file), shown, escape(measured), escape(wanted))
    err.print(drawn)


def figures(names: Sequence[str], columns: Sequence[Sequence[str]]) -> None:
    """Named figures beside each other, a column for each subject, for people."""
    drawn = Table(box=None, pad_edge=False, show_header=False)
    drawn.add_column(style="bold")
    for _ in columns:
        drawn.add_column(overflow="fold")
    for name, *values in zip(names, *columns, strict=True):
        drawn.add_row(name, *map(escape, values))
    err.print(drawn)


def sample(segments: Sequence[tuple[str, bool]], *, where: str) -> None:
    """One row as the model sees it: trained text in green, the rest dim."""
    shown = [(visible(text), is_trained) for text, is_trained in segments]
    parts = [(text, "green" if is_trained else "dim") for text, is_trained in shown]
    err.print(Text(f"{where}: what is trained is {'green' if err.is_terminal else 'in [[ ]]'}"))
    if err.is_terminal:
        err.print(Text.assemble(*parts), soft_wrap=True)
        return
    marked = "".join(f"[[{t}]]" if trained else t for t, trained in shown)
    err.print(Text(marked), soft_wrap=True)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show that something goes on."""
    if err.is_terminal:
        with err.status(text):
            yield
    else:
        note(text)
        yield


@contextmanager
def row_counter(text: str) -> Iterator[Callable[[int], None]]:
    """Show that rows are read, and how many so far."""
    if not err.is_terminal:
        note(text)
        yield lambda rows: None
        return
    with err.status(text) as status:
        yield lambda rows: status.update(f"{text}: {rows:,}")


@contextmanager
def byte_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes done, with GB/s and time left; called with (done, total)."""
    if not err.is_terminal:
        yield lambda done, total: None
        return
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Phases:
    """Shows what is being checked: `say` names it, a call with (done, total) moves its bar."""

    def __init__(self) -> None:
        columns = ("{task.description}", BarColumn(), "{task.fields[share]}")
        self._progress = Progress(*columns, console=err, disable=not err.is_terminal)
        self._task = self._progress.add_task("", total=None, share="")

    def __enter__(self) -> "Phases":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """What begins now; its end is not known yet."""
        self._progress.reset(self._task, total=None, description=text, share="")

    def __call__(self, done: int, total: int) -> None:
        """How much of it is done."""
        share = f"{done / total:.0%}" if total else ""
        self._progress.update(self._task, completed=done, total=total, share=share)


TO_FIRST_STEP = ("import", "load", "matmul", "preflight", "first_step")


class TrainView:
    """A live view of a run's events; plain lines where stderr is no terminal."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        """`sampler`: the run's, which knows the process's memory."""
        self._sampler = sampler if sampler is not None else Sampler()
        self._steady: Lap | None = None
        self._live = Live(console=err, refresh_per_second=4, auto_refresh=err.is_terminal)
        self._step: events.Step | None = None
        self._first: events.Step | None = None
        self._phase = "starting"
        self._losses: list[float] = []

    def __enter__(self) -> "TrainView":
        if err.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if err.is_terminal:
            self._live.stop()

    def __call__(self, event: events.Event) -> None:
        """Take in one event."""
        match event:
            case events.Step():
                self._count(event)
                self._losses.append(event.loss)
                if not err.is_terminal and _is_told(event):
                    note(_step_line(event, self._left_s()))
            case events.Phase():
                self._phase = f"{event.name}{': ' if event.detail else ''}{event.detail}"
                if not err.is_terminal:
                    note(self._phase)
            case events.Measured():
                err.print(_measured(event, self._sampler.peaks()), soft_wrap=True)
            case _:
                for line in _lines(event):
                    err.print(line, soft_wrap=True)
        if err.is_terminal:
            self._live.update(self._drawn())

    def _count(self, step: events.Step) -> None:
        self._step = step
        if self._first is None:
            self._first = step  # it compiles and fills caches; what follows is steady
            return
        tokens = Tokens(step.trained_tokens, step.real_tokens, step.slots)
        lap = Lap(tokens, step.seconds)
        self._steady = lap if self._steady is None else self._steady + lap

    def _rates(self, step: events.Step) -> str:
        """Tokens per second since the first step; of the first while there is no other."""
        found = rates(self._steady) or Rates(
            step.trained_tokens_per_s, step.real_tokens_per_s, step.slots_per_s
        )
        return f"trained {found.trained:,.0f}  real {found.real:,.0f}  slots {found.slots:,.0f}"

    def _left_s(self) -> float | None:
        first, last = self._first, self._step
        if first is None or last is None or last.step == first.step:
            return None
        pace = (last.time_s - first.time_s) / (last.step - first.step)
        return pace * (last.total_steps - last.step)

    def _drawn(self) -> Text:
        if self._step is None:
            return Text(f"{self._phase} …", style="cyan")
        step = self._step
        done = int(30 * step.step / step.total_steps)
        bar = "━" * done + "─" * (30 - done)
        return Text.assemble(
            (bar, "cyan"),
            f" step {step.step}/{step.total_steps}  epoch {step.epoch:.2f}  left ",
            (_clock(self._left_s()), "bold"),
            "\nloss ",
            (f"{step.loss:.4f}", "bold"),
            f"  gradient {step.grad_norm:.2f}  rate {step.learning_rate:.2e}  ",
            (_spark(self._losses), "green"),
            f"\ntokens/s: {self._rates(step)}   VRAM {gib(step.vram_peak_reserved_bytes)}",
        )


def _measured(event: events.Measured, peaks: Peaks) -> Text:
    """The run in one line; what is not known is n/a."""
    first_s = sum(seconds for name, seconds in event.phases_s.items() if name in TO_FIRST_STEP)
    allocated = meter.whole(event.vram.values()).get("allocated")
    rate = event.trained_tokens_per_s
    share = meter.utilisation(event.hardware_flops_per_s, event.matmul_flops_per_s)
    return Text(
        f"steady: {'n/a' if rate is None else f'{rate:,.0f}'} trained tokens/s; "
        f"first step after {first_s:.1f} s; "
        f"peak VRAM {gib(allocated)} allocated, {gib(peaks.process_vram_bytes)} process; "
        f"RAM {gib(peaks.host_rss_bytes)}; "
        f"computing at {'n/a' if share is None else f'{share:.0%}'} of a plain matmul here"
    )


def _is_told(step: events.Step) -> bool:
    """About twenty lines a run where there is no live view."""
    every = max(1, step.total_steps // 20)
    return step.step == 1 or step.step % every == 0 or step.step == step.total_steps


def _step_line(step: events.Step, left_s: float | None) -> str:
    return (
        f"step {step.step}/{step.total_steps} loss {step.loss:.4f} "
        f"rate {step.learning_rate:.2e} tokens/s trained {step.trained_tokens_per_s:,.0f} "
        f"real {step.real_tokens_per_s:,.0f} slots {step.slots_per_s:,.0f} "
        f"VRAM {gib(step.vram_peak_reserved_bytes)} left {_clock(left_s)}"
    )


def _lines(event: events.Event) -> list[Text]:
    """What a person reads of an event that is no step."""
    match event:
        case events.Settings():
            changed = [
                f"{key}: asked {asked}, got {got}" for key, (asked, got) in event.differing.items()
            ]
            told = "; ".join(changed) or "every setting is as requested"
            return [Text(f"on {event.device}; {told}")]
        case events.Preflight():
            held_out = "" if event.eval_loss is None else f", held-out loss {event.eval_loss:.4f}"
            return [
                Text(
                    f"preflight: longest row {event.longest_row_tokens} tokens{held_out}, "
                    f"save {event.save_bytes / 2**20:.1f} MiB, peak VRAM "
                    f"{gib(event.vram_peak_reserved_bytes)}, {event.seconds:.1f} s"
                )
            ]
        case events.Evaluated():
            best = ", the best so far" if event.is_best else ""
            return [Text(f"step {event.step}: held-out loss {event.loss:.4f}{best}")]
        case events.Saved():
            return [Text(f"saved {event.checkpoint} in {event.seconds:.1f} s", style="dim")]
        case events.Resumed():
            damaged = [Text(f"set aside {entry}", style="yellow") for entry in event.passed_over]
            return [*damaged, Text(f"resuming from {event.checkpoint}")]
        case events.Note():
            return [Text(event.text, style="yellow")]
    return []


def _spark(values: Sequence[float], width: int = 24) -> str:
    """The last values as a small curve."""
    finite = [v for v in values if v == v and abs(v) != float("inf")]
    step = max(1, len(finite) // width)
    shown = finite[::step][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    return "".join("▁▂▃▄▅▆▇█"[int(7 * (v - low) / ((high - low) or 1))] for v in shown)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "n/a"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def facts(pairs: Mapping[str, str]) -> None:
    """Aligned `name  value` lines for people."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        err.print(Text.assemble((f"{name:<{width}}  ", "bold"), value), soft_wrap=True)


def explained(pairs: Mapping[str, str]) -> None:
    """As `facts`, for values that are sentences: on a terminal they wrap beside their names."""
    if not err.is_terminal:
        facts(pairs)
        return
    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(no_wrap=True, style="bold")
    drawn.add_column()
    for name, value in pairs.items():
        drawn.add_row(escape(name), escape(value))
    err.print(drawn)


def questions() -> Iterator[str]:
    """Each line that the user types, until the input ends; blank ones are passed over."""
    while True:
        if sys.stdin.isatty():
            err.print(Text("> ", style="bold"), end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def stream(pieces: Iterator[str]) -> str:
    """Print the pieces on stdout as they come; the whole text."""
    whole = ""
    for piece in pieces:
        whole += piece
        print(piece, end="", flush=True)
    print(flush=True)
    return whole
