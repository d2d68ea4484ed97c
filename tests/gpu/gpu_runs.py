"""Runs on synthetic bases for the GPU tests: made, trained in a process, reported.  Not a test.

With FASTSFT_TINY=1 every shape is a tiny one and no GPU is needed, so that these tests can be tried
where there is none; what only a GPU can tell is then not asked.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fastsft import base, estimate, events, hardware, launch, recipe_file, shapes, start, synthetic
from fastsft.data import arrays
from fastsft.engine import settings
from fastsft.recipe import Recipe
from fastsft.run import Run
from fastsft.shapes import Shape

IS_TINY = os.environ.get("FASTSFT_TINY") == "1"
CAP_GIB = 24.0
STEPS = 5
DEMO = Path(start.__file__).parent / "demo" / "train.jsonl"
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not IS_TINY and hardware.gpu() is None, reason="needs a CUDA GPU, or FASTSFT_TINY=1"
    ),
]

Held = Literal["none", "nf4", "stored"]
"""The base in 16 bits; quantised as it is loaded; stored in 4 bits."""
Recompute = Literal["none", "partial", "standard", "unsloth"]


@dataclass(frozen=True)
class Setup:
    """One process's work: a shipped recipe's shape, how its base is held, what is recomputed."""

    recipe: str
    held: Held
    recompute: Recompute
    length: int = 2048
    rows: int = 1
    engine: str = "unsloth"

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.engine}-{self.held}-{self.recompute}-{self.rows}x{self.length}"


@dataclass(frozen=True)
class Done:
    """A finished process: its recipe as it was trained, and what was measured."""

    setup: Setup
    shape: Shape
    recipe: Recipe
    steps: list[events.Step]
    measured: events.Measured
    manifest: dict[str, Any]

    @property
    def allocated(self) -> int:
        """Peak bytes of all steps; 0 on a CPU."""
        phases = [self.measured.vram.get(name, {}) for name in ("first_step", "steady")]
        return max(phase.get("allocated", 0) for phase in phases)

    @property
    def predicted(self) -> estimate.Memory:
        """What the estimator says of this process."""
        asked = estimate.setting_of(self.recipe, length=self.length, rows=self.setup.rows)
        return estimate.memory(self.shape, asked)

    @property
    def length(self) -> int:
        return self.recipe.data.max_tokens

    def record(self) -> dict[str, Any]:
        """For $OUT: what was asked, measured and predicted."""
        predicted = self.predicted
        return {
            "setup": asdict(self.setup),
            "gpu": self.manifest["gpu"],
            "vram_cap_gib": None if IS_TINY else CAP_GIB,
            "resolved": self.manifest["resolved"],
            "requested_versus_effective": self.manifest["requested_versus_effective"],
            "losses": [step.loss for step in self.steps],
            "grad_norms": [step.grad_norm for step in self.steps],
            "step_s": [step.seconds for step in self.steps],
            "phases_s": self.measured.phases_s,
            "vram": self.measured.vram,
            "measured": self.manifest["measured"],
            "predicted": {**asdict(predicted), "allocated": predicted.allocated},
            "allocated": self.allocated,
            "error": self.allocated / predicted.allocated - 1,
        }


def shape_of(recipe: str) -> Shape:
    """The recipe's real shape, or a tiny one of its family."""
    found = shapes.of_base(recipe_file.load(recipe).model.base)
    assert found is not None
    if not IS_TINY:
        return found
    small = {"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 2, "head_dim": 32, "mlp": 256}
    return replace(found, name=f"tiny-{found.name}", vocab=4096, **small)


@cache
def done(setup: Setup) -> Done:
    """Trained, once a session; what was measured goes to $OUT."""
    made, shape = _run(setup)
    cap = None if IS_TINY else CAP_GIB
    launch.train(made, lambda _: None, vram_cap_gib=cap)
    told = [event for event, _ in events.read(made.events_path)]
    found = Done(
        setup,
        shape,
        made.recipe(),
        [event for event in told if isinstance(event, events.Step)],
        next(event for event in told if isinstance(event, events.Measured)),
        made.manifest(),
    )
    report(setup.name, found.record())
    return found


def report(name: str, record: dict[str, Any]) -> None:
    """Prints a record, and keeps it in $OUT where that is set."""
    print(json.dumps({name: record}))
    if "OUT" in os.environ:
        (Path(os.environ["OUT"]) / f"{name}.json").write_text(json.dumps(record, indent=2))


def sets(setup: Setup, folder: Path, *, layers: int) -> list[str]:
    """The recipe's keys for this work, as far as this machine can honour them."""
    length = min(setup.length, 64) if IS_TINY else setup.length
    found = [
        f"engine={setup.engine}",
        f"model.base={folder}",
        f"model.quantization={'none' if setup.held == 'none' else 'nf4'}",
        f"data.path={DEMO}",
        f"data.max_tokens={max(length, 512) if IS_TINY else length}",
        "train.epochs=null",
        f"train.steps={STEPS}",
        f"train.micro_batch_rows={setup.rows}",
        "train.accumulation_steps=1",
        "train.packing=false",
        "eval.share=0",
        "eval.every_steps=null",
        f"train.gradient_checkpointing={checkpointing(setup)}",
    ]
    if IS_TINY:
        return [*found, "model.min_vram_gib=0"]
    return [*found, f"train.checkpoint_skip_layers={layers // 2 * (setup.recompute == 'partial')}"]


def checkpointing(setup: Setup) -> str:
    """The recipe's word; a CPU has no host to move activations to."""
    if setup.recompute == "partial" or (IS_TINY and setup.recompute == "unsloth"):
        return "standard"
    return setup.recompute


def _run(setup: Setup) -> tuple[Run, Shape]:
    """A run whose rows are random and all as long as the recipe allows."""
    shape = shape_of(setup.recipe)
    folder = synthetic.folder_for(shape, nf4=setup.held == "stored")
    recipe = recipe_file.load(setup.recipe, sets(setup, folder, layers=shape.layers))
    settings.resolve(recipe, settings.here(), rows=1)
    found = base.resolve(recipe.model)
    prepared = start.prepare_rows(recipe, found)
    runs = Path(os.environ["XDG_CACHE_HOME"]) / "runs"  # the session's folder: see conftest.py
    made = start.start(recipe, found, prepared, runs=runs, name=setup.name)
    length = recipe.data.max_tokens if not IS_TINY else 64
    rows = synthetic.token_rows(shape.vocab, rows=STEPS * setup.rows, length=length)
    made.tokens_path.unlink()
    writer = arrays.Writer(made.tokens_path)
    writer.append(rows.input_ids, rows.trained)
    writer.finish(rows.index, rows.index.take(np.zeros(0, np.int64)))
    return made, shape
