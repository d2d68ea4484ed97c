"""llama.cpp computes from our GGUF what transformers computes from base and adapter."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import CASES, IDS, TYPES, logits, write_all, write_pair
from tiny_models import Pair

from fastsft.export import gguf_lora, llamacpp

pytestmark = pytest.mark.usefixtures("llama_cpp")

MOST = {"f32": 1e-4, "f16": 0.02, "bf16": 0.15}
"""The largest difference of a logit; they spread by 0.7.  Measured: 2e-6, 0.003, 0.045."""
SAMPLE = ("qwen2.5 tied", "llama 3.1", "mistral nemo")


@dataclass(frozen=True)
class Made:
    pair: Pair
    folder: Path
    wanted: np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    done: dict[str, Made] = {}

    def make(case: str) -> Made:
        if case not in done:
            folder = tmp_path_factory.mktemp("gguf")
            pair = write_pair(folder, case)
            write_all(pair, folder / "out")
            done[case] = Made(pair, folder / "out", logits(pair.model))
        return done[case]

    return make


def of_llamacpp(path: Path, **options: Any) -> np.ndarray[Any, Any]:
    with llamacpp.opened(path, context=128, **options) as model:
        return model.logits(IDS)


def cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """The mean over the positions."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / norms).mean())


def close(made: Made, name: str) -> None:
    wanted, got = made.wanted, of_llamacpp(made.folder / f"{name}.gguf")
    if name in MOST:
        assert np.abs(got - wanted).max() < MOST[name]
    if name in ("f32", "f16"):
        assert (got.argmax(axis=1) == wanted.argmax(axis=1)).sum() == 64
    assert cosine(got, wanted) > 0.999


@pytest.mark.parametrize("name", ["f16", "q8_0"])
@pytest.mark.parametrize("case", SAMPLE)
def test_llamacpp_says_what_transformers_says(made, case, name):
    close(made(case), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_llamacpp_says_what_transformers_says_of_every_type(made, case, name):
    close(made(case), name)


@pytest.mark.parametrize(
    "case",
    [
        "llama 3.1",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("qwen2.5", "mistral nemo")),
    ],
)
def test_the_adapter_beside_the_base_says_what_the_merged_model_says(tmp_path, case):
    pair = write_pair(tmp_path, case, use_rslora=True)
    alone = Pair(pair.base, shutil.copytree(pair.base, tmp_path / "alone"), pair.model)
    write_all(alone, tmp_path / "out", types=("f32",))
    gguf_lora.write(
        pair.base, pair.adapter, tmp_path / "lora.gguf", general={"general.type": "adapter"}
    )

    got = of_llamacpp(tmp_path / "out/f32.gguf", lora=tmp_path / "lora.gguf")

    assert np.abs(got - logits(pair.model)).max() < 1e-4
