"""Both engines, on a CPU, against each other: the same rows, the same adapter, the same losses."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fastsft import base, events, launch, recipe_file, start
from fastsft.run import Run

HARNESS = Path(__file__).parent / "many_runs.py"
DEMO = Path(start.__file__).parent / "demo" / "train.jsonl"
FAMILIES = ("qwen2.5", "llama", "mistral")
STEPS = 8


def make_run(folder: Path, family: str, engine: str, *sets: str, steps: int = STEPS) -> Run:
    recipe = recipe_file.load(
        f"tiny-{family}",
        [
            f"engine={engine}",
            f"data.path={DEMO}",
            "train.epochs=null",
            f"train.steps={steps}",
            "train.micro_batch_rows=4",
            "train.accumulation_steps=1",
            "train.save_every_steps=1000",
            # At the demo's 2e-3 Adam turns differences of 1e-7 into 1e-3 within twenty steps.
            "train.learning_rate=1e-4",
            "eval.share=0",
            "eval.every_steps=null",
            *sets,
        ],
    )
    found = base.resolve(recipe.model)
    return start.start(recipe, found, start.prepare_rows(recipe, found), runs=folder, name=family)


def train(runs: Sequence[Run]) -> None:
    with launch.scratch_folder() as scratch:
        done = subprocess.run(
            [sys.executable, str(HARNESS), *(str(run.folder) for run in runs)],
            env=launch.environment(scratch),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]


def losses(run: Run) -> list[float]:
    return [e.loss for e, _ in events.read(run.events_path) if isinstance(e, events.Step)]


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest relative difference of two loss curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


CASES = {
    **{f"{family}-float32": (family, ("model.quantization=none",)) for family in FAMILIES},
    "qwen2.5-nf4": ("qwen2.5", ("model.quantization=nf4",)),
    "qwen2.5-1x4": (
        "qwen2.5",
        (
            "model.quantization=none",
            "train.micro_batch_rows=1",
            "train.accumulation_steps=4",
        ),
    ),
}


AUTO_PACKING = ("qwen2.5", ("model.quantization=none", "train.packing=auto"))
"""Not among the cases: the one engine packs, the other does not."""


@pytest.fixture(scope="module", params=[STEPS, pytest.param(20, marks=pytest.mark.slow)])
def steps(request: pytest.FixtureRequest) -> int:
    """How long every case is trained."""
    return int(request.param)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, steps: int) -> dict[tuple[str, str], Run]:
    """Trained runs by (case, engine)."""
    found = {}
    for engine in ("reference", "unsloth"):
        folder = tmp_path_factory.mktemp(engine)
        found |= {
            (case, engine): make_run(folder, family, engine, *sets, steps=steps)
            for case, (family, sets) in (CASES | {"auto packing": AUTO_PACKING}).items()
        }
        train([run for (_, of), run in found.items() if of == engine])
    return found


@pytest.fixture(scope="module")
def curves(runs: dict[tuple[str, str], Run]) -> dict[tuple[str, str], list[float]]:
    """Losses by (case, engine)."""
    return {key: losses(run) for key, run in runs.items()}


# About ten times the largest relative difference seen: float32 sums in another order.
BAND = 5e-6


@pytest.mark.parametrize("case", CASES)
def test_unsloth_and_reference_have_the_same_loss_at_every_step(curves, steps, case):
    unsloth, reference = curves[case, "unsloth"], curves[case, "reference"]

    assert len(unsloth) == steps
    assert len(set(unsloth)) == steps  # every step had rows of its own
    difference = apart(unsloth, reference)
    print(f"{case}: unsloth against reference {difference:.2e}")
    assert difference <= BAND


@pytest.mark.parametrize("engine", ["reference", "unsloth"])
def test_four_rows_at_once_and_one_row_four_times_have_the_same_loss(curves, engine):
    difference = apart(curves["qwen2.5-1x4", engine], curves["qwen2.5-float32", engine])

    print(f"{engine}: 1 x 4 against 4 x 1 {difference:.2e}")
    assert difference <= 1e-5


@pytest.mark.parametrize(("engine", "batching"), [("reference", "packed"), ("unsloth", "grouped")])
def test_auto_packing_is_what_the_engine_can_keep_apart(runs, steps, engine, batching):
    run = runs["auto packing", engine]
    notes = [e.text for e, _ in events.read(run.events_path) if isinstance(e, events.Note)]
    told = {
        "packed": "packed documents are kept apart: largest logit difference",
        "grouped": "train.packing: Unsloth offers no packing on a CPU; "
        "batches of like lengths instead",
    }

    assert run.manifest()["resolved"]["batching"] == batching
    assert any(note.startswith(told[batching]) for note in notes)
    assert len(losses(run)) == steps
