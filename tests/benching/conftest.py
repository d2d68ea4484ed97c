"""Benches in a second: children forked from a process that has the stack, on a base of 0.3 MB."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))

from crash_harness import Server
from tiny_base import write_base, write_rows

from fastsft import events, launch
from fastsft.bench import running
from fastsft.run import Run

RECIPE = """\
engine: reference
model: {{base: {base}, family: qwen2.5, quantization: none, dtype: float32}}
data: {{path: {rows}, max_tokens: 128}}
lora: {{rank: 4, alpha: 8}}
train:
  epochs: 3
  micro_batch_rows: 2
  accumulation_steps: 2
  learning_rate: 1e-3
  gradient_checkpointing: {checkpointing}
"""
Sabotage = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server") / "log")
    yield started
    started.close()


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plain.yaml and recomputing.yaml: the same training, with and without
    gradient checkpointing."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny, rows = write_base(folder / "base"), write_rows(folder / "rows.jsonl")
    for name, checkpointing in (("plain", "none"), ("recomputing", "standard")):
        text = RECIPE.format(base=tiny, rows=rows, checkpointing=checkpointing)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def forked(server: Server) -> Iterator[Callable[[list[Sabotage]], None]]:
    """Lets benches train in forked children; the argument sabotages them, in their order."""
    waiting: list[Sabotage] = []

    def train(run: Run, show: Any, *, vram_cap_gib: float | None = None, sampler: Any) -> Any:
        child = server.start(run, waiting.pop(0) if waiting else None)
        last, offset = None, 0
        with sampler.watching(child.pid):
            while True:
                is_gone = child.is_gone()
                for event, after in events.read(run.events_path, offset=offset):
                    last, offset = event, after
                    show(event)
                if is_gone:
                    break
                time.sleep(0.02)
        return launch._verdict(last, child.wait().code, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.launch, "train", train)
        yield lambda sabotages: waiting.__setitem__(slice(None), sabotages)
