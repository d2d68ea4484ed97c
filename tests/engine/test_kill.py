"""A run that is killed at any instant, and resumed, ends as the run that nobody killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from crash_harness import Child, Ended, Server, phase

from fastsft import events, launch
from fastsft.engine import checkpoint
from fastsft.run import Run

KILLS = int(os.environ.get("FASTSFT_KILLS", "100"))
NewRun = Callable[..., Run]
Digest = Callable[[str], dict[str, Any]]


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: what it hit, and the optimizer steps that had to be done again."""

    variant: str
    phase: str
    delay_s: float
    step: int
    resumed_step: int
    lost_steps: int


def is_training(event: events.Event) -> bool:
    return isinstance(event, events.Phase) and event.name == "train"


def kill_after(child: Child, delay_s: float, *, anchor: Callable[..., bool] | None) -> Ended:
    """SIGKILL `delay_s` after the anchor, or after the start."""
    if anchor is None or child.until(anchor):
        time.sleep(delay_s)
        child.signal(signal.SIGKILL)
    return child.wait()


class Killer:
    """Kills one run again and again, until the chosen number is reached."""

    def __init__(self, server: Server, variant: str, run: Run, dice: random.Random) -> None:
        self.server, self.variant, self.run, self.dice = server, variant, run, dice
        self.kills: list[Kill] = []
        self._step = 0  # the furthest that any child came

    def kill(self, most: int, *, longest_s: float) -> None:
        """Up to `most` kills; fewer where the run is finished before."""
        while len(self.kills) < most and not self.run.is_finished:
            is_early = self.dice.random() < 0.15  # while loading, or in the preflight
            delay = self.dice.uniform(0, longest_s)
            child = self.server.start(self.run)
            ended = kill_after(child, delay, anchor=None if is_early else is_training)
            assert ended.code in (0, -signal.SIGKILL), self.run.log_path.read_text()[-3000:]
            if ended.code:
                self._note(ended, delay)

    def _note(self, ended: Ended, delay: float) -> None:
        self._step = max([self._step, *ended.steps])
        valid, passed_over = checkpoint.newest(self.run.checkpoints)
        assert passed_over == []
        kept = valid.step if valid else 0
        lost = max(ended.steps) - kept if ended.steps else 0
        at = phase(ended, self.run)
        self.kills.append(Kill(self.variant, at, delay, self._step, kept, lost))

    def finish(self) -> None:
        if not self.run.is_finished:
            ended = self.server.train(self.run)
            assert ended.code == 0, self.run.log_path.read_text()[-3000:]
        assert self.run.is_finished


def test_five_kills_at_random_instants_change_nothing(
    server: Server, new_run: NewRun, uninterrupted: Digest
):
    killer = Killer(server, "nf4", new_run("nf4"), random.Random(5))

    killer.kill(5, longest_s=0.35)
    killer.finish()

    assert len(killer.kills) == 5
    assert all(kill.lost_steps <= 1 for kill in killer.kills)
    assert server.digest(killer.run) == uninterrupted("nf4")


@pytest.mark.slow
def test_many_kills_at_random_instants_change_nothing(
    server: Server, new_run: NewRun, uninterrupted: Digest, tmp_path: Path
):
    began, dice = time.monotonic(), random.Random(2026)
    kills: list[Kill] = []
    differing: list[str] = []
    trials = 0
    while len(kills) < KILLS:
        variant = ("nf4", "best")[trials % 2]
        killer = Killer(server, variant, new_run(variant, f"trial-{trials}"), dice)
        killer.kill(min(dice.randint(1, 6), KILLS - len(kills)), longest_s=1.0)
        killer.finish()
        if server.digest(killer.run) != uninterrupted(variant):
            differing.append(killer.run.folder.name)
        kills += killer.kills
        trials += 1
    report = {
        "kills": len(kills),
        "by_phase": Counter(kill.phase for kill in kills),
        "resumed": len(kills),
        "lost_steps": Counter(kill.lost_steps for kill in kills),
        "trials": trials,
        "identical": trials - len(differing),
        "differing": differing,
        "seconds": round(time.monotonic() - began, 1),
        "each": [asdict(kill) for kill in kills],
    }
    write_report("kills", report, tmp_path)

    assert differing == []
    assert max(kill.lost_steps for kill in kills) <= 2  # train.save_every_steps
    assert {"train", "save", "rotate"} <= set(report["by_phase"])


