"""Loads the base and puts the adapter on it, through Unsloth or the stock stack."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastsft import scoring
from fastsft.engine.settings import Device, Resolved
from fastsft.errors import TrainError
from fastsft.recipe import Recipe


@dataclass(frozen=True)
class Loaded:
    """A model ready to train, and the tokenizer that its trainer wants to see."""

    model: Any
    tokenizer: Any


def device() -> Device:
    """Where this process can train."""
    if torch.cuda.is_available():
        return Device("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    return Device("cpu", has_bfloat16=False)


def unsloth_load_arguments(recipe: Recipe, resolved: Resolved, folder: Path) -> dict[str, Any]:
    """Arguments of Unsloth's `FastLanguageModel.from_pretrained`."""
    is_nf4 = recipe.model.quantization == "nf4"
    return {
        "model_name": str(folder),
        "max_seq_length": recipe.data.max_tokens,
        "dtype": getattr(torch, resolved.dtype),
        "load_in_4bit": is_nf4,
        "load_in_8bit": False,
        "load_in_16bit": not is_nf4 and recipe.train.parameters == "lora",
        "full_finetuning": recipe.train.parameters == "all",
        "use_gradient_checkpointing": unsloth_checkpointing(resolved),
        "fix_tokenizer": False,
        "use_exact_model_name": True,
        "trust_remote_code": False,
        "random_state": recipe.train.seed,
    }


def unsloth_checkpointing(resolved: Resolved) -> bool | str:
    """Unsloth's spelling of `train.gradient_checkpointing`."""
    asked = resolved.gradient_checkpointing
    return asked if asked == "unsloth" else asked == "standard"


def lora_arguments(recipe: Recipe) -> dict[str, Any]:
    """The adapter in PEFT's words; Unsloth's `get_peft_model` takes the same."""
    lora = recipe.lora
    return {
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "bias": "none",
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "init_lora_weights": True,
    }


def load(recipe: Recipe, resolved: Resolved, folder: Path, *, pad_token: str) -> Loaded:
    """The model of `folder` as the recipe trains it; its adapter starts alike in both engines."""
    load_with = _with_unsloth if recipe.engine == "unsloth" else _with_reference
    torch.manual_seed(recipe.train.seed)
    model, tokenizer = load_with(recipe, resolved, folder)
    if scoring.is_four_bit(folder):
        _as_if_quantised_here(model, getattr(torch, resolved.dtype))
    tokenizer.pad_token = pad_token
    if recipe.train.parameters == "lora":
        seed_adapter(model, recipe)
    return Loaded(model, tokenizer)


def _with_unsloth(recipe: Recipe, resolved: Resolved, folder: Path) -> tuple[Any, Any]:
    from unsloth import FastLanguageModel

    arguments = unsloth_load_arguments(recipe, resolved, folder)
    model, tokenizer = FastLanguageModel.from_pretrained(**arguments)
    if recipe.train.parameters == "lora":
        model = FastLanguageModel.get_peft_model(
            model, **lora_arguments(recipe), **unsloth_adapter_arguments(recipe, resolved)
        )
    elif recipe.train.checkpoint_skip_layers:  # all that it does where every weight is trained
        model = FastLanguageModel.get_peft_model(model, **kept_arguments(recipe, resolved))
    return model, tokenizer


def unsloth_adapter_arguments(recipe: Recipe, resolved: Resolved) -> dict[str, Any]:
    """What Unsloth's `get_peft_model` takes beside PEFT's words."""
    return {
        "use_gradient_checkpointing": unsloth_checkpointing(resolved),
        "random_state": recipe.train.seed,
        "max_seq_length": recipe.data.max_tokens,
        **kept_arguments(recipe, resolved),
    }


def kept_arguments(recipe: Recipe, resolved: Resolved) -> dict[str, Any]:
    """How many layers keep their activations; empty on a CPU, where Unsloth knows no such word.

    They are spread evenly, the last among them.  With zero Unsloth looks at the environment's
    UNSLOTH_GC_KEEP_LAYERS, which `launch` sets to zero too.

    Source: Unsloth 2026.10.9 `skip_checkpointing`; its CPU backend's `get_peft_model`.
    """
    if resolved.device.kind == "cpu":
        return {}
    return {"checkpoint_skip_layers": recipe.train.checkpoint_skip_layers}


