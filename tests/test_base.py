"""The base's folder is checked before any library sees it."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastsft import base
from fastsft.errors import RecipeError
from fastsft.recipe import Model

GOOD = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64}


def folder_with(tmp_path: Path, config: Any) -> Path:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return tmp_path


def model(folder: object, family: str = "qwen2.5") -> Model:
    return Model.model_validate({"base": str(folder), "family": family})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({**GOOD, "auto_map": {"AutoModel": "x.Y"}}, "auto_map: refused"),
        ({**GOOD, "sub": {"auto_map": {}}}, "auto_map: refused"),
        ({**GOOD, "_attn_implementation_internal": "x"}, "_attn_implementation_internal: refused"),
        ({**GOOD, "model_type": "qwen2\nimport os"}, "is no model type"),
        ({**GOOD, "sub": {"model_type": "a\nb"}}, "is no model type"),
        ({**GOOD, "architectures": ["a b"]}, "is no model type"),
        ({**GOOD, "hidden_size": 10**15}, "hidden_size: 1000000000000000 is out of bounds"),
        ({**GOOD, "quantization_config": {}}, "quantised already"),
        ("[]", "is not a JSON object"),
        ("{", "is not a JSON object"),
    ],
)
def test_a_config_that_could_do_harm_is_refused(tmp_path: Path, config: Any, told: str):
    with pytest.raises(RecipeError, match=told.replace("(", r"\(")):
        base.check_config(folder_with(tmp_path, config))


def test_a_mark_alone_lets_no_quantised_base_through(tmp_path: Path):
    config = {**GOOD, "fastsft_synthetic": True, "quantization_config": {"load_in_4bit": True}}

    with pytest.raises(RecipeError, match="quantised already"):
        base.check_config(folder_with(tmp_path, config))


def test_a_plain_config_passes(tmp_path: Path):
    assert base.check_config(folder_with(tmp_path, GOOD)) == GOOD


def test_a_folder_without_config_is_no_model(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"not a model folder: it has no config\.json"):
        base.resolve(model(tmp_path))


def test_the_family_must_be_the_bases(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"the base is qwen2\.5, the recipe says llama"):
        base.resolve(model(folder_with(tmp_path, GOOD), "llama"))


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"has neither model\.safetensors"):
        base.resolve(model(folder_with(tmp_path, GOOD)))


def test_what_is_neither_folder_nor_repository_is_refused():
    with pytest.raises(RecipeError, match="neither a folder nor a Hugging Face id"):
        base.resolve(model("no such thing"))


def test_an_unknown_tiny_base_is_refused():
    with pytest.raises(RecipeError, match="no such tiny base"):
        base.resolve(model("tiny:gemma"))


def test_the_fingerprint_follows_the_weights(tmp_path: Path):
    found = base.resolve(model("tiny:qwen2.5"))
    for path in found.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copied = base.resolve(model(tmp_path))

    assert copied.fingerprint == found.fingerprint
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 5}))
    assert base.resolve(model(tmp_path)).fingerprint != found.fingerprint
