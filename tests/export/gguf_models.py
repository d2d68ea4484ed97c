"""Tiny bases and adapters of each architecture a GGUF is written for, and a vocabulary for them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter, TokenType
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, LINEAR, SIZES, Pair, quietly
from transformers import AutoModelForCausalLM

from fastsft.export.gguf import GgufReport, write

GENERAL: dict[str, Any] = {"general.type": "model", "general.name": "tiny", "general.tags": ["a"]}
TYPES = ("f32", "f16", "bf16", "q8_0")
IDS = [int(n) for n in np.random.default_rng(5).integers(0, SIZES["vocab_size"], 64)]

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CASES: dict[str, dict[str, Any]] = {
    "qwen2.5": {"family": "qwen2"},
    "qwen2.5 tied": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen2.5 yarn": {"family": "qwen2", "rope_parameters": {"rope_theta": 1e6, **YARN}},
    "llama": {"family": "llama"},
    "llama 3.1": {"family": "llama", "rope_parameters": LLAMA3},
    "llama 3.2 tied": {
        "family": "llama",
        "rope_parameters": {**LLAMA3, "factor": 32.0},
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
    },
    "llama linear": {
        "family": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    },
    "llama yarn": {
        "family": "llama",
        "rope_parameters": {"rope_theta": 1e4, **YARN, "attention_factor": 1.3},
    },
    "mistral": {"family": "mistral", "sliding_window": None},
    "mistral nemo": {"family": "mistral", "head_dim": 32, "sliding_window": None},
}


@dataclass(frozen=True)
class Letters:
    """A vocabulary that loads: every id is a token, none of them is ever looked up."""

    rows: int = SIZES["vocab_size"]

    def add_to(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(["Ċ", *(f"t{i}" for i in range(1, self.rows))])
        writer.add_token_types([TokenType.NORMAL] * self.rows)
        writer.add_token_merges(["t 1"])
        writer.add_eos_token_id(1)


def write_pair(folder: Path, case: str = "qwen2.5", **lora: Any) -> Pair:
    """Base and adapter of a case; `lora` are further settings of the adapter."""
    settings = dict(CASES[case])
    model_class, config_class = FAMILIES[settings.pop("family")]
    torch.manual_seed(3)
    config = config_class(**{**SIZES, "max_position_embeddings": 128, **settings})
    model = model_class(config).to(torch.bfloat16)
    _randomise(model)
    quietly(model.save_pretrained, folder / "base")
    (folder / "base/tokenizer.json").write_text("{}")
    lora = {"r": 8, "lora_alpha": 12, "target_modules": LINEAR} | lora
    model = quietly(model_class.from_pretrained, folder / "base", dtype=torch.bfloat16)
    trained = quietly(get_peft_model, model, LoraConfig(**lora))
    _randomise(trained)
    quietly(trained.save_pretrained, folder / "adapter")
    return Pair(folder / "base", folder / "adapter", trained)


def _randomise(model: torch.nn.Module) -> None:
    """Values as after training: nothing zero, and logits that differ from token to token."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.08


def write_all(pair: Pair, folder: Path, types: tuple[str, ...] = TYPES, **more: Any) -> GgufReport:
    """The pair as one GGUF of each type, `folder/<type>.gguf`."""
    folder.mkdir(exist_ok=True)
    targets = {name: folder / f"{name}.gguf" for name in types}
    options = {"vocabulary": Letters(), "general": GENERAL} | more
    return write(pair.base, pair.adapter, targets, **options)  # type: ignore[arg-type]


def logits(model: torch.nn.Module, ids: list[int] = IDS) -> np.ndarray[Any, Any]:
    """What the model says in float32 after each token, [T, V]."""
    with torch.no_grad():
        found: torch.Tensor = model.float().eval()(input_ids=torch.tensor([ids])).logits[0]
    return found.numpy()


def loaded(folder: Path) -> torch.nn.Module:
    return quietly(AutoModelForCausalLM.from_pretrained, folder, dtype=torch.float32)


def tensors(path: Path) -> dict[str, Any]:
    """The file's tensors as the gguf package reads them."""
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}
