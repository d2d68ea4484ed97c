"""A peer trains the same, as far as its engine can, and every change that this takes is told."""

import pytest

from fastsft import recipe_file, shapes
from fastsft.bench import arms, ready
from fastsft.engine.settings import Device
from fastsft.errors import RecipeError
from fastsft.hardware import Gpu
from fastsft.recipe import Recipe

CPU = Device("cpu", has_bfloat16=False)
CUDA = Device("cuda", has_bfloat16=True)


def recipe(*overrides: str, name: str = "tiny-qwen2.5") -> Recipe:
    return recipe_file.load(name, ["data.path=rows.jsonl", *overrides])


def plans(of: Recipe, against: str | None, *, device: Device = CPU) -> list[arms.ArmPlan]:
    return arms.plan("tiny-qwen2.5", of, against, steps=30, device=device)


def test_a_recipe_alone_is_one_arm_named_by_its_engine():
    (arm,) = plans(recipe(), None)

    assert (arm.name, arm.recipe.engine, arm.changes) == ("unsloth", "unsloth", ())


def test_every_arm_has_the_steps_saves_at_the_end_and_evaluates_nothing():
    for arm in plans(recipe("eval.share=0.1", "eval.every_steps=5"), "reference"):
        assert (arm.recipe.train.steps, arm.recipe.train.epochs) == (30, None)
        assert arm.recipe.train.save_every_steps == 30
        assert not arm.recipe.eval.has_rows


def test_the_same_recipe_by_another_engine_differs_in_nothing_else():
    one, other = plans(recipe(), "reference")

    assert (one.name, other.name) == ("unsloth", "reference")
    assert one.recipe == other.recipe.model_copy(update={"engine": "unsloth"})
    assert other.changes == ()


def test_what_the_reference_cannot_honour_is_changed_for_both_and_told():
    own = recipe("train.gradient_checkpointing=unsloth", "train.checkpoint_skip_layers=2")

    for arm in plans(own, "reference", device=CUDA):
        assert arm.recipe.train.gradient_checkpointing == "standard"
        assert arm.recipe.train.checkpoint_skip_layers == 0
        assert set(arm.changes) == {
            "train.gradient_checkpointing: unsloth -> standard, which both engines have",
            "train.checkpoint_skip_layers: 2 -> 0, which both engines have",
        }


def test_what_unsloth_cannot_honour_is_changed_for_both_and_told():
    own = recipe("engine=reference", "model.double_quant=false")

    for arm in plans(own, "unsloth"):
        assert arm.recipe.model.double_quant
        assert arm.changes == ("model.double_quant: False -> True, which both engines have",)


def test_engines_that_would_recompute_otherwise_by_themselves_do_not():
    one, other = plans(recipe("train.gradient_checkpointing=auto"), "reference", device=CUDA)

    assert one.recipe.train.gradient_checkpointing == "standard"
    assert one.recipe.train == other.recipe.train


@pytest.mark.parametrize("name", ["qwen2.5-7b", "qwen2.5-1.5b", "llama-3.1-8b"])
@pytest.mark.parametrize("against", ["reference", "unsloth"])
def test_what_the_planner_settles_is_the_same_for_both_engines(
    name: str, against: str, monkeypatch: pytest.MonkeyPatch
):
    """On 24 GiB the planner would let Unsloth keep layers, which the reference cannot."""
    engine = "unsloth" if against == "reference" else "reference"
    own = recipe(f"engine={engine}", "train.gradient_checkpointing=auto", name=name)
    card = Gpu("NVIDIA GeForce RTX 4090", 24 * 2**30, 23 * 2**30, "580.1", "8.9")
    monkeypatch.setattr(ready, "_card", lambda _: card)
    shape = shapes.of_base(own.model.base)
    monkeypatch.setattr(ready, "shape_of", lambda _: shape)
    order = ready.Order(name, None, (), against, steps=20, warmup=10, repeats=3)

    one, other = ready._settled(order, own, None, [own.data.max_tokens] * 64, CUDA)

    assert one.recipe.train.gradient_checkpointing in ("standard", "none")
    assert one.recipe.train.checkpoint_skip_layers == 0
    assert one.recipe.model_copy(update={"engine": against}) == other.recipe
    assert any("train.gradient_checkpointing: auto -> " in told for told in one.changes)


def test_where_one_engine_cannot_pack_neither_does():
    arms_ = plans(recipe("train.packing=auto"), "reference")

    assert [arm.recipe.train.packing for arm in arms_] == [False, False]
    assert arms_[0].changes == (
        "train.packing: auto -> False, one of the engines does not pack here",
    )


def test_where_both_pack_they_do():
    arms_ = plans(recipe("train.packing=auto"), "reference", device=CUDA)

    assert [arm.recipe.train.packing for arm in arms_] == ["auto", "auto"]


def test_another_recipe_gets_the_same_base_data_and_seed():
    _, other = plans(recipe("train.seed=7"), "tiny-llama")

    assert other.name == "tiny-llama"
    assert other.recipe.model.base == "tiny:qwen2.5"
    assert other.recipe.data == recipe().data
    assert other.recipe.train.seed == 7
    assert "train.seed: 3407 -> 7, to be comparable" in other.changes


def test_the_same_recipe_may_be_its_own_peer():
    names = [arm.name for arm in plans(recipe("lora.rank=8"), "tiny-qwen2.5")]

    assert names == ["tiny-qwen2.5", "tiny-qwen2.5 (2)"]


@pytest.mark.parametrize(
    ("against", "told"),
    [
        ("unsloth", "the recipe's engine is unsloth already"),
        ("refrence", "refrence is neither an engine nor a recipe; did you mean reference?"),
        ("tiny-lama", "did you mean tiny-llama?"),
        ("zzz", "zzz is neither an engine nor a recipe"),
        ("no.yaml", "no such file"),
    ],
)
def test_a_peer_that_is_none_is_refused(against: str, told: str):
    with pytest.raises(RecipeError) as refused:
        plans(recipe(), against)

    assert told in str(refused.value)
