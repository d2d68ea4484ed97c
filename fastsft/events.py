"""The stream of events: one writer, any readers.  Frozen records, one JSON line each."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened, and when (`time_s`: seconds since 1970)."""

    kind: ClassVar[str]
    time_s: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """The run entered a phase: load, preflight, train, save."""

    kind = "phase"
    name: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings(Event):
    """Each setting that the libraries changed: name -> (requested, effective)."""

    kind = "settings"
    device: str
    differing: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Preflight(Event):
    """What was proved before step 1, and what it took."""

    kind = "preflight"
    longest_row_tokens: int
    eval_loss: float | None
    save_bytes: int
    vram_peak_reserved_bytes: int | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One optimizer step.  Rates are tokens per second over this step; see `meter.py`.

    `seconds`: from the end of the step before, reading the data included, evaluating and saving
    left out; `overhead_s`: what of it our own callbacks took; `recompiles`: graphs that
    torch.compile has made so far; `vram_peak_reserved_bytes`: of this process so
    far.  Logs of earlier versions lack what has a default.
    """

    kind = "step"
    step: int
    total_steps: int
    epoch: float
    loss: float
    grad_norm: float
    learning_rate: float
    trained_tokens_per_s: float
    real_tokens_per_s: float
    slots_per_s: float
    vram_peak_reserved_bytes: int | None
    seconds: float = 0.0
    overhead_s: float = 0.0
    trained_tokens: int = 0
    real_tokens: int = 0
    slots: int = 0
    documents: int = 0
    attention_pairs: int = 0
    micro_batches: int = 0
    recompiles: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """Held-out loss after a step."""

    kind = "evaluated"
    step: int
    loss: float
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint was committed."""

    kind = "saved"
    step: int
    checkpoint: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """Training goes on from a checkpoint; `passed_over` names newer ones that were not whole."""

    kind = "resumed"
    step: int
    checkpoint: str
    passed_over: list[str]


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """Something the user should know."""

    kind = "note"
    text: str


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The run ended with an error."""

    kind = "failed"
    error: str
    what: str
    where: str | None
    hint: str
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The run was asked to stop, saved, and can be resumed."""

    kind = "stopped"
    step: int
    total_steps: int


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """What one process measured of itself; written once, just before Finished or Stopped.

    `phases_s`: seconds of import (from the start of the process), load, preflight, first_step,
    train (all steps), save and eval (all of them).  `vram`: phase (load, preflight, first_step,
    steady) -> peaks in bytes by name (allocated, active, reserved); empty on a CPU.  The rates are
    of the steps after the first; None where there were none, or what is needed is not known.
    `matmul_flops_per_s`: of a square matmul in this process, in the dtype of training;
    `adapter_norm`: of all B together, None without an adapter; `overhead_share`: of the steps'
    time, what our callbacks took.
    """

    kind = "measured"
    order_hash: str
    phases_s: dict[str, float]
    vram: dict[str, dict[str, int]]
    pinned_bytes: int | None
    matmul_flops_per_s: float | None
    model_flops_per_s: float | None
    hardware_flops_per_s: float | None
    trained_tokens_per_s: float | None
    real_tokens_per_s: float | None
    slots_per_s: float | None
    adapter_norm: float | None
    overhead_share: float


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The run is complete; the adapter (or the weights) lie in `result`."""

    kind = "finished"
    step: int
    result: str
    seconds: float
    best_step: int | None


KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        Phase,
        Settings,
        Preflight,
        Step,
        Evaluated,
        Saved,
        Resumed,
        Note,
        Failed,
        Stopped,
        Measured,
        Finished,
    )
}


def to_line(event: Event) -> str:
    """One JSON line; a non-finite number becomes a string, so that the line stays JSON."""
    record = {"kind": event.kind, **asdict(event)}
    return json.dumps({key: _plain(value) for key, value in record.items()}, ensure_ascii=False)


def _plain(value: Any) -> Any:
    is_odd = isinstance(value, float) and (value != value or value in (float("inf"), -float("inf")))
    return str(value) if is_odd else value


def from_line(line: str) -> Event:
    """The event of a line; keys that this version does not know are passed over.

    Raises ValueError for a line that is no event.
    """
    record = json.loads(line)
    cls = KINDS.get(record.pop("kind", ""))
    if cls is None:
        raise ValueError("not an event")
    floats = {f.name for f in fields(cls) if f.type in (float, "float")}
    known = {f.name for f in fields(cls)}
    return cls(**{k: float(v) if k in floats else v for k, v in record.items() if k in known})


class Log:
    """Appends events to a file, each flushed at once."""

    def __init__(self, path: Path) -> None:
        is_torn = _is_torn(path)
        self._file = path.open("a", encoding="utf-8")
        if is_torn:
            self._file.write("\n")

    def write(self, event: Event) -> None:
        """Append one event."""
        self._file.write(to_line(event) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Return once all events are on the disk."""
        os.fsync(self._file.fileno())


def _is_torn(path: Path) -> bool:
    """Whether a crash or a full disk cut the last line short."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def read(path: Path, *, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Events from a byte offset on, each with the offset after it; a half-written one is left."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            offset += len(raw)
            try:
                event = from_line(raw.decode("utf-8"))
            except (ValueError, TypeError):
                continue  # torn by a crash; the next line is whole again
            yield event, offset
