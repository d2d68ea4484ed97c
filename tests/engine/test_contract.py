"""Every argument that the GPU path passes exists in the pinned Unsloth, PEFT and TRL.

One child imports Unsloth's real GPU classes on a machine without a GPU (UNSLOTH_ALLOW_CPU=1),
lets it rewrite TRL's SFT classes as it does on a GPU, and reports; each recipe is one test.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fastsft import recipe_file
from fastsft.engine import settings

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="Unsloth is installed on Linux only"
)

CHILD = """
import dataclasses, inspect, json, sys
from pathlib import Path
from types import SimpleNamespace

import unsloth
import peft, torch, transformers, trl
from unsloth import FastLanguageModel
from unsloth.models import rl

stock = [field.name for field in dataclasses.fields(trl.SFTConfig)]

# With UNSLOTH_ALLOW_CPU Unsloth leaves TRL alone; on a GPU it does this at import.
rl._patch_trl_rl_trainers("sft_trainer")

from fastsft import recipe_file
from fastsft.engine import load, settings, sft


def explicit(function):
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in named]


def of_recipe(name):
    recipe = recipe_file.load(name)
    resolved = settings.resolve(recipe, settings.Device("cuda", True), rows=1000)
    arguments = settings.trainer_arguments(recipe, resolved, str(here / "out"))
    config = trl.SFTConfig(**{**arguments, "use_cpu": True})  # else transformers asks for a GPU
    return {
        "from_pretrained": [*load.unsloth_load_arguments(recipe, resolved, here)],
        "lora": [*load.lora_arguments(recipe)],
        "adapter": [*load.unsloth_adapter_arguments(recipe, resolved)],
        "trainer": [*arguments],
        "changed": sft.differing(SimpleNamespace(args=config), arguments),
    }


def steps_of_transformers(rows, micro_batch_rows, accumulation_steps, epochs):
    args = SimpleNamespace(
        max_steps=-1,
        num_train_epochs=epochs,
        gradient_accumulation_steps=accumulation_steps,
        include_num_input_tokens_seen="no",
    )
    trainer = SimpleNamespace(
        get_total_train_batch_size=lambda args: micro_batch_rows * accumulation_steps,
        get_sp_size=lambda: 1,
        num_examples=lambda loader: rows,
    )
    loader = torch.utils.data.DataLoader(range(rows), batch_size=micro_batch_rows)
    return transformers.Trainer.set_initial_training_values(trainer, args, loader)[-1]


here = Path(sys.argv[1])
misspelt = trl.SFTConfig(output_dir=str(here), use_cpu=True, learning_rat=1.0)
report = {
    "from_pretrained": explicit(FastLanguageModel.from_pretrained),
    "get_peft_model": explicit(FastLanguageModel.get_peft_model),
    "LoraConfig": explicit(peft.LoraConfig),
    "SFTConfig": [field.name for field in dataclasses.fields(trl.SFTConfig)],
    "stock_SFTConfig": stock,
    "steps": [steps_of_transformers(*case) for case in json.loads(sys.argv[2])],
    "trainer": trl.SFTTrainer.__name__,
    "swallows_a_misspelt_argument": not hasattr(misspelt, "learning_rat"),
    "recipes": {name: of_recipe(name) for name in recipe_file.shipped_names()},
}
(here / "report.json").write_text(json.dumps(report))
"""

CASES = [
    (rows, micro_batch_rows, accumulation_steps, epochs)
    for rows in (1, 16, 17, 1000)
    for micro_batch_rows, accumulation_steps in ((1, 1), (2, 4), (3, 5), (16, 1))
    for epochs in (0.1, 1.0, 1.1, 2.5, 3.0)
]
"""Rows, micro-batch rows, accumulation steps, epochs: how many optimizer steps is that?"""

THROUGH_KWARGS = {"use_dora"}
"""Travels through get_peft_model's **kwargs to PEFT's LoraConfig, where it is looked for."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    here = tmp_path_factory.mktemp("contract")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(recipe_file.__file__).parents[1]),
        "UNSLOTH_ALLOW_CPU": "1",
        "UNSLOTH_AUTO_INSTALL": "0",
        "UNSLOTH_COMPILE_LOCATION": str(here / "compiled"),
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(here), json.dumps(CASES)]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((here / "report.json").read_text())
    return found


def unknown(passed: Iterable[str], accepted: Iterable[str]) -> set[str]:
    return set(passed) - set(accepted)


@pytest.mark.parametrize("name", recipe_file.shipped_names())
def test_unsloth_knows_every_argument_of_a_shipped_recipe(report: dict[str, Any], name: str):
    passed = report["recipes"][name]
    adapter = {*passed["lora"], *passed["adapter"]} - THROUGH_KWARGS

    assert unknown(passed["from_pretrained"], report["from_pretrained"]) == set()
    assert unknown(adapter, report["get_peft_model"]) == set()
    assert unknown(passed["lora"], report["LoraConfig"]) == set()
    assert unknown(passed["trainer"], report["SFTConfig"]) == set()


@pytest.mark.parametrize("name", recipe_file.shipped_names())
def test_trl_as_it_is_knows_every_argument_too(report: dict[str, Any], name: str):
    passed = report["recipes"][name]

    assert unknown(passed["trainer"], report["stock_SFTConfig"]) == set()


def test_transformers_counts_the_same_steps(report: dict[str, Any]):
    shipped = recipe_file.load("tiny-qwen2.5")

    def steps(rows: int, micro_batch_rows: int, accumulation_steps: int, epochs: float) -> int:
        train = {
            "steps": None,
            "epochs": epochs,
            "micro_batch_rows": micro_batch_rows,
            "accumulation_steps": accumulation_steps,
        }
        changed = {"train": shipped.train.model_copy(update=train)}
        return settings.total_steps(shipped.model_copy(update=changed), rows)

    assert [steps(*case) for case in CASES] == report["steps"]


@pytest.mark.parametrize("name", recipe_file.shipped_names())
def test_the_rewritten_config_keeps_every_value(report: dict[str, Any], name: str):
    because_of_this_machine = {"use_cpu", "dataloader_pin_memory"}

    assert set(report["recipes"][name]["changed"]) == because_of_this_machine


def test_the_trainer_is_the_one_that_unsloth_rewrites(report: dict[str, Any]):
    assert report["trainer"] == "UnslothSFTTrainer"


def test_a_wrong_name_is_seen_though_unsloth_would_swallow_it(report: dict[str, Any]):
    name = recipe_file.shipped_names()[0]
    arguments = [*report["recipes"][name]["trainer"], "learning_rat"]

    assert report["swallows_a_misspelt_argument"]
    assert unknown(arguments, report["SFTConfig"]) == {"learning_rat"}
    assert unknown(arguments, report["stock_SFTConfig"]) == {"learning_rat"}
    assert unknown(["max_seq_lenght"], report["from_pretrained"]) == {"max_seq_lenght"}
    assert unknown(["lora_rank"], report["get_peft_model"]) == {"lora_rank"}
    assert unknown(["dora"], report["LoraConfig"]) == {"dora"}
