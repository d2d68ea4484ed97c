"""Runs the grid, cell by cell, each as one `fastsft bench`; one result file a cell, so that a run
that was stopped goes on.  A cell that runs out of memory is a result like any other."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cells import Cell
from fastsft.bench import machine, ready, row
from fastsft.errors import DataError, FastsftError
from fastsft.run import write_atomically

SCHEMA = 1
CELLS = "cells"
COMMAND = (sys.executable, "-c", "from fastsft.cli import main; main()")
COMPLETE = ("measured", "out of memory")
"""Results that --resume does not ask for again; a failed or an invalid cell gets another go."""
TAIL = 30
PATIENCE_S = 60.0
"""How long an interrupted bench may take to put its processes away."""
NO_MEMORY = re.compile(r"\bOutOfMemory\b|CUDA out of memory")
"""Not what is said of a process that SIGKILL ended: that it may have been the memory."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a cell.  `folder`: its rows, below results/; `error`: what went wrong."""

    result: str
    folder: str | None
    error: str | None


Execute = Callable[[Sequence[str]], tuple[int, str]]
"""Runs `fastsft` with these words; gives the exit code and the end of what it said."""


def device() -> str:
    """The GPU's name, or the processor's where there is none."""
    gpu = machine.gpu()
    return gpu.name if gpu else f"cpu {machine.cpu().name}"


def run(
    cells: Sequence[Cell],
    out: Path,
    *,
    on: str,
    resume: bool = False,
    minutes: float | None = None,
    say: Callable[[str], None] = print,
    execute: Execute | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Path]:
    """Measure the cells on device `on`, in order; the files written, one for each.

    `minutes`: no cell begins that would likely not end within them.
    """
    execute = execute or _execute
    began, pace, written = clock(), 1.0, []
    for place, cell in enumerate(cells, 1):
        path = record_path(out, on, cell)
        if resume and is_complete(path):
            say(f"[{place}/{len(cells)}] {cell.id}: is there")
            continue
        spent = clock() - began
        expected = cell.processes * cell.process_s * pace
        if minutes is not None and spent + expected > 60 * minutes:
            say(f"stopped: {cell.id} would take {expected:.0f} s, {60 * minutes - spent:.0f} left")
            break
        say(f"[{place}/{len(cells)}] {cell.id}: about {expected:.0f} s")
        before = clock()
        outcome = _measured(cell, out, execute)
        took = clock() - before
        if outcome.result == "measured":  # what runs out of memory early says nothing of the pace
            pace = took / (cell.processes * cell.process_s)
        _write(path, cell, outcome, took)
        written.append(path)
        say(f"    {outcome.result} in {took:.0f} s{f': {outcome.error}' if outcome.error else ''}")
    return written


def _measured(cell: Cell, out: Path, execute: Execute) -> Outcome:
    """What became of a cell; one that is no bench at all is a failed one."""
    try:
        return measure(cell, out, execute)
    except FastsftError as error:
        return Outcome(result="failed", folder=None, error=str(error).splitlines()[0])


def measure(cell: Cell, out: Path, execute: Execute) -> Outcome:
    """One bench, and what its rows say became of it."""
    before = set(_summaries(out))
    code, told = execute(cell.words(out))
    new = sorted(set(_summaries(out)) - before)
    if not new:
        lines = [line for line in told.splitlines() if line.strip()]
        error = next(
            (line for line in lines if "error" in line.lower()), lines[-1] if lines else ""
        )
        is_memory = bool(NO_MEMORY.search(told))
        result = "out of memory" if is_memory else "failed"
        return Outcome(result=result, folder=None, error=f"exit code {code}: {error.strip()}")
    return _outcome(new[-1].parent)


def _outcome(folder: Path) -> Outcome:
    where = f"{folder.parent.name}/{folder.name}"
    try:
        rows, _ = row.read_folder(folder)
    except DataError as error:
        return Outcome(result="failed", folder=where, error=str(error).splitlines()[0])
    full = [found for found in rows if found.error and NO_MEMORY.search(found.error)]
    rest = [found for found in rows if found.identity.arm not in {r.identity.arm for r in full}]
    errors = [found.error.splitlines()[0] for found in rest if found.error]
    failed = {gate.name for found in rest for gate in found.validity.failed}
    if errors or failed or not rows:
        why = errors[0] if errors else f"gates: {', '.join(sorted(failed))}"
        return Outcome(result="invalid", folder=where, error=why)
    if full:
        others = ", ".join(dict.fromkeys(found.identity.arm for found in rest))
        kept = f"; {others} is measured" if others else ""
        told = f"{full[0].identity.arm}: {(full[0].error or '').splitlines()[0]}{kept}"
        return Outcome(result="out of memory", folder=where, error=told)
    return Outcome(result="measured", folder=where, error=None)


def _summaries(out: Path) -> list[Path]:
    return list((out / "results").glob(f"*/*/{row.SUMMARY}"))


def record_path(out: Path, on: str, cell: Cell) -> Path:
    """Where a cell's result lies: beside the benches of its device."""
    return out / "results" / ready.slug(on) / CELLS / f"{cell.id}.json"


def is_complete(path: Path) -> bool:
    """Whether the cell need not run again: it has a result, and the rows are still there."""
    record = read(path)
    if record is None or record["result"] not in COMPLETE:
        return False
    results = path.parent.parent.parent
    folder = record["folder"]
    return folder is None or (results / folder / row.SUMMARY).is_file()


def read(path: Path) -> dict[str, Any] | None:
    """A cell's record; None where there is none, or one of another schema."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    is_ours = isinstance(record, dict) and record.get("schema") == SCHEMA
    return record if is_ours and {"cell", "result", "folder"} <= set(record) else None


def _write(path: Path, cell: Cell, outcome: Outcome, took: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": SCHEMA,
        "id": cell.id,
        "cell": asdict(cell),
        **asdict(outcome),
        "predicted_process_bytes": _predicted(cell),
        "seconds": round(took, 1),
    }
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def _predicted(cell: Cell) -> int | None:
    try:
        return cell.predicted_bytes()
    except FastsftError:  # the cell has told its fault by itself
        return None


def named_folders(results: Path) -> list[Path]:
    """The benches that are cells' results; what an interrupted cell left is none."""
    records = [read(path) for path in sorted(results.glob(f"*/{CELLS}/*.json"))]
    folders = [results / found["folder"] for found in records if found and found["folder"]]
    return [folder for folder in folders if (folder / row.SUMMARY).is_file()]


def _execute(words: Sequence[str]) -> tuple[int, str]:
    """Run fastsft; its talk goes on to stderr, and the end of it is kept.

    It has a process group of its own, so that Ctrl-C reaches it once, and from here.
    """
    tail: deque[str] = deque(maxlen=TAIL)
    command = [*COMMAND, *words]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
    ) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                tail.append(line)
                sys.stderr.write(f"    {line}")
            child.wait()
        except KeyboardInterrupt:
            _put_away(child)
            raise
    if child.returncode == 128 + signal.SIGINT:  # interrupted by itself alone
        raise KeyboardInterrupt
    return child.returncode, "".join(tail)


def _put_away(child: subprocess.Popen[str]) -> None:
    """Let a bench end its training process and itself; kill it only if it does not."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        child.send_signal(number)
        try:
            child.communicate(timeout=PATIENCE_S)
            return
        except subprocess.TimeoutExpired:
            continue
