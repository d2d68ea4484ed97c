"""The sizes of the shipped models, held against official totals and transformers' own models."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastsft import recipe_file, shapes
from fastsft.demo.tiny import BASE
from fastsft.errors import DataError
from fastsft.recipe import ALL_LINEAR
from fastsft.weights import Checkpoint

RECIPES = Path(__file__).parent.parent / "recipes"

OFFICIAL = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b": 70_553_706_496,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
}
"""Parameters as the models' pages on huggingface.co give them."""

# Model, linear weights and head in billions, adapter of rank 16 in millions.
TABLE = (
    ("qwen2.5-0.5b", 0.358, 0.136, 8.8),
    ("qwen2.5-1.5b", 1.310, 0.233, 18.5),
    ("qwen2.5-3b", 2.775, 0.311, 29.9),
    ("qwen2.5-7b", 6.525, 0.545, 40.4),
    ("qwen2.5-14b", 13.212, 0.779, 68.8),
    ("qwen2.5-32b", 31.206, 0.779, 134.2),
    ("llama-3.2-1b", 0.973, 0.263, 11.3),
    ("llama-3.2-3b", 2.819, 0.394, 24.3),
    ("llama-3.1-8b", 6.979, 0.525, 41.9),
    ("llama-3.3-70b", 68.451, 1.051, 207.1),
    ("mistral-7b", 6.979, 0.134, 41.9),
    ("mistral-nemo-12b", 10.905, 0.671, 57.0),
    ("mistral-small-24b", 22.230, 0.671, 92.4),
)


def config(**changes: Any) -> dict[str, Any]:
    return shapes.config_of(shapes.SHIPPED["llama-3.2-1b"]) | changes


def test_every_shipped_shape_has_the_official_number_of_parameters():
    found = {name: shape.params for name, shape in shapes.SHIPPED.items()}

    assert found == OFFICIAL


def test_every_shape_says_where_its_sizes_are_from():
    assert all(shape.source.startswith("https://") for shape in shapes.SHIPPED.values())


@pytest.mark.parametrize(("name", "linear", "head", "adapter"), TABLE)
def test_the_parts_are_those_of_the_published_table(
    name: str, linear: float, head: float, adapter: float
):
    shape = shapes.SHIPPED[name]

    assert round(shape.linear_params / 1e9, 3) == linear
    assert shape.head_params / 1e9 == pytest.approx(head, abs=6e-4)
    assert round(shape.lora_params(16, ALL_LINEAR) / 1e6, 1) == adapter


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_names_a_base_of_known_shape(path: Path):
    base = recipe_file.load(path).model.base

    found = shapes.of_base(base)

    if base.startswith("tiny:"):
        assert found is None
    else:
        assert found is not None and found.name == path.stem


def test_a_base_is_known_by_its_base_and_its_instruct_name_in_any_case():
    for name in ("Qwen/Qwen2.5-7B", "qwen/qwen2.5-7b-instruct"):
        assert shapes.of_base(name) is shapes.SHIPPED["qwen2.5-7b"]
    assert shapes.of_base("meta-llama/Llama-3.1-70B") is shapes.SHIPPED["llama-3.3-70b"]
    assert shapes.of_base("someone/else") is None


@pytest.mark.parametrize("name", shapes.SHIPPED)
def test_a_shipped_shape_survives_its_config(name: str):
    shape = shapes.SHIPPED[name]

    assert shapes.of(json.loads(json.dumps(shapes.config_of(shape)))) == shape


def test_the_tiny_base_has_the_shape_of_its_own_weights():
    found = shapes.of(json.loads((BASE / "config.json").read_text()))

    assert found.params == sum(tensor.count for tensor in Checkpoint.open(BASE).tensors.values())
    assert found.name == "qwen2"


def test_the_heads_width_need_not_be_the_hidden_width():
    nemo = shapes.SHIPPED["mistral-nemo-12b"]

    assert (nemo.hidden, nemo.q, nemo.kv) == (5120, 4096, 1024)


def test_what_a_config_leaves_out_is_what_transformers_takes():
    bare = config()
    for key in ("head_dim", "num_key_value_heads", "tie_word_embeddings"):
        del bare[key]

    found = shapes.of(bare)

    assert (found.head_dim, found.kv_heads, found.tied) == (64, 32, False)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not one of qwen2, llama, mistral"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": 0}, "vocab_size is 0, not a count"),
        ({"num_hidden_layers": "16"}, "num_hidden_layers is '16', not a count"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, neither true nor false"),
    ],
)
def test_a_config_of_another_kind_is_refused(changes: dict[str, Any], what: str):
    with pytest.raises(DataError) as refused:
        shapes.of(config(**changes))

    assert refused.value.what == what
    assert "Qwen2.5, Llama or Mistral" in refused.value.hint


def test_only_llama_may_leave_the_key_value_heads_out():
    mistral = config(model_type="mistral")
    del mistral["num_key_value_heads"]

    with pytest.raises(DataError, match="num_key_value_heads is missing"):
        shapes.of(mistral)


def on_meta(settings: dict[str, Any]) -> int:
    """Parameters of transformers' model of this config, no weight made."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    model.tie_weights()
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", shapes.SHIPPED)
def test_transformers_builds_a_shipped_shape_with_as_many_parameters(name: str):
    assert on_meta(shapes.config_of(shapes.SHIPPED[name])) == OFFICIAL[name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", shapes.TYPES)
def test_transformers_counts_odd_configs_alike(kind: str):
    odd = {
        "model_type": kind,
        "num_hidden_layers": 3,
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 80,
        "vocab_size": 112,
        "attention_bias": True,
        "mlp_bias": True,
    }

    assert shapes.of(odd).params == on_meta(odd)
