"""Trains several run folders in one process, so that the stack is imported once.  Not a test."""

import sys
import time
from pathlib import Path

from fastsft import events
from fastsft.run import locked, open_run


def main() -> None:
    runs = [open_run(Path(folder)) for folder in sys.argv[1:]]
    if runs[0].recipe().engine == "unsloth":
        import unsloth  # noqa: F401
    from fastsft.engine.session import Session

    for run in runs:
        with locked(run):
            Session(run, events.Log(run.events_path)).train(time.perf_counter())


if __name__ == "__main__":
    main()
