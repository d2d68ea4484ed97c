"""Every knob that a recipe offers does train, in both engines, and leaves a result that merges."""

from pathlib import Path

import pytest
from test_engine_parity import losses, make_run, train

from fastsft import events
from fastsft.export import make, trained
from fastsft.run import Run

KNOBS = {
    "all": ("train.parameters=all", "model.quantization=none", "train.learning_rate=1e-4"),
    "dora": ("lora.dora=true", "lora.rslora=true", "lora.targets=[q_proj, down_proj]"),
    "noise": (
        "train.neftune_alpha=5",
        "lora.dropout=0.1",
        "train.weight_decay=0.1",
        "lora.init=gaussian",
        "train.schedule=constant",
        "data.train_on=all",
    ),
    "checkpointing": ("train.gradient_checkpointing=standard", "train.accumulation_steps=2"),
    "best": (
        "eval.share=0.01",
        "eval.every_steps=1",
        "eval.keep_best=true",
        "eval.patience=1",
        "train.learning_rate=1",
        "train.warmup_share=0",  # or the best is the first, which changed nothing
        "train.steps=8",
    ),
}


@pytest.fixture(
    scope="module", params=["unsloth", pytest.param("reference", marks=pytest.mark.slow)]
)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Finished runs of one engine, by knob."""
    folder = tmp_path_factory.mktemp(request.param)
    made = {
        knob: make_run(folder, "qwen2.5", request.param, "train.steps=3", *sets)
        for knob, sets in KNOBS.items()
    }
    train(list(made.values()))
    return made


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_trains_and_its_result_merges(runs: dict[str, Run], tmp_path: Path, knob: str):
    run = runs[knob]

    assert run.is_finished
    assert all(loss == loss for loss in losses(run))
    assert run.manifest()["requested_versus_effective"] == {}
    order = make.Order(tmp_path / "merged")
    report = make.merged(trained.opened(run), order, dtype="base", max_shard_bytes=2**30)
    assert report.tensors == 50


def test_early_stopping_keeps_the_best_adapter(runs: dict[str, Run]):
    told = [event for event, _ in events.read(runs["best"].events_path)]
    evaluations = [event for event in told if isinstance(event, events.Evaluated)]
    finished = next(event for event in told if isinstance(event, events.Finished))

    best = min(evaluations, key=lambda event: event.loss)
    assert finished.best_step == best.step
    assert finished.step == evaluations[-1].step < 8
    meta = (runs["best"].adapter / "manifest.json").read_text()
    assert f'"step": {best.step}' in meta
