"""The three families, and what any other model is told."""

import pytest

from fastsft import families
from fastsft.errors import DataError


@pytest.mark.parametrize(
    ("model_type", "name"), [("qwen2", "qwen2.5"), ("llama", "llama"), ("mistral", "mistral")]
)
def test_a_config_tells_its_family(model_type: str, name: str):
    assert families.of({"model_type": model_type}).name == name


@pytest.mark.parametrize("config", [{"model_type": "gemma"}, {}, {"model_type": ["qwen2"]}])
def test_another_model_is_refused_with_the_list_of_families(config: dict[str, object]):
    with pytest.raises(DataError, match="is not supported") as caught:
        families.of(config)

    assert "qwen2.5 (qwen2), llama (llama), mistral (mistral)" in caught.value.hint


@pytest.mark.parametrize("family", families.SUPPORTED, ids=lambda family: family.name)
def test_the_token_that_usually_ends_a_turn_is_never_a_pad_candidate(family: families.Family):
    assert family.stop_tokens[0] not in family.pad_candidates


def test_tokens_that_tell_no_family_tell_none():
    assert families.of_vocabulary({"a", "</s>"}) is None
