"""An adapter alone as GGUF: what was trained, in llama.cpp's order, or a refusal."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import fields, tensors, write_pair
from safetensors.torch import load_file, save_file
from tiny_models import Pair

from fastsft.errors import ExportError
from fastsft.export import gguf_lora

GENERAL = {"general.type": "adapter", "general.name": "tiny"}


def write(pair: Pair, out: Path) -> dict[str, Any]:
    gguf_lora.write(pair.base, pair.adapter, out, general=GENERAL)
    return {name: tensor.data for name, tensor in tensors(out).items()}


def trained(pair: Pair, name: str) -> np.ndarray[Any, Any]:
    saved = load_file(pair.adapter / "adapter_model.safetensors")
    return saved[f"base_model.model.model.layers.0.{name}.weight"].float().numpy()


def test_values_are_as_trained_and_heads_in_llamacpps_order(tmp_path):
    pair = write_pair(tmp_path, "llama")

    found = write(pair, tmp_path / "lora.gguf")

    b = trained(pair, "self_attn.k_proj.lora_B")
    turned = [b[head * 16 + half * 8 + i] for head in range(2) for i in range(8) for half in (0, 1)]
    assert np.array_equal(found["blk.0.attn_k.weight.lora_b"], np.stack(turned))
    for part, name in (("lora_a", "self_attn.k_proj.lora_A"), ("lora_a", "mlp.up_proj.lora_A")):
        theirs = "attn_k" if "k_proj" in name else "ffn_up"
        assert np.array_equal(found[f"blk.0.{theirs}.weight.{part}"], trained(pair, name))
    down = found["blk.0.ffn_down.weight.lora_b"]
    assert np.array_equal(down, trained(pair, "mlp.down_proj.lora_B"))


@pytest.mark.parametrize(
    ("lora", "alpha"),
    [
        ({}, 12.0),
        ({"use_rslora": True}, 12 * math.sqrt(8)),
        ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 12}}, 12.0),
    ],
)
def test_alpha_over_rank_is_the_trained_scale(tmp_path, lora, alpha):
    pair = write_pair(tmp_path, "qwen2.5", **lora)

    write(pair, tmp_path / "lora.gguf")

    said = fields(tmp_path / "lora.gguf")
    assert said["adapter.lora.alpha"] == np.float32(alpha)
    assert said["adapter.type"] == "lora"
    assert said["general.type"] == "adapter"
    assert said["general.architecture"] == "qwen2"


@pytest.mark.parametrize(
    ("case", "lora", "said"),
    [
        ("llama", {"use_dora": True}, "has a DoRA magnitude"),
        ("llama", {"modules_to_save": ["norm"]}, "norm.weight was trained whole"),
        ("llama", {"alpha_pattern": {"q_proj": 5}}, "there is one"),
        ("llama", {"rank_pattern": {"q_proj": 4}, "use_rslora": True}, "there is one"),
        ("qwen2.5 tied", {"target_modules": ["q_proj", "lm_head"]}, "tied to the embedding"),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path, case, lora, said):
    pair = write_pair(tmp_path, case, **lora)

    with pytest.raises(ExportError) as caught:
        write(pair, tmp_path / "lora.gguf")

    assert said in str(caught.value)
    assert "hint: export with --to gguf" in str(caught.value)
    assert not (tmp_path / "lora.gguf").exists()


def test_a_trained_head_of_its_own_can_be_said(tmp_path):
    found = write(write_pair(tmp_path, "llama", target_modules=["lm_head"]), tmp_path / "lora.gguf")

    assert {*found} == {"output.weight.lora_a", "output.weight.lora_b"}


def test_a_whole_trained_model_has_no_adapter(tmp_path):
    pair = write_pair(tmp_path)
    whole = shutil.copytree(pair.base, tmp_path / "whole")

    with pytest.raises(ExportError, match="there is no adapter"):
        write(Pair(pair.base, whole, pair.model), tmp_path / "lora.gguf")


def test_an_untouched_adapter_is_refused(tmp_path):
    pair = write_pair(tmp_path)
    path = pair.adapter / "adapter_model.safetensors"
    saved = load_file(path)
    save_file({k: torch.zeros_like(t) if "lora_B" in k else t for k, t in saved.items()}, path)

    with pytest.raises(ExportError, match="the adapter changes nothing"):
        write(pair, tmp_path / "lora.gguf")
