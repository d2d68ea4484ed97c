"""Starts the training child, follows its events, passes on Ctrl-C.  Never imports torch."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsft import errors, events, meter
from fastsft.errors import FastsftError, TrainError
from fastsft.run import Run, locked
from fastsft.sampler import Peaks, Sampler

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
TRACKER_KEYS = ("WANDB_API_KEY",)
POLL_S = 0.1
STOPPING = "saving and stopping; Ctrl-C again ends it at once"
"""Said, as a note, of the first Ctrl-C."""


def environment(
    scratch: Path, *, trackers: bool = False, vram_cap_gib: float | None = None
) -> dict[str, str]:
    """The child's environment: no secrets, no network, no installs, a compile cache of its own."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not SECRET.search(key) or (trackers and key in TRACKER_KEYS)
    }
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UNSLOTH_AUTO_INSTALL": "0",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVML counts them
        "UNSLOTH_GC_KEEP_LAYERS": "0",  # what recomputes is the recipe's to say
        "UNSLOTH_COMPILE_LOCATION": str(scratch / "unsloth"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "PYTHONUNBUFFERED": "1",
        # Waiting threads sleep: spinning, they made CPU training five times slower on a busy
        # machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        **({} if trackers else {"WANDB_MODE": "disabled"}),
        **(like_a_card_of(vram_cap_gib) if vram_cap_gib is not None else {}),
    }


SMALL_CARD_GIB = 24.5


def like_a_card_of(vram_gib: float) -> dict[str, str]:
    """What keeps Unsloth's loss from seeing that the card is larger than its cap.

    Its chunks of logits take up to 2 GiB or half of what is free (the child tells it what would
    be, `engine.probes.cap_vram`); from 4,096 rows on, or on a small card always, it computes them
    in tiles, and it asks the card itself how large it is.  UNSLOTH_CE_LOSS_TARGET_GB is left
    alone: setting it takes the loss off this path, to an older one.
    Source: unsloth_zoo 2026.10.9, `fused_losses/fused_linear.py`.
    """
    least_rows = 0 if vram_gib <= SMALL_CARD_GIB else 4096
    return {
        "UNSLOTH_LOGPROB_CHUNK_GB": "2.0",
        "UNSLOTH_FUSED_LINEAR_FLASH_MIN_ROWS": str(least_rows),
    }


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder for compile caches, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fastsft-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train(
    run: Run,
    show: Callable[[events.Event], None],
    *,
    vram_cap_gib: float | None = None,
    sampler: Sampler | None = None,
) -> events.Event:
    """Train a run in a child process; its last event: Finished or Stopped.

    The child is sampled from outside, by `sampler` where the caller wants the samples; what it
    took goes into the manifest.  `vram_cap_gib`: let a large card stand in for a smaller.
    The first Ctrl-C lets the child save and stop, the second ends it at once.
    Raises the child's own error, TrainError when it died without a word or the run is held,
    KeyboardInterrupt when Ctrl-C ended it before it could save.
    """
    offset = run.events_path.stat().st_size if run.events_path.exists() else 0
    watched = sampler if sampler is not None else Sampler()
    with scratch_folder() as scratch, run.log_path.open("ab") as log:
        trackers = bool(run.recipe().train.report_to)
        child = subprocess.Popen(
            [sys.executable, "-m", "fastsft.engine", str(run.folder), *_cap(vram_cap_gib)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(scratch, trackers=trackers, vram_cap_gib=vram_cap_gib),
            start_new_session=True,
        )
        seen = _Seen(show)
        with watched.watching(child.pid):
            was_interrupted = _follow(child, run, offset, seen)
    _note_measured(run, seen.measured, watched.peaks(), vram_cap_gib)
    if was_interrupted and child.returncode < 0:
        raise KeyboardInterrupt
    return _verdict(seen.last, child.returncode, run)


def _cap(vram_gib: float | None) -> list[str]:
    return [] if vram_gib is None else ["--vram-cap-gib", str(vram_gib)]


class _Seen:
    """Shows each event, and keeps the last of all and what the child measured of itself."""

    def __init__(self, show: Callable[[events.Event], None]) -> None:
        self.show = show
        self.last: events.Event | None = None
        self.measured: events.Measured | None = None

    def __call__(self, event: events.Event) -> None:
        self.last = event
        if isinstance(event, events.Measured):
            self.measured = event
        self.show(event)


def _note_measured(
    run: Run, measured: events.Measured | None, peaks: Peaks, vram_cap_gib: float | None
) -> None:
    """What the process took, from inside and outside, into the manifest."""
    own = meter.whole(measured.vram.values()) if measured is not None else {}
    taken = {
        **{f"{name}_peak_bytes": own.get(name) for name in ("allocated", "active", "reserved")},
        "pinned_peak_bytes": measured.pinned_bytes if measured is not None else None,
        **peaks.as_dict(),
    }
    cap = {"gib": vram_cap_gib, "environment": like_a_card_of(vram_cap_gib or 0)}
    entries = {"measured": taken, **({"vram_cap": cap} if vram_cap_gib is not None else {})}
    # A full disk takes nothing, and a run that another process holds is not ours to write to.
    with suppress(OSError, TrainError), locked(run):
        run.update_manifest(entries)


def _follow(child: subprocess.Popen[bytes], run: Run, offset: int, seen: _Seen) -> bool:
    """Show each event as it comes, until the child is gone; whether Ctrl-C came."""
    interrupts = 0
    while True:
        try:
            is_over = child.poll() is not None
            for event, after in events.read(run.events_path, offset=offset):
                offset = after
                seen(event)
            if is_over:
                return interrupts > 0
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            interrupts += 1
            child.send_signal(signal.SIGTERM if interrupts == 1 else signal.SIGKILL)
            seen.show(events.Note(text=STOPPING if interrupts == 1 else "ended"))
        except BaseException:
            child.kill()
            child.wait()
            raise


def _verdict(last: events.Event | None, code: int, run: Run) -> events.Event:
    match last:
        case events.Failed():
            raise _error(last)
        case events.Finished() | events.Stopped() if code == 0:
            return last
    if code < 0:
        name = signal.Signals(-code).name
        killed = " (the machine may have run out of memory)" if name == "SIGKILL" else ""
        raise TrainError(
            f"the training process was ended by {name}{killed}",
            where=run.folder.name,
            hint=f"`fastsft train --resume {run.folder}` goes on from the last checkpoint",
        )
    if code == TrainError.exit_code:
        with locked(run):  # raises, naming the holder, where another process has the run
            pass
    raise TrainError(
        f"the training process ended with code {code} and no word",
        where=run.folder.name,
        hint=f"{run.log_path} has what it printed",
    )


def _error(failed: events.Failed) -> FastsftError:
    """The child's error, as the class that it was."""
    cls = getattr(errors, failed.error, TrainError)
    error: FastsftError = cls(failed.what, where=failed.where, hint=failed.hint)
    return error
