"""Trains several run folders in one process, so that the stack is imported once.  Not a test."""

import os
import sys
import time
from pathlib import Path

from fastsft import events
from fastsft.run import locked, open_run


def main() -> None:
    runs = [open_run(Path(folder)) for folder in sys.argv[1:]]
    if runs[0].recipe().engine == "unsloth":
        import unsloth  # noqa: F401
    _cap_memory()
    from fastsft.engine.session import Session

    for run in runs:
        with locked(run):
            Session(run, events.Log(run.events_path)).train(time.perf_counter())


def _cap_memory() -> None:
    """Let a large card stand in for a smaller one."""
    cap = os.environ.get("FASTSFT_TEST_CAP_GIB")
    if cap:
        import torch

        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, float(cap) * 2**30 / total))


if __name__ == "__main__":
    main()
