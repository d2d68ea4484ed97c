"""On a GPU: real shapes with random weights train in 4-bit through Unsloth under a 24 GiB cap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic

from fastsft import base, events, launch, recipe_file, start
from fastsft.export import make_gguf, trained, verify
from fastsft.export.make import Order
from fastsft.run import Run
from fastsft.weights import Checkpoint, Reader

HARNESS = Path(__file__).parent.parent / "engine" / "many_runs.py"
RECIPES = {"qwen2.5": "qwen2.5-7b", "llama": "llama-3.1-8b", "mistral": "mistral-7b"}
CAP_GIB = 24

pytestmark = pytest.mark.gpu


def long_rows(path: Path, turns: int) -> Path:
    """Rows of about 50 tokens a turn, so that a micro-batch is as large as the recipe says."""
    asked = "Please tell me once more where the kettle from order 4711 is. " * 2
    pair = [{"role": "user", "content": asked}, {"role": "assistant", "content": asked}]
    with path.open("w") as file:
        for number in range(400):
            start_with = [{"role": "user", "content": f"{number} {asked}"}, pair[1]]
            file.write(json.dumps({"messages": start_with + pair * turns}) + "\n")
    return path


@pytest.mark.parametrize("family", RECIPES)
def test_twenty_steps_under_a_24_gib_cap(tmp_path: Path, family: str):
    folder = synthetic.write(family, tmp_path / "base")
    recipe = recipe_file.load(
        RECIPES[family],
        [
            f"model.base={folder}",
            f"data.path={long_rows(tmp_path / 'rows.jsonl', 18)}",
            "train.epochs=null",
            "train.steps=20",
            "data.overlength=error",
            "eval.every_steps=10",
        ],
    )
    found = base.resolve(recipe.model)
    run = start.start(
        recipe, found, start.prepare_rows(recipe, found), runs=tmp_path / "runs", name=family
    )

    with launch.scratch_folder() as scratch:
        environment = launch.environment(scratch) | {"FASTSFT_TEST_CAP_GIB": str(CAP_GIB)}
        done = subprocess.run(
            [sys.executable, str(HARNESS), str(run.folder)],
            env=environment,
            capture_output=True,
            text=True,
        )

    assert done.returncode == 0, done.stderr[-4000:]
    told = [event for event, _ in events.read(run.events_path)]
    steps = [event for event in told if isinstance(event, events.Step)]
    assert len(steps) == 20
    assert all(step.loss == step.loss and 0 < step.grad_norm < float("inf") for step in steps)
    peak = max(step.vram_peak_reserved_bytes or 0 for step in steps)
    assert 0 < peak < CAP_GIB * 2**30
    assert changed(run.adapter / "adapter_model.safetensors")
    assert "requested_versus_effective" in run.manifest()
    report(run.manifest(), family, steps, peak)
    if family == "qwen2.5":
        passes_the_gate(run)


def passes_the_gate(run: Run) -> None:
    """The run exports; every check that can run on this machine passes, the GPU's own too."""
    out = run.exports / "gguf"
    found = trained.opened(run)
    make_gguf.gguf_files(found, Order(out), quants=["q8_0"], imatrix=None)
    verdict = verify.verify(out, found)
    print(verdict.summary)
    verdict.require()


def changed(path: Path) -> bool:
    """Whether any B left zero."""
    weights = Checkpoint.of_files([path])
    with Reader() as reader:
        return any(reader.floats(t).any() for n, t in weights.tensors.items() if "lora_B" in n)


def report(manifest: dict, family: str, steps: list[events.Step], peak: int) -> None:
    """What was measured, for the record; written where $OUT is set."""
    steady = steps[5:]
    record = {
        "gpu": manifest["gpu"],
        "recipe": RECIPES[family],
        "real_tokens_per_s": sum(s.real_tokens_per_s for s in steady) / len(steady),
        "vram_peak_reserved_bytes": peak,
        "losses": [s.loss for s in steps],
        "requested_versus_effective": manifest["requested_versus_effective"],
    }
    print(json.dumps(record))
    if "OUT" in os.environ:
        (Path(os.environ["OUT"]) / f"{family}.json").write_text(json.dumps(record, indent=2))
