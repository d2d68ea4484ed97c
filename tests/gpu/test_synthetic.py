"""The synthetic bases that the GPU tests train are real model folders (checked small, on a CPU)."""

from pathlib import Path

import pytest
import synthetic

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 2560}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("family", synthetic.SHAPES)
def test_transformers_loads_a_synthetic_base_without_a_missing_weight(tmp_path: Path, family: str):
    from transformers import AutoModelForCausalLM

    folder = synthetic.write(family, tmp_path / family, **SMALL)

    _, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
