"""What each `auto` becomes on a device, what is refused, and how many steps a run has.

That TRL knows every argument, and transformers counts the same steps, is in test_contract.py.
"""

from typing import Any

import pytest

from fastsft.engine import settings
from fastsft.engine.settings import Device
from fastsft.errors import DeviceError, FastsftError, RecipeError
from fastsft.recipe import Recipe

AMPERE, TURING, CPU = Device("cuda", True), Device("cuda", False), Device("cpu", False)


def recipe(**sections: Any) -> Recipe:
    """A small recipe; `train={"packing": True}` changes that key, `engine=...` a top one."""
    tree: dict[str, Any] = {
        "model": {"base": "tiny:qwen2.5", "family": "qwen2.5"},
        "train": {"steps": 10},
    }
    for name, value in sections.items():
        tree[name] = tree.get(name, {}) | value if isinstance(value, dict) else value
    return Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("engine", "device", "dtype", "optimizer", "recomputed"),
    [
        ("unsloth", AMPERE, "bfloat16", "adamw_8bit", "unsloth"),
        ("unsloth", TURING, "float16", "adamw_8bit", "unsloth"),
        ("unsloth", CPU, "float32", "adamw_torch_fused", "none"),
        ("reference", AMPERE, "bfloat16", "adamw_8bit", "standard"),
        ("reference", TURING, "float16", "adamw_8bit", "standard"),
        ("reference", CPU, "float32", "adamw_torch_fused", "none"),
    ],
)
def test_what_auto_becomes(
    engine: str, device: Device, dtype: str, optimizer: str, recomputed: str
):
    found = settings.resolve(recipe(engine=engine), device, rows=100)

    assert (found.dtype, found.optimizer) == (dtype, optimizer)
    assert found.gradient_checkpointing == recomputed
    assert found.device == device


@pytest.mark.parametrize(
    ("asked", "becomes"),
    [
        ("adamw", "adamw_torch_fused"),
        ("adamw_8bit", "adamw_8bit"),
        ("paged_adamw_8bit", "paged_adamw_8bit"),
    ],
)
def test_a_named_optimizer_is_taken(asked: str, becomes: str):
    assert settings.resolve(recipe(train={"optimizer": asked}), AMPERE, rows=1).optimizer == becomes


@pytest.mark.parametrize("asked", ["unsloth", "standard", "none"])
def test_named_checkpointing_is_taken(asked: str):
    wanted = recipe(train={"gradient_checkpointing": asked})

    assert settings.resolve(wanted, AMPERE, rows=1).gradient_checkpointing == asked


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_named_dtype_is_taken(dtype: str):
    assert settings.resolve(recipe(model={"dtype": dtype}), AMPERE, rows=1).dtype == dtype


def test_the_reference_engine_trains_in_bfloat16_on_a_cpu_when_asked():
    wanted = recipe(engine="reference", model={"dtype": "bfloat16"})

    assert settings.resolve(wanted, CPU, rows=1).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changed", "device", "told"),
    [
        (
            {"model": {"dtype": "bfloat16"}},
            TURING,
            "recipe: model.dtype: this GPU has no bfloat16\n"
            "  hint: set model.dtype to float16 or auto",
        ),
        (
            {"train": {"optimizer": "adamw_8bit"}},
            CPU,
            "recipe: train.optimizer: adamw_8bit needs CUDA\n"
            "  hint: set train.optimizer to auto or adamw",
        ),
        (
            {"train": {"optimizer": "paged_adamw_8bit"}},
            CPU,
            "recipe: train.optimizer: paged_adamw_8bit needs CUDA\n"
            "  hint: set train.optimizer to auto or adamw",
        ),
        (
            {"train": {"packing": True}},
            CPU,
            "recipe: train.packing: Unsloth offers no packing on a CPU\n"
            "  hint: set train.packing to auto or false, or engine to reference",
        ),
        (
            {"train": {"gradient_checkpointing": "unsloth"}},
            CPU,
            "recipe: train.gradient_checkpointing: `unsloth` needs CUDA\n"
            "  hint: set train.gradient_checkpointing to auto",
        ),
        (
            {"train": {"gradient_checkpointing": "standard", "checkpoint_skip_layers": 2}},
            CPU,
            "recipe: train.checkpoint_skip_layers: Unsloth keeps layers on CUDA only\n"
            "  hint: set train.checkpoint_skip_layers to 0",
        ),
        (
            {"model": {"dtype": "float16"}},
            CPU,
            "recipe: model.dtype: float16 does not train on a CPU\n"
            "  hint: set model.dtype to auto or float32",
        ),
        (
            {"model": {"dtype": "bfloat16"}},
            CPU,
            "recipe: model.dtype: bfloat16 does not train on a CPU\n"
            "  hint: set model.dtype to auto or float32",
        ),
    ],
)
def test_what_a_device_cannot_honour_is_refused(changed: dict[str, Any], device: Device, told: str):
    with pytest.raises(RecipeError) as refused:
        settings.resolve(recipe(**changed), device, rows=100)

    assert str(refused.value) == told