def kept_layers(model: Any) -> int:
    """Layers that keep their activations in training, by the switch that each layer reads.

    Ask once training has begun: the trainer turns checkpointing on, and each layer's with it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    return sum(not layer.gradient_checkpointing for layer in layers)


def differing(model: Any, recipe: Recipe, resolved: Resolved) -> dict[str, list[str]]:
    """What the engine made of the request to recompute: name -> [requested, effective].

    Ask once training has begun.  Unsloth does not move activations to the host for less than 512
    tokens; whether it skipped the layers, the layers say.

    Source: Unsloth 2026.10.9 `apply_unsloth_gradient_checkpointing`.
    """
    found = {}
    asked = resolved.gradient_checkpointing
    if asked == "unsloth" and getattr(model, "_unsloth_gradient_checkpointing", asked) is True:
        found["gradient_checkpointing"] = [asked, "standard"]
    kept, wanted = kept_layers(model), recipe.train.checkpoint_skip_layers
    if asked != "none" and kept != wanted:
        found["checkpoint_skip_layers"] = [str(wanted), str(kept)]
    return found


def _with_reference(recipe: Recipe, resolved: Resolved, folder: Path) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, resolved.dtype),
        **_quantised(recipe, resolved, folder),
        device_map={"": 0 if resolved.device.kind == "cuda" else "cpu"},
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
    )
    if recipe.train.parameters == "lora":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora_arguments(recipe)))
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _quantised(recipe: Recipe, resolved: Resolved, folder: Path) -> dict[str, Any]:
    """How to quantise the base.  Where it is stored in 4 bits, no word: even None hides that."""
    if scoring.is_four_bit(folder):
        return {}
    return {"quantization_config": quantization(recipe, resolved)}


def quantization(recipe: Recipe, resolved: Resolved) -> Any:
    """bitsandbytes' configuration of the base; None where it is not quantised."""
    from transformers import BitsAndBytesConfig

    if recipe.model.quantization == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=recipe.model.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, resolved.dtype),
    )


def _as_if_quantised_here(model: Any, dtype: torch.dtype) -> None:
    """Lets weights that were stored in 4 bits be multiplied in `dtype`, not in the stored type."""
    from bitsandbytes.nn import Linear4bit

    for part in model.modules():
        if isinstance(part, Linear4bit):
            part.compute_dtype = dtype
            part.weight.quant_state.dtype = dtype


def seed_adapter(model: Any, recipe: Recipe) -> None:
    """Start A from the recipe's seed and each layer's name, so that both engines start alike.

    Default: uniform within ±1/sqrt(in), which is PEFT's (Kaiming uniform, a = sqrt 5);
    gaussian: standard deviation 1/r.  B stays zero.

    Source: PEFT 0.21 `LoraLayer.reset_lora_parameters`.
    """
    count = 0
    for name, weight in model.named_parameters():
        if ".lora_A." in name:
            weight.data.copy_(_start(name.split("layers.", 1)[-1], weight, recipe))
            count += 1
    if count == 0:
        raise TrainError(
            "no layer got an adapter", where="lora.targets", hint="name layers that the base has"
        )


def _start(name: str, weight: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The first value of one A  # [r, in]."""
    key = hashlib.sha256(f"{recipe.train.seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
    if recipe.lora.init == "gaussian":
        return torch.randn(weight.shape, generator=generator) / recipe.lora.rank
    bound = 1 / math.sqrt(weight.shape[1])
    return torch.rand(weight.shape, generator=generator) * 2 * bound - bound


def in_float32(model: Any) -> None:
    """Hold what is trained in float32.

    TRL casts the adapter of a quantised model to bfloat16 and a resume loads it back as float32;
    without this a resumed run differs from an uninterrupted one.  Call it on a built trainer.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
