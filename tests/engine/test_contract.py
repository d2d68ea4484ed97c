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

from fastsft import launch, recipe_file
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
from unsloth.models._utils import skip_checkpointing

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


def skipping(kept):
    # One step of a small model: Unsloth keeps so many layers, the others are recomputed.
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 100, "use_cache": False}
    heads = {"num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape, **heads)).train()
    calls = [0] * 6

    def heard(index):
        def count(module, arguments):
            calls[index] += 1
        return count

    for index, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(heard(index))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    skip_checkpointing(model, kept)
    model.gradient_checkpointing_enable({"use_reentrant": True})  # as the trainer does once more
    ids = torch.arange(40).reshape(2, 20)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    recipe = recipe_file.load("qwen2.5-0.5b", ["train.gradient_checkpointing=standard"])
    asked = recipe.train.model_copy(update={"checkpoint_skip_layers": 2})
    recipe = recipe.model_copy(update={"train": asked})
    resolved = settings.resolve(recipe, settings.Device("cuda", True), rows=1000)
    return {
        "loss": float(loss),
        "gradient": float(norm),
        "calls": calls,
        "kept": load.kept_layers(model),
        "differing from 2": load.differing(model, recipe, resolved),
    }


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
    "skipping": [skipping(kept) for kept in (0, 2, 6)],
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


def test_a_kept_layer_is_computed_once_and_the_others_twice(report: dict[str, Any]):
    none, two, all_ = report["skipping"]

    assert none["calls"] == [2, 2, 2, 2, 2, 2]
    assert two["calls"] == [2, 2, 1, 2, 2, 1]
    assert all_["calls"] == [1, 1, 1, 1, 1, 1]
    assert [told["kept"] for told in report["skipping"]] == [0, 2, 6]


def test_keeping_layers_changes_neither_loss_nor_gradient(report: dict[str, Any]):
    none, *kept = report["skipping"]

    assert none["gradient"] > 0
    for told in kept:
        assert told["loss"] == pytest.approx(none["loss"], rel=1e-6)
        assert told["gradient"] == pytest.approx(none["gradient"], rel=1e-6)


def test_a_request_to_keep_layers_that_was_not_met_is_told(report: dict[str, Any]):
    none, two, all_ = (told["differing from 2"] for told in report["skipping"])

    assert none == {"checkpoint_skip_layers": ["2", "0"]}
    assert two == {}
    assert all_ == {"checkpoint_skip_layers": ["2", "6"]}


def test_no_layer_is_kept_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("UNSLOTH_GC_KEEP_LAYERS", "max")

    assert launch.environment(tmp_path)["UNSLOTH_GC_KEEP_LAYERS"] == "0"


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
