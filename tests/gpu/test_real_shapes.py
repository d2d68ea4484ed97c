"""On a GPU: chats train on real shapes in 4 bits through Unsloth, and what is exported behaves."""

import json
from pathlib import Path

import gpu_runs
import pytest
from gpu_runs import IS_TINY

from fastsft import base, events, launch, recipe_file, start, synthetic
from fastsft.export import make_gguf, trained, verify
from fastsft.export.make import Order
from fastsft.run import Run
from fastsft.weights import Checkpoint, Reader

pytestmark = gpu_runs.NEEDS_GPU

RECIPES = ("qwen2.5-7b", "llama-3.1-8b", "mistral-7b")
STEPS = 5 if IS_TINY else 20


def long_rows(path: Path, turns: int) -> Path:
    """Rows of about 50 tokens a turn, so that a micro-batch is as large as the recipe says."""
    asked = "Please tell me once more where the kettle from order 4711 is. " * 2
    pair = [{"role": "user", "content": asked}, {"role": "assistant", "content": asked}]
    with path.open("w") as file:
        for number in range(400):
            start_with = [{"role": "user", "content": f"{number} {asked}"}, pair[1]]
            file.write(json.dumps({"messages": start_with + pair * turns}) + "\n")
    return path


def trained_run(tmp_path: Path, name: str, *, nf4: bool) -> Run:
    """Finished, on the real shape with random weights, under the cap."""
    folder = synthetic.folder_for(gpu_runs.shape_of(name), nf4=nf4)
    recipe = recipe_file.load(
        name,
        [
            f"model.base={folder}",
            "model.quantization=nf4",
            f"data.path={long_rows(tmp_path / 'rows.jsonl', 1 if IS_TINY else 18)}",
            "train.epochs=null",
            f"train.steps={STEPS}",
            "data.overlength=error",
            "eval.every_steps=10",
            *(["model.min_vram_gib=0"] if IS_TINY else []),
        ],
    )
    found = base.resolve(recipe.model)
    run = start.start(
        recipe, found, start.prepare_rows(recipe, found), runs=tmp_path / "runs", name=name
    )
    launch.train(run, lambda _: None, vram_cap_gib=None if IS_TINY else gpu_runs.CAP_GIB)
    return run


@pytest.mark.parametrize("name", RECIPES)
def test_twenty_steps_under_a_24_gib_cap(tmp_path: Path, name: str):
    run = trained_run(tmp_path, name, nf4=True)

    told = [event for event, _ in events.read(run.events_path)]
    steps = [event for event in told if isinstance(event, events.Step)]
    assert len(steps) == STEPS
    assert all(step.loss == step.loss and 0 < step.grad_norm < float("inf") for step in steps)
    assert changed(run.adapter / "adapter_model.safetensors")
    peak = max(step.vram_peak_reserved_bytes or 0 for step in steps)
    if not IS_TINY:
        assert 0 < peak < gpu_runs.CAP_GIB * 2**30
    report(run.manifest(), name, steps, peak)


def test_an_export_passes_the_gate_on_this_machine_too(tmp_path: Path):
    run = trained_run(tmp_path, "qwen2.5-1.5b", nf4=False)
    found = trained.opened(run)

    make_gguf.gguf_files(found, Order(run.exports / "gguf"), quants=["q8_0"], imatrix=None)

    verdict = verify.verify(run.exports / "gguf", found)
    print(verdict.summary)
    verdict.require()


def changed(path: Path) -> bool:
    """Whether any B left zero."""
    weights = Checkpoint.of_files([path])
    with Reader() as reader:
        return any(reader.floats(t).any() for n, t in weights.tensors.items() if "lora_B" in n)


def report(manifest: dict, name: str, steps: list[events.Step], peak: int) -> None:
    """What was measured, for the record."""
    steady = steps[STEPS // 4 :]
    gpu_runs.report(
        f"chats-{name}",
        {
            "gpu": manifest["gpu"],
            "real_tokens_per_s": sum(s.real_tokens_per_s for s in steady) / len(steady),
            "vram_peak_reserved_bytes": peak,
            "losses": [s.loss for s in steps],
            "requested_versus_effective": manifest["requested_versus_effective"],
        },
    )
