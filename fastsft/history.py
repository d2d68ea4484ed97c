"""What this machine's runs took against what was predicted, a line of JSON each.  No torch."""

import fcntl
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from fastsft import events
from fastsft.errors import DeviceError, FastsftError, OutOfMemory
from fastsft.estimate import FORMULAS
from fastsft.run import Run, write_atomically

KEPT = 1000
"""Runs remembered; older ones are forgotten once a fifth more have gathered."""
FEWEST = 3
"""Runs of the same card and engine before other settings are corrected by them: two could agree
by chance.  The same setting is corrected by its own first run."""
BOUNDS = (0.7, 1.4)
"""A ratio of bytes beyond is more likely another program's memory, or a fault, than the formulas',
and is not used."""
SPEED_BOUNDS = (0.1, 20.0)
"""Of seconds: a busy or a throttled machine is slow by more than the formulas err."""
NEAR = 2.0
"""Runs that were predicted to take so many times as much or as little say nothing of a setting: a
part of the error, the CUDA context, is the same whatever the size."""
LEAST_MARGIN = 0.01
"""Kept even with evidence: the caching allocator's blocks fall differently from run to run."""
CPU = "CPU"
STACK = ("torch", "unsloth")


@dataclass(frozen=True)
class Entry:
    """One run.  `predicted` and `measured` share their keys; a missing one is not known.

    Bytes are `allocated_bytes`, `reserved_bytes`, `process_bytes` (of the GPU) and `host_bytes`;
    `step_s` is the mean of the steps after the first, predicted as the middle of its range.
    `versions`: of torch, Unsloth and our formulas.  `ran_out_of_bytes`: what could be had of the
    GPU where the run failed for want of memory, 0 where it finished.
    """

    time_s: float
    run: str
    device: str
    base: str
    setting: dict[str, Any]
    predicted: dict[str, float]
    measured: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)
    ran_out_of_bytes: float = 0.0

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The entry of a line's object.  Raises ValueError, KeyError or TypeError for another."""
        numbers = {
            part: {k: float(v) for k, v in record[part].items() if isinstance(v, int | float)}
            for part in ("predicted", "measured")
        }
        return cls(
            time_s=float(record["time_s"]),
            run=str(record["run"]),
            device=str(record["device"]),
            base=str(record["base"]),
            setting=dict(record["setting"]),
            versions=dict(record.get("versions") or {}),
            ran_out_of_bytes=float(record.get("ran_out_of_bytes") or 0),
            **numbers,
        )

    def ratio(self, key: str) -> float | None:
        """Measured over predicted; None where one of them is not known."""
        predicted, measured = self.predicted.get(key, 0.0), self.measured.get(key, 0.0)
        return measured / predicted if predicted > 0 and measured > 0 else None


@dataclass(frozen=True)
class Correction:
    """How a prediction is corrected: times `ratio`, and `margin` more as a share of it.

    `margin` None: nothing is known, so the planner's own safety margin stays.
    """

    ratio: float = 1.0
    margin: float | None = None
    runs: int = 0
    is_same_setting: bool = False

    @property
    def words(self) -> str:
        """What it rests on."""
        if not self.runs:
            return "formulas alone: no run of this card and engine was measured here yet"
        kind = "of this very setting" if self.is_same_setting else "of this card and engine"
        return f"{self.runs} measured run{'s' * (self.runs > 1)} {kind}"


def path() -> Path:
    """The file: `$XDG_STATE_HOME/fastsft/history.jsonl`, by default under ~/.local/state.

    Raises DeviceError where the user has no home.
    """
    given = os.environ.get("XDG_STATE_HOME")
    try:
        home = Path(given) if given else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise DeviceError(
            "the user has no home folder", where="history", hint="set XDG_STATE_HOME to a folder"
        ) from error
    return home / "fastsft" / "history.jsonl"


def entries() -> list[Entry]:
    """Every run remembered, oldest first; torn and foreign lines are passed over."""
    try:
        lines = path().read_bytes().splitlines()
    except (OSError, DeviceError):
        return []
    return [entry for line in lines if (entry := _entry(line)) is not None]


def learnt() -> list[Entry]:
    """The runs that speak of the next: of these formulas, this torch and this Unsloth."""
    now = versions({name: _version(name) for name in STACK})
    return [entry for entry in entries() if entry.versions == now]