def test_a_recipe_for_a_card_is_refused_without_one():
    with pytest.raises(DeviceError) as refused:
        settings.resolve(recipe(model={"min_vram_gib": 12.0}), CPU, rows=100)

    assert str(refused.value) == (
        "model.min_vram_gib: this recipe is meant for a GPU with 12 GiB, and none is here\n"
        "  hint: try a tiny recipe (`fastsft recipes`), or --set model.min_vram_gib=0 to run on "
        "the CPU all the same; `fastsft doctor` says what it sees"
    )
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(
    "changed",
    [{"train": {"packing": True}}, {"train": {"optimizer": "adamw_8bit"}}],
)
def test_what_a_cpu_refuses_a_gpu_takes(changed: dict[str, Any]):
    try:
        settings.resolve(recipe(**changed), AMPERE, rows=100)
    except FastsftError as error:
        pytest.fail(str(error))


@pytest.mark.parametrize(
    ("rows", "micro_batch_rows", "accumulation_steps", "epochs", "steps"),
    [
        (16, 2, 4, 1.0, 2),  # 8 micro-batches, 4 a step
        (17, 2, 4, 1.0, 3),  # 9 micro-batches; the last step has one
        (16, 2, 4, 3.0, 6),
        (17, 2, 4, 2.0, 6),  # each epoch ends with its own small step
        (1, 2, 4, 1.0, 1),
        (16, 2, 4, 0.25, 1),  # half a step is a step
        (100, 8, 2, 1.5, 11),  # 13 micro-batches, 7 steps an epoch
        (1000, 3, 5, 0.1, 7),  # 334 micro-batches, 67 steps an epoch
    ],
)
def test_total_steps(
    rows: int, micro_batch_rows: int, accumulation_steps: int, epochs: float, steps: int
):
    wanted = recipe(
        train={
            "steps": None,
            "epochs": epochs,
            "micro_batch_rows": micro_batch_rows,
            "accumulation_steps": accumulation_steps,
        }
    )

    assert settings.total_steps(wanted, rows) == steps


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100])
def test_open_micro_batches_have_the_steps_of_any_split(rows: int):
    def steps(**train: Any) -> int:
        wanted = recipe(train={"steps": None, "epochs": 2.5, **train})
        return settings.total_steps(wanted, rows)

    left = steps(micro_batch_rows="auto", rows_per_step=16)

    splits = {steps(micro_batch_rows=n, accumulation_steps=16 // n) for n in (1, 2, 4, 8, 16)}
    assert splits == {left}


def test_the_trainer_wants_micro_batches_as_a_number():
    wanted = recipe(train={"micro_batch_rows": "auto", "rows_per_step": 16})

    with pytest.raises(RecipeError, match="still auto"):
        arguments(wanted, AMPERE)


@pytest.mark.parametrize(
    ("engine", "device", "packing", "becomes"),
    [
        ("reference", CPU, True, "packed"),
        ("reference", CPU, "auto", "packed"),
        ("reference", AMPERE, True, "packed"),
        ("reference", CPU, False, "padded"),
        ("unsloth", AMPERE, True, "packed"),
        ("unsloth", TURING, "auto", "packed"),
        ("unsloth", AMPERE, False, "padded"),
        ("unsloth", CPU, "auto", "grouped"),
        ("unsloth", CPU, False, "padded"),
    ],
)
def test_how_rows_become_batches(engine: str, device: Device, packing: bool | str, becomes: str):
    wanted = recipe(engine=engine, train={"packing": packing})

    assert settings.resolve(wanted, device, rows=9).batching == becomes
    assert (settings.batching_note(wanted, device) is None) is (becomes != "grouped")


def test_an_auto_that_does_not_pack_says_why():
    told = settings.batching_note(recipe(train={"packing": "auto"}), CPU)

    assert told == (
        "train.packing: Unsloth offers no packing on a CPU; batches of like lengths instead"
    )


@pytest.mark.parametrize(("packing", "items"), [(True, 2), ("auto", 2), (False, 4)])
def test_items_are_rows_or_the_sequences_that_they_pack_into(packing: bool | str, items: int):
    wanted = recipe(engine="reference", data={"max_tokens": 16}, train={"packing": packing})

    assert settings.items(wanted, CPU, [10, 6, 12, 4]) == items


def test_named_steps_are_taken_whatever_the_rows():
    assert settings.resolve(recipe(), CPU, rows=100_000).total_steps == 10


@pytest.mark.parametrize(("share", "steps"), [(0.0, 0), (0.03, 1), (0.1, 1), (0.11, 2), (0.5, 5)])
def test_the_warm_up_is_rounded_up(share: float, steps: int):
    wanted = recipe(train={"warmup_share": share})

    assert settings.resolve(wanted, CPU, rows=1).warmup_steps == steps


def arguments(wanted: Recipe, device: Device) -> dict[str, Any]:
    return settings.trainer_arguments(wanted, settings.resolve(wanted, device, rows=100), "out")


@pytest.mark.parametrize(
    ("device", "bf16", "fp16", "use_cpu"),
    [(AMPERE, True, False, False), (TURING, False, True, False), (CPU, False, False, True)],
)
def test_the_trainer_is_told_the_precision(device: Device, bf16: bool, fp16: bool, use_cpu: bool):
    found = arguments(recipe(), device)

    assert (found["bf16"], found["fp16"], found["use_cpu"]) == (bf16, fp16, use_cpu)
    assert found["dataloader_pin_memory"] is not use_cpu


def test_the_trainer_is_told_what_the_recipe_says(monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda _: True)  # trackers are extras
    wanted = recipe(
        data={"max_tokens": 1024},
        train={
            "steps": 40,
            "micro_batch_rows": 3,
            "accumulation_steps": 5,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "neftune_alpha": 5.0,
            "seed": 7,
            "report_to": ("tensorboard",),
        },
        eval={"micro_batch_rows": 6},
    )

    found = arguments(wanted, AMPERE)

    assert {key: found[key] for key in EXPECTED} == EXPECTED


EXPECTED = {
    "max_steps": 40,
    "warmup_steps": 2,
    "per_device_train_batch_size": 3,
    "per_device_eval_batch_size": 6,
    "gradient_accumulation_steps": 5,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "neftune_noise_alpha": 5.0,
    "max_length": 1024,
    "seed": 7,
    "data_seed": 7,
    "report_to": ["tensorboard"],
    "gradient_checkpointing": True,
}


def test_evaluation_rows_follow_training_rows_unless_told():
    assert arguments(recipe(train={"micro_batch_rows": 3}), CPU)["per_device_eval_batch_size"] == 3


def test_nothing_is_reported_to_a_tracker_unless_asked():
    assert arguments(recipe(), CPU)["report_to"] == "none"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logging_nan_inf_filter", False),  # the default logs NaN as 0.0
        ("save_strategy", "no"),  # checkpoints are ours
        ("push_to_hub", False),
        ("packing", False),  # it is done before the trainer sees a row
        ("padding_free", False),  # None would let Unsloth decide
        ("use_cache", False),  # with a cache, packed documents see each other
        ("completion_only_loss", False),  # the labels are ours
        ("assistant_only_loss", False),
        ("dataset_kwargs", {"skip_prepare_dataset": True}),
        ("auto_find_batch_size", False),
    ],
)
def test_what_no_recipe_may_change(key: str, value: object):
    assert arguments(recipe(), AMPERE)[key] == value
