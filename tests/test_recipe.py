"""The schema: frozen, complete, and every combination that no engine can honour refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from fastsft import families
from fastsft.errors import RecipeError
from fastsft.recipe import ALL_LINEAR, Recipe


def tree(**sections: Any) -> dict[str, Any]:
    """The smallest recipe, with keys of its sections changed."""
    found: dict[str, Any] = {
        "model": {"base": "tiny:qwen2.5", "family": "qwen2.5"},
        "train": {"steps": 10},
    }
    for name, value in sections.items():
        found[name] = found.get(name, {}) | value if isinstance(value, dict) else value
    return found


def faults(**sections: Any) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        Recipe.model_validate(tree(**sections))
    message = refused.value.errors()[0]["msg"]
    return message.removeprefix("Value error, @").splitlines()


def test_the_smallest_recipe_is_complete():
    found = Recipe.model_validate(tree())

    assert found.lora.targets == ALL_LINEAR
    assert (found.engine, found.model.quantization, found.eval.has_rows) == (
        "unsloth",
        "nf4",
        False,
    )


def test_the_rows_of_a_step_are_said_either_way():
    told = Recipe.model_validate(tree(train={"micro_batch_rows": 4, "accumulation_steps": 8}))
    left = Recipe.model_validate(tree(train={"micro_batch_rows": "auto", "rows_per_step": 32}))

    assert told.train.step_rows == left.train.step_rows == 32
    assert told.train.micro_rows == 4


def test_open_micro_batches_are_no_number():
    left = Recipe.model_validate(tree(train={"micro_batch_rows": "auto", "rows_per_step": 32}))

    with pytest.raises(RecipeError, match="still auto"):
        _ = left.train.micro_rows


def test_a_recipe_is_frozen():
    found = Recipe.model_validate(tree())

    with pytest.raises(ValidationError, match="frozen"):
        found.train.seed = 1  # type: ignore[misc]


def test_every_key_has_a_description():
    schema = Recipe.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    keys = [field for section in sections for field in section["properties"].values()]

    assert all("description" in field for field in keys if "$ref" not in field)


def test_the_targets_are_those_of_every_family():
    assert all(family.lora_targets == ALL_LINEAR for family in families.SUPPORTED)


def test_the_families_are_those_that_are_known():
    choices = Recipe.model_json_schema()["$defs"]["Model"]["properties"]["family"]["enum"]

    assert choices == [family.name for family in families.SUPPORTED]


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ({"train": {"steps": None}}, "train.epochs: give train.epochs or train.steps"),
        (
            {"train": {"epochs": 1.0}},
            "train.steps: give either train.epochs or train.steps, not both "
            "(set the other to null)",
        ),
        (
            {"train": {"parameters": "all"}},
            "train.parameters: a 4-bit base cannot be trained itself; "
            "set model.quantization to none",
        ),
        (
            {"engine": "reference", "train": {"gradient_checkpointing": "unsloth"}},
            "train.gradient_checkpointing: engine reference never imports Unsloth; "
            "use standard, none or auto",
        ),
        (
            {"train": {"micro_batch_rows": "auto"}},
            "train.micro_batch_rows: auto splits the rows of one optimizer step; give them as "
            "train.rows_per_step",
        ),
        (
            {"train": {"rows_per_step": 16}},
            "train.rows_per_step: micro_batch_rows times accumulation_steps say it; leave it out, "
            "or set train.micro_batch_rows to auto",
        ),
        (
            {
                "engine": "reference",
                "train": {"gradient_checkpointing": "standard", "checkpoint_skip_layers": 2},
            },
            "train.checkpoint_skip_layers: only engine unsloth keeps some layers; leave it at 0, "
            "or set train.gradient_checkpointing to none",
        ),
        *(
            (
                {"train": {"gradient_checkpointing": kind, "checkpoint_skip_layers": 2}},
                "train.checkpoint_skip_layers: auto chooses them and none keeps all; leave it at "
                "0, or set train.gradient_checkpointing to unsloth or standard",
            )
            for kind in ("auto", "none")
        ),
        (
            {"model": {"double_quant": False}},
            "model.double_quant: Unsloth always double-quantises; leave it true, "
            "or set engine to reference",
        ),
        (
            {"model": {"quantization": "none"}, "export": {"merge_base": "dequantised"}},
            "export.merge_base: the base is not held in 4 bits; leave it at stored",
        ),
        (
            {"lora": {"targets": ("q_proj", "v_proj", "q_proj")}},
            "lora.targets: a layer is named twice",
        ),
        (
            {"data": {"path": "a.jsonl", "sources": ({"path": "b.jsonl"},)}},
            "data.sources: give data.path or data.sources, not both",
        ),
        (
            {"data": {"sources": ({"path": "b.jsonl", "share": 0.5},)}},
            "data.sources: a share is of something: leave at least one source without a share",
        ),
        (
            {
                "data": {
                    "sources": ({"path": "a"}, {"path": "b", "share": 0.95}),
                    "replay": {"path": "c"},
                }
            },
            "data.sources: the shares add up to 1 or more; nothing is left for the other sources",
        ),
        (
            {"method": "pretrain", "data": {"overlength": "error"}},
            "data.overlength: raw text is cut into pieces of data.max_tokens, no token lost; "
            "leave it out",
        ),
        (
            {"method": "pretrain", "data": {"train_on": "all"}},
            "data.train_on: raw text is trained whole; leave it out",
        ),
        *(
            (
                {"method": "pretrain", "data": {key: "chatml"}},
                f"data.{key}: raw text is not rendered; leave it out",
            )
            for key in ("template", "system", "date")
        ),
        (
            {"data": {"sources": ({"path": "a"}, {"path": "b", "share": 0.1, "weight": 2.0})}},
            "data.sources: a source has a weight and a share; give it one of them",
        ),
        (
            {"eval": {"path": "held_out.jsonl", "share": 0.1}},
            "eval.share: give eval.path or eval.share, not both",
        ),
        (
            {"eval": {"every_steps": 10}},
            "eval.every_steps: there are no held-out rows; set eval.share (say 0.05) or eval.path",
        ),
        ({"eval": {"share": 0.1, "keep_best": True}}, "eval.keep_best: needs eval.every_steps"),
        (
            {"eval": {"share": 0.1, "every_steps": 10, "patience": 3}},
            "eval.patience: early stopping keeps the best adapter; set eval.keep_best to true too",
        ),
    ],
)
def test_what_no_engine_can_honour_is_refused(sections: dict[str, Any], fault: str):
    assert faults(**sections) == [fault]


def test_a_step_has_no_more_rows_than_one_at_a_time_can_make():
    assert faults(train={"micro_batch_rows": "auto", "rows_per_step": 4097}) == [
        "Input should be less than or equal to 4096"
    ]


def test_each_combination_has_its_case():
    marks = test_what_no_engine_can_honour_is_refused.pytestmark  # type: ignore[attr-defined]
    told = {case[1] for case in marks[0].args[1]}
    known = {f"{key}: {cure}" for _, key, cure in Recipe.model_validate(tree())._combinations()}

    assert told == known


def test_combinations_are_reported_together():
    found = faults(train={"steps": None, "parameters": "all"}, eval={"keep_best": True})

    assert [fault.partition(":")[0] for fault in found] == [
        "train.epochs",
        "train.parameters",
        "eval.keep_best",
    ]


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"steps": None, "epochs": 0.5}},
        {"train": {"parameters": "all"}, "model": {"quantization": "none"}},
        {"train": {"packing": True, "steps": None, "epochs": 1.0}},
        {"train": {"packing": "auto"}},
        {"engine": "reference", "train": {"packing": True}},
        {"engine": "reference", "model": {"double_quant": False}},
        {"engine": "reference", "train": {"gradient_checkpointing": "standard"}},
        {"eval": {"share": 0.1, "every_steps": 5, "keep_best": True, "patience": 1}},
        {"eval": {"path": "held_out.jsonl", "every_steps": 5}},
        {"lora": {"targets": ("q_proj",)}},
        {"train": {"micro_batch_rows": "auto", "rows_per_step": 16}},
        {"train": {"gradient_checkpointing": "unsloth", "checkpoint_skip_layers": 7}},
        {"train": {"gradient_checkpointing": "standard", "checkpoint_skip_layers": 7}},
        {"model": {"quantization": "auto"}},
        {"model": {"quantization": "auto"}, "train": {"parameters": "all"}},
        {"export": {"merge_base": "dequantised"}},
    ],
)
def test_their_honourable_neighbours_are_taken(sections: dict[str, Any]):
    assert Recipe.model_validate(tree(**sections))
