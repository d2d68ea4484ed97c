"""Tiny random bases and trained-looking PEFT adapters in folders, and an oracle for their merge.

The oracle shares nothing with the product: torch, PEFT's own modules, and rounding by frexp.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchao's docstrings, when first compiled
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        PreTrainedModel,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, Any] = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
}
TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Pair:
    """A base and an adapter as folders, and the PEFT model they were saved from."""

    base: Path
    adapter: Path
    model: PeftModel


def write_base(folder: Path, *, family: str = "qwen2", tied: bool = False, **save: Any) -> Path:
    torch.manual_seed(1)
    model_class, config_class = FAMILIES[family]
    model = model_class(config_class(**SIZES, tie_word_embeddings=tied)).to(torch.bfloat16)
    _randomise(model)
    quietly(model.save_pretrained, folder, **save)
    (folder / "tokenizer.json").write_text('{"from": "base"}')
    return folder


def write_pair(
    folder: Path, *, family: str = "qwen2", tied: bool = False, shard: str = "5GB", **lora: Any
) -> Pair:
    base = write_base(folder / "base", family=family, tied=tied, max_shard_size=shard)
    lora = {"r": 8, "lora_alpha": 12, "target_modules": LINEAR} | lora
    model = quietly(FAMILIES[family][0].from_pretrained, base, dtype=torch.bfloat16)
    trained = quietly(get_peft_model, model, LoraConfig(**lora))
    _randomise(trained, only_trained=True)
    quietly(trained.save_pretrained, folder / "adapter")
    return Pair(base, folder / "adapter", trained)


def _randomise(model: torch.nn.Module, *, only_trained: bool = False) -> None:
    """Values as after training: nothing zero, magnitudes and norms about what they were."""
    for parameter in model.parameters():
        if parameter.requires_grad or not only_trained:
            noise = torch.randn_like(parameter) * 0.05
            parameter.data += noise


def quietly(call: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


def oracle(pair: Pair, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor that a merge must give, from the PEFT model in float64."""
    names = {name: name for name in _stored(pair.base)}
    state = {_plain(k): v for k, v in pair.model.state_dict().items() if _is_weight(k)}
    merged = {name: state[name].double() for name in names}
    for path, module in pair.model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            name = path.removeprefix("base_model.model.") + ".weight"
            merged[name] = _merged(module, merged[name])
    return {name: round_once(values, dtype) for name, values in merged.items()}


def _merged(module: Any, base: torch.Tensor) -> torch.Tensor:
    a, b = (part["default"].weight.double() for part in (module.lora_A, module.lora_B))
    merged = base + module.scaling["default"] * (b @ a)
    if module.lora_magnitude_vector:
        magnitude = module.lora_magnitude_vector["default"].weight.double()
        merged = merged * (magnitude / torch.linalg.norm(merged, dim=1))[:, None]
    return merged.detach()


def _stored(base: Path) -> list[str]:
    return [name for path in base.glob("*.safetensors") for name in load_file(path)]


def _is_weight(key: str) -> bool:
    return "lora_" not in key and "original_module" not in key


def _plain(key: str) -> str:
    key = key.removeprefix("base_model.model.")
    return key.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def round_once(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 to `dtype` by way of integers; `Tensor.to` would round twice through float32."""
    bits, least = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126)}[
        dtype
    ]
    exponents = torch.frexp(values).exponent.clamp(min=least + 1)
    step = torch.ldexp(torch.ones_like(values), exponents - bits)
    return (torch.round(values / step) * step).to(dtype)


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()
    }


def logits(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    """What the model says, in float32, about the same 24 tokens."""
    ids = torch.arange(24).reshape(2, 12) * 5 % SIZES["vocab_size"]
    with torch.no_grad():
        return model.float().eval()(input_ids=ids).logits


def spread(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in standard deviations."""
    worst = (one - other).abs().max().item()
    assert math.isfinite(worst)
    return worst / one.std().item()
