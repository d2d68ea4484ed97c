"""The training child, `python -m fastsft.engine RUN`: trains the run, writes its events."""

import argparse
import gc
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from fastsft import events
from fastsft.engine import checkpoint
from fastsft.errors import FastsftError, OutOfMemory, TrainError
from fastsft.run import Run, locked, open_run


def main() -> int:
    """Train the run named on the command line; the exit code is the error's."""
    asked = _asked()
    run = open_run(asked.run)
    try:
        with locked(run):
            return _train_and_tell(run, events.Log(run.events_path), asked.vram_cap_gib)
    except TrainError as error:  # the events belong to the process that holds the run
        print(error, file=sys.stderr)
        return error.exit_code


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fastsft.engine")
    parser.add_argument("run", type=Path)
    parser.add_argument("--vram-cap-gib", type=float)
    return parser.parse_args()


def _train_and_tell(run: Run, log: events.Log, vram_cap_gib: float | None) -> int:
    try:
        return _train(run, log, vram_cap_gib)
    except Exception as error:  # the child's top level: every error becomes an event
        traceback.print_exc()
        failure = _named(error)
        with suppress(OSError):  # a full disk takes no event; the exit code is left
            _tell(failure, log)
        return failure.exit_code


def _tell(failure: FastsftError, log: events.Log) -> None:
    log.write(
        events.Failed(
            error=type(failure).__name__,
            what=failure.what,
            where=failure.where,
            hint=failure.hint,
            exit_code=failure.exit_code,
        )
    )
    log.sync()


def _train(run: Run, log: events.Log, vram_cap_gib: float | None) -> int:
    log.write(events.Phase(name="load", detail="importing the training stack"))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # What is imported stays: looking for garbage among it would be a tenth of the import's time.
    gc.disable()
    if run.recipe().engine == "unsloth":
        import unsloth  # noqa: F401  must come before trl, transformers and peft
    from fastsft.engine import probes
    from fastsft.engine.session import Session

    gc.freeze()
    gc.enable()
    if vram_cap_gib is not None:
        probes.cap_vram(vram_cap_gib)
    session = Session(run, log)
    signal.signal(signal.SIGTERM, session.ask_to_stop)
    signal.signal(signal.SIGINT, session.ask_to_stop)
    session.train(time.perf_counter() - probes.process_age_s())
    return 0


def _named(error: Exception) -> FastsftError:
    """The error as one of ours."""
    if isinstance(error, FastsftError):
        return error
    told = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return OutOfMemory(
            told,
            hint="lower train.micro_batch_rows (and raise train.accumulation_steps as much), "
            "data.max_tokens or lora.rank",
        )
    if checkpoint.is_disk_error(error):
        return TrainError(told, hint=checkpoint.DISK_HINT)
    return TrainError(told, hint="train.log in the run folder has the whole story")


if __name__ == "__main__":
    sys.exit(main())
