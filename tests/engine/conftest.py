"""Fixtures of the crash tests: the fork server, and runs that are ready to train."""

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from crash_harness import Server
from tiny_base import write_base, write_rows

from fastsft import base, recipe_file, start
from fastsft.run import Run

RECIPE = """\
engine: reference
model: {{base: {base}, family: qwen2.5, quantization: nf4, dtype: float32}}
data: {{path: {rows}, max_tokens: 128}}
lora: {{rank: 4, alpha: 8, dropout: 0.1}}
train:
  steps: 12
  micro_batch_rows: 2
  accumulation_steps: 2
  learning_rate: 1e-2
  schedule: cosine
  warmup_share: 0.1
  save_every_steps: 1
"""
VARIANTS = {
    "nf4": (),
    "best": (
        "model.quantization=none",
        "train.save_every_steps=2",
        "eval.share=0.2",
        "eval.every_steps=1",
        "eval.keep_best=true",
        "train.learning_rate=6e-2",  # too high, so that the best is not the last
        "train.schedule=constant",
    ),
    "packed": (
        "model.quantization=none",
        "data.max_tokens=256",
        "train.packing=auto",
        "train.steps=null",
        "train.epochs=2",
        "train.accumulation_steps=1",
    ),
    "short": (
        "model.quantization=none",
        "train.steps=4",
        "eval.share=0.2",
        "eval.every_steps=2",
        "eval.keep_best=true",
    ),
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server") / "log")
    yield started
    started.close()


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Gives a run of a variant as `fastsft train` leaves it before the first step."""
    folder = tmp_path_factory.mktemp("ready")
    tiny, rows = write_base(folder / "base"), write_rows(folder / "rows.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE.format(base=tiny, rows=rows))

    @cache
    def make(variant: str) -> Run:
        recipe = recipe_file.load(str(folder / "recipe.yaml"), VARIANTS[variant])
        found = base.resolve(recipe.model)
        prepared = start.prepare_rows(recipe, found)
        return start.start(recipe, found, prepared, runs=folder / "runs", name=variant)

    return make


@pytest.fixture
def new_run(ready: Callable[[str], Run], tmp_path: Path) -> Callable[..., Run]:
    """Gives a copy of a run, of a variant's untouched one by default."""

    def copied(of: str | Run, name: str = "run", *, into: Path = tmp_path) -> Run:
        source = ready(of) if isinstance(of, str) else of
        return Run(Path(shutil.copytree(source.folder, into / name)))

    return copied


@pytest.fixture(scope="session")
def uninterrupted(
    server: Server, ready: Callable[[str], Run], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """Gives the digest of a variant that nothing disturbed."""

    @cache
    def digest(variant: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("uninterrupted") / variant
        run = Run(Path(shutil.copytree(ready(variant).folder, folder)))
        assert server.train(run).code == 0, run.log_path.read_text()[-3000:]
        return server.digest(run)

    return digest
