"""What this machine's runs took against what was predicted, a line of JSON each.  No torch."""

import fcntl
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
from fastsft.errors import FastsftError
from fastsft.run import Run, write_atomically

KEPT = 1000
"""Runs remembered; older ones are forgotten once a fifth more have gathered."""
FEWEST = 3
"""Runs of the same card and engine before other settings are corrected by them: two could agree
by chance.  The same setting is corrected by its own first run."""
BOUNDS = (0.7, 1.4)
"""A ratio beyond is more likely another program's memory, or a fault, than the formulas'."""
LEAST_MARGIN = 0.01
"""Kept even with evidence: the caching allocator's blocks fall differently from run to run."""
CPU = "CPU"


@dataclass(frozen=True)
class Entry:
    """One finished run.  `predicted` and `measured` share their keys; a missing one is not known.

    Bytes are `allocated_bytes`, `reserved_bytes`, `process_bytes` (of the GPU) and `host_bytes`;
    `step_s` is the mean of the steps after the first, predicted as the middle of its range.
    """

    time_s: float
    run: str
    device: str
    base: str
    setting: dict[str, Any]
    predicted: dict[str, float]
    measured: dict[str, float]
    versions: dict[str, str] = field(default_factory=dict)

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
    """The file: `$XDG_STATE_HOME/fastsft/history.jsonl`, by default under ~/.local/state."""
    given = os.environ.get("XDG_STATE_HOME")
    home = Path(given) if given else Path.home() / ".local" / "state"
    return home / "fastsft" / "history.jsonl"


def entries() -> list[Entry]:
    """Every run remembered, oldest first; torn and foreign lines are passed over."""
    try:
        lines = path().read_bytes().splitlines()
    except OSError:
        return []
    return [entry for line in lines if (entry := _entry(line)) is not None]


def _entry(line: bytes) -> Entry | None:
    try:
        return Entry.of(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def correction(
    known: Sequence[Entry], key: str, *, device: str, engine: str, same: Mapping[str, Any]
) -> Correction:
    """How predictions of `key` are corrected on this device.

    By the runs of the setting `same` where there are any, else, from `FEWEST` runs on, by those of
    the engine; the median of measured over predicted.  The margin is the widest spread about it,
    and halves with every four-fold of runs.  Runs on a CPU correct no GPU, nor the reverse.
    """
    here = [e for e in known if e.device == device and e.setting.get("engine") == engine]
    here = [e for e in here if e.ratio(key) is not None]
    exact = [e for e in here if _is_same(e.setting, same)]
    if not exact and len(here) < FEWEST:
        return Correction()
    ratios = [ratio for e in exact or here if (ratio := e.ratio(key)) is not None]
    middle = statistics.median(ratios)
    spread = max(abs(ratio / middle - 1) for ratio in ratios)
    # A spread of so few is too narrow: of a normal one, the next of n lies this far outside.
    margin = LEAST_MARGIN + (spread + LEAST_MARGIN) / len(ratios) ** 0.5
    low, high = BOUNDS
    return Correction(min(max(middle, low), high), margin, len(ratios), bool(exact))


def _is_same(setting: Mapping[str, Any], same: Mapping[str, Any]) -> bool:
    return all(setting.get(key) == value for key, value in same.items())


def record(run: Run) -> None:
    """Remember a finished run.  Never raises: a run is not worth less for it."""
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
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _of_run(run: Run) -> Entry:
    """A run's line, from its manifest and events."""
    manifest = run.manifest()
    planned = manifest["planned"]
    told = list(events.read(run.events_path))
    steps = [event for event, _ in told if isinstance(event, events.Step)]
    vram = next((_vram(asdict(e)) for e, _ in reversed(told) if e.kind == "measured"), {})
    outside = manifest.get("measured") or {}
    process = outside.get("process_vram_peak_bytes") if vram.get("is_at_training", True) else None
    seconds = [step.seconds for step in steps[1:] if step.seconds > 0]
    gpu = manifest.get("gpu")
    return Entry.of(
        {
            "time_s": time.time(),
            "run": run.folder.name,
            "device": gpu["name"] if gpu else CPU,
            "base": manifest["base"]["name"],
            "setting": planned["setting"],
            "predicted": planned["predicted"],
            "measured": {
                "allocated_bytes": vram.get("allocated"),
                "reserved_bytes": vram.get("reserved"),
                "process_bytes": process,
                "host_bytes": outside.get("host_rss_peak_bytes"),
                "step_s": statistics.fmean(seconds) if seconds else None,
            },
            "versions": _versions(manifest),
        }
    )


def _vram(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Peaks of training, and whether they, not loading, are the process's peak too."""
    phases: Mapping[str, Mapping[str, int]] = measured["vram"]
    training = [peaks for phase, peaks in phases.items() if phase != "load"]
    if not training:
        return {}
    most = {key: max(peaks[key] for peaks in training) for key in ("allocated", "reserved")}
    loading = phases.get("load", {}).get("reserved", 0)
    return {**most, "is_at_training": loading <= most["reserved"]}


def _versions(manifest: Mapping[str, Any]) -> dict[str, str]:
    stack = (manifest.get("identity") or {}).get("stack") or {}
    return {name: stack[name] for name in ("torch", "unsloth") if stack.get(name)}
