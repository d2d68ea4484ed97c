"""From the command to the first step: `fastsft train` against a bare script; callbacks' cost.

    python bench/overhead/first_step.py [--repeats 3] [--out FILE]

The arms take turns (A B A B), each in a fresh process, with the same environment, base, token
arrays and sizes of step, on the CPU with Unsloth.  A is `fastsft train tiny-qwen2.5`, as a user
types it; B is `bare.py`, which imports, loads and trains one step, and proves nothing first.  The
rows are in fastsft's cache before the first repeat: preparing them is measured elsewhere.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from fastsft import base, events, launch, recipe_file, start
from fastsft.run import Run

DEMO = Path(start.__file__).parent / "demo" / "train.jsonl"
FASTSFT = Path(sys.executable).with_name("fastsft")
BARE = Path(__file__).with_name("bare.py")
STEPS = 12
SETS = [
    f"data.path={DEMO}",
    "train.epochs=null",
    f"train.steps={STEPS}",
    "train.save_every_steps=1000",
    "eval.share=0",
    "eval.every_steps=null",
]
TO_FIRST_STEP = ("import", "load", "matmul", "preflight", "first_step")


def ours(runs: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Seconds of `fastsft train` to the end of its first step, and what they went into."""
    before = set(runs.iterdir()) if runs.exists() else set()
    sets = [word for one in SETS for word in ("--set", one)]
    command = [FASTSFT, "train", "tiny-qwen2.5", *sets, "--runs", runs]
    began = time.time()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (folder,) = set(runs.iterdir()) - before
    told = [event for event, _ in events.read(Run(folder).events_path)]
    steps = [event for event in told if isinstance(event, events.Step)]
    (measured,) = (event for event in told if isinstance(event, events.Measured))
    whole = steps[0].time_s - began
    phases = {name: measured.phases_s[name] for name in TO_FIRST_STEP}
    return {
        "to_first_step_s": whole,
        "parent_s": whole - sum(phases.values()),
        **{f"{name}_s": seconds for name, seconds in phases.items()},
        "step_s": median(step.seconds for step in steps[1:]),
        "overhead_s": median(step.overhead_s for step in steps[1:]),
    }


def bare(run: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Seconds of the bare script to the end of its first step."""
    began = time.time()
    done = subprocess.run(
        [sys.executable, BARE, run], env=environment, check=True, capture_output=True, text=True
    )
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("first step"))
    return {"to_first_step_s": float(line.split()[-1]) - began}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, launch.scratch_folder() as scratch:
        runs, environment = Path(place) / "runs", launch.environment(scratch)
        recipe = recipe_file.load("tiny-qwen2.5", SETS)
        found = base.resolve(recipe.model)
        rows = start.prepare_rows(recipe, found)
        peer = start.start(recipe, found, rows, runs=Path(place) / "peer", name="peer")
        record: dict[str, list[Any]] = {"fastsft": [], "bare": [], "load": []}
        for _ in range(asked.repeats):
            record["load"].append(os.getloadavg()[0])
            record["fastsft"].append(ours(runs, environment))
            record["bare"].append(bare(peer.folder, environment))
            print(json.dumps({arm: values[-1] for arm, values in record.items()}), flush=True)
    text = json.dumps({**summary(record), **record}, indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


def summary(record: dict[str, list[Any]]) -> dict[str, Any]:
    """Medians, and their ratios."""
    middle = {key: median(one[key] for one in record["fastsft"]) for key in record["fastsft"][0]}
    peer = median(one["to_first_step_s"] for one in record["bare"])
    whole = middle["to_first_step_s"]
    return {
        "what": "seconds from command to end of first step, tiny-qwen2.5, Unsloth on a CPU",
        "fastsft_median": middle,
        "bare_median_s": peer,
        "ratio": whole / peer,
        "ratio_without_preflight": (whole - middle["preflight_s"]) / peer,
        "callbacks_share_of_a_step": middle["overhead_s"] / middle["step_s"],
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