def versions(stack: Mapping[str, str | None]) -> dict[str, str]:
    """What the figures of a run hold for: our formulas, and of these packages torch and Unsloth."""
    known = {name: found for name in STACK if (found := stack.get(name))}
    return {"formulas": str(FORMULAS), **known}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _entry(line: bytes) -> Entry | None:
    try:
        return Entry.of(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def correction(
    known: Sequence[Entry],
    key: str,
    *,
    device: str,
    engine: str,
    same: Mapping[str, Any],
    predicted: float | None = None,
) -> Correction:
    """How predictions of `key` are corrected on this device.

    By the runs of the setting `same` where there are any, else, from `FEWEST` runs on, by those of
    the engine; the median of measured over predicted.  The margin is the widest spread about it,
    and halves with every four-fold of runs.  Runs on a CPU correct no GPU, nor the reverse; with
    `predicted` only those within `NEAR` times of it count.
    """
    here = [e for e in known if e.device == device and e.setting.get("engine") == engine]
    here = [e for e in here if _is_sane(e, key) and _is_near(e.predicted[key], predicted)]
    exact = [e for e in here if _is_same(e.setting, same)]
    if not exact and len(here) < FEWEST:
        return Correction()
    ratios = [ratio for e in exact or here if (ratio := e.ratio(key)) is not None]
    middle = statistics.median(ratios)
    spread = max(abs(ratio / middle - 1) for ratio in ratios)
    # A spread of so few is too narrow: of a normal one, the next of n lies this far outside.
    margin = LEAST_MARGIN + (spread + LEAST_MARGIN) / len(ratios) ** 0.5
    return Correction(middle, margin, len(ratios), bool(exact))


def _is_sane(entry: Entry, key: str) -> bool:
    low, high = SPEED_BOUNDS if key == "step_s" else BOUNDS
    ratio = entry.ratio(key)
    # DoRA is not modelled: its runs say nothing of others.
    return ratio is not None and low <= ratio <= high and not entry.setting.get("is_dora")


def _is_near(one: float, other: float | None) -> bool:
    return other is None or one / NEAR <= other <= one * NEAR


BASE_KEYS = ("shape", "params", "engine", "quantization")


def proved_too_little(
    known: Sequence[Entry], *, device: str, same: Mapping[str, Any], predicted: float
) -> int:
    """Bytes of the GPU that a setting needs more than, by runs that ran out of memory; or 0.

    By those of the same base and engine that were predicted to take no more than this one's
    `predicted` bytes, unless one that was to take as much has finished since.
    """
    base = {key: same.get(key) for key in BASE_KEYS}
    alike = [e for e in known if e.device == device and _is_same(e.setting, base)]
    most = 0.0
    for entry in alike:
        size = entry.predicted.get("process_bytes", 0.0)
        if entry.ran_out_of_bytes and 0 < size <= predicted:
            most = max(most, entry.ran_out_of_bytes * predicted / size + 1)
        elif not entry.ran_out_of_bytes and size >= predicted:
            most = 0.0
    return int(most)


def _is_same(setting: Mapping[str, Any], same: Mapping[str, Any]) -> bool:
    return all(setting.get(key) == value for key, value in same.items())


def record(run: Run) -> None:
    """Remember a finished run, or one that ran out of memory.

    Never raises: a run is not worth less for it.
    """
    try:
        _append(_of_run(run))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, FastsftError):
        return


def _append(entry: Entry) -> None:
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        kept = entries()
        if len(kept) >= KEPT * 6 // 5:
            lines = [json.dumps(asdict(e)) for e in [*kept, entry][-KEPT:]]
            write_atomically(target, "\n".join(lines) + "\n")
            return
        with target.open("ab") as file:
            # A line of its own, whatever a crash left before it.
            file.write(f"{_break(target)}{json.dumps(asdict(entry))}\n".encode())


def _break(target: Path) -> str:
    raw = target.read_bytes()[-1:]
    return "\n" if raw not in (b"", b"\n") else ""


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    with target.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a network's disk may never grant it
        yield


def _of_run(run: Run) -> Entry:
    """A run's line, from its manifest and events.

    Raises ValueError where the engine trained another setting than was planned, or ran out of the
    memory of another device.
    """
    manifest = run.manifest()
    if {"gradient_checkpointing", "checkpoint_skip_layers"} & set(
        manifest.get("requested_versus_effective") or {}
    ):
        raise ValueError("what was predicted is not what was trained")
    planned = manifest["planned"]
    told = [event for event, _ in events.read(run.events_path)]
    planned_for = (manifest.get("gpu") or {}).get("name", CPU)
    device = manifest.get("device") or planned_for
    last = told[-1] if told else None
    ran_out = isinstance(last, events.Failed) and last.error == OutOfMemory.__name__
    if ran_out and device != planned_for:
        raise ValueError("what could be had of that device is not known")
    return Entry.of(
        {
            "time_s": time.time(),
            "run": run.folder.name,
            "device": device,
            "base": manifest["base"]["name"],
            "setting": planned["setting"],
            "predicted": planned["predicted"],
            "measured": {}
            if ran_out
            else _measured(manifest, told, has_moved=device != planned_for),
            "versions": versions((manifest.get("identity") or {}).get("stack") or {}),
            "ran_out_of_bytes": planned["usable_bytes"] if ran_out else 0,
        }
    )


def _measured(
    manifest: Mapping[str, Any], told: Sequence[events.Event], *, has_moved: bool
) -> dict[str, float | None]:
    """What the run took; `has_moved`: on another device than it was planned for, by a resume."""
    vram = next((_vram(asdict(e)) for e in reversed(told) if e.kind == "measured"), {})
    outside = manifest.get("measured") or {}
    is_ours = not outside.get("is_vram_by_difference") and not outside.get("others")
    is_peak = is_ours and vram.get("is_at_training", True)
    return {
        "allocated_bytes": vram.get("allocated"),
        "reserved_bytes": vram.get("reserved"),
        "process_bytes": outside.get("process_vram_peak_bytes") if is_peak else None,
        "host_bytes": None if has_moved else outside.get("host_rss_peak_bytes"),
        "step_s": None if has_moved else _step_s(told),
    }


def _step_s(told: Sequence[events.Event]) -> float | None:
    """Mean seconds of the last process's steps after its first, which compiles."""
    steps: list[events.Step] = []
    for event in told:
        if isinstance(event, events.Resumed):
            steps = []
        elif isinstance(event, events.Step):
            steps.append(event)
    seconds = [step.seconds for step in steps[1:] if step.seconds > 0]
    return statistics.fmean(seconds) if seconds else None


def _vram(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Peaks of training, and whether they, not loading, are the process's peak too."""
    phases: Mapping[str, Mapping[str, int]] = measured["vram"]
    training = [peaks for phase, peaks in phases.items() if phase != "load"]
    if not training:
        return {}
    most = {key: max(peaks[key] for peaks in training) for key in ("allocated", "reserved")}
    loading = phases.get("load", {}).get("reserved", 0)
    return {**most, "is_at_training": loading <= most["reserved"]}