def write_report(name: str, report: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(os.environ.get("FASTSFT_REPORT", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report, indent=2))
    print(path, {key: value for key, value in report.items() if key != "each"})


@pytest.mark.slow
def test_a_cold_child_is_killed_twice_and_ends_the_same(
    server: Server, new_run: NewRun, uninterrupted: Digest, tmp_path: Path
):
    run = new_run("nf4")

    for step in (3, 8):
        assert cold(run, tmp_path, kill_at=step) == -signal.SIGKILL
    assert cold(run, tmp_path, kill_at=None) == 0

    assert server.digest(run) == uninterrupted("nf4")


def cold(run: Run, scratch: Path, *, kill_at: int | None) -> int:
    """The exit code of `python -m fastsft.engine RUN`, killed after an optimizer step."""
    offset = run.events_path.stat().st_size if run.events_path.exists() else 0
    with run.log_path.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "fastsft.engine", str(run.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**launch.environment(scratch), "OMP_NUM_THREADS": "1"},
        )
    while kill_at is not None and child.poll() is None:
        told = [event for event, _ in events.read(run.events_path, offset=offset)]
        if any(isinstance(event, events.Step) and event.step >= kill_at for event in told):
            child.kill()
        time.sleep(0.01)
    return child.wait()


# Not at random: at every change of the file system.


@dataclass(frozen=True)
class Crasher:
    """Crashes the short run before its n-th file operation."""

    server: Server
    new_run: NewRun
    log: Path

    def operations(self) -> list[str]:
        """What an undisturbed run does, in order; names without the run's folder."""
        run = self.new_run("short", "counted")
        ended = self.server.train(run, {"crash_at": {"operation": 0, "log": str(self.log)}})
        assert ended.code == 0
        return self.log.read_text().replace(str(run.folder), "").splitlines()

    def crash(self, run: Run, operation: int) -> Ended:
        return self.server.train(run, {"crash_at": {"operation": operation}})

    def survives(self, number: int, *, then: int | None = None) -> Run:
        """The run that was crashed once, or again in its recovery, and was resumed to its end."""
        run = self.new_run("short", f"crashed-{number}-{then}")
        had_one = False
        for operation in (number, *([then] if then else [])):
            ended = self.crash(run, operation)
            assert ended.code == -signal.SIGKILL or run.is_finished
            valid, passed_over = checkpoint.newest(run.checkpoints)
            assert passed_over == []
            had_one = had_one or bool(ended.all(events.Saved))
            assert valid is not None or not had_one
            if run.is_finished:
                return run
        ended = self.server.train(run)
        assert ended.code == 0, run.log_path.read_text()[-3000:]
        return run


@pytest.fixture
def crasher(server: Server, new_run: NewRun, tmp_path: Path) -> Crasher:
    return Crasher(server, new_run, tmp_path / "operations")


def test_a_crash_at_the_edges_of_a_commit_changes_nothing(
    server: Server, crasher: Crasher, uninterrupted: Digest
):
    done = crasher.operations()
    edges = (
        "os.rename /checkpoints/.tmp-step-000003",
        "os.rmdir /checkpoints/.tmp-old-step-000001",
        "os.rename /.tmp-adapter",
    )

    for edge in edges:
        run = crasher.survives(done.index(edge) + 1)

        assert server.digest(run) == uninterrupted("short"), edge


@pytest.mark.slow
def test_a_crash_at_every_file_operation_changes_nothing(
    server: Server, crasher: Crasher, uninterrupted: Digest, tmp_path: Path
):
    began, dice = time.monotonic(), random.Random(7)
    done = crasher.operations()
    differing = []
    for number, what in enumerate(done, start=1):
        again = dice.randint(1, len(done) // 2) if number % 2 else None
        run = crasher.survives(number, then=again)
        if server.digest(run) != uninterrupted("short"):
            differing.append(f"{number} {what}, then {again}")
    report = {
        "operations": len(done),
        "kinds": Counter(what.split()[0] for what in done),
        "crashed_again_in_recovery": (len(done) + 1) // 2,
        "identical": len(done) - len(differing),
        "differing": differing,
        "seconds": round(time.monotonic() - began, 1),
    }
    write_report("crash-points", report, tmp_path)

    assert differing == []
