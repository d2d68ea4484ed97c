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
from contextlib import contextmanager
from pathlib import Path

from fastsft import errors, events
from fastsft.errors import FastsftError, TrainError
from fastsft.run import Run, locked

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL", re.IGNORECASE)
TRACKER_KEYS = ("WANDB_API_KEY",)
POLL_S = 0.1


def environment(scratch: Path, *, trackers: bool = False) -> dict[str, str]:
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
        "UNSLOTH_COMPILE_LOCATION": str(scratch / "unsloth"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "PYTHONUNBUFFERED": "1",
        # Waiting threads sleep: spinning, they made CPU training five times slower on a busy
        # machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        **({} if trackers else {"WANDB_MODE": "disabled"}),
    }


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder for compile caches, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fastsft-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train(run: Run, show: Callable[[events.Event], None]) -> events.Event:
    """Train a run in a child process; its last event: Finished or Stopped.

    The first Ctrl-C lets the child save and stop, the second ends it at once.
    Raises the child's own error, TrainError when it died without a word or the run is held,
    KeyboardInterrupt when Ctrl-C ended it before it could save.
    """
    offset = run.events_path.stat().st_size if run.events_path.exists() else 0
    with scratch_folder() as scratch, run.log_path.open("ab") as log:
        trackers = bool(run.recipe().train.report_to)
        child = subprocess.Popen(
            [sys.executable, "-m", "fastsft.engine", str(run.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(scratch, trackers=trackers),
            start_new_session=True,
        )
        last, was_interrupted = _follow(child, run, offset, show)
    if was_interrupted and child.returncode < 0:
        raise KeyboardInterrupt
    return _verdict(last, child.returncode, run)


def _follow(
    child: subprocess.Popen[bytes], run: Run, offset: int, show: Callable[[events.Event], None]
) -> tuple[events.Event | None, bool]:
    """Show each event as it comes, until the child is gone; the last, and whether Ctrl-C came."""
    last: events.Event | None = None
    interrupts = 0
    while True:
        try:
            is_over = child.poll() is not None
            for event, after in events.read(run.events_path, offset=offset):
                last, offset = event, after
                show(event)
            if is_over:
                return last, interrupts > 0
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            interrupts += 1
            child.send_signal(signal.SIGTERM if interrupts == 1 else signal.SIGKILL)
            text = "saving and stopping; Ctrl-C again ends it at once"
            show(events.Note(text=text if interrupts == 1 else "ended"))
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
