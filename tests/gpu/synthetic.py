"""Writes a base of a real model's shape with random weights, shard by shard.  No torch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastsft.demo import tiny
from fastsft.weights import header

# Source: each model's published config.json.
SHAPES: dict[str, dict[str, object]] = {
    "qwen2.5": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_theta": 1000000.0,
    },
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 500000.0,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
}
COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "attention_dropout": 0.0,
    "use_cache": True,
}


def write(family: str, folder: Path, **changes: object) -> Path:
    """A base of the family's 7B or 8B shape (or as changed) with the tiny base's tokenizer."""
    source = tiny.folder(family)  # type: ignore[arg-type]
    small = json.loads((source / "config.json").read_text())
    tokens = {key: small.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = {**COMMON, **SHAPES[family], **tokens, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "README.md").write_text("Random weights of a real shape, for measuring. No model.\n")
    _write_weights(config, folder)
    return folder


def _write_weights(config: dict[str, object], folder: Path) -> None:
    shards: dict[str, str] = {}
    random = np.random.default_rng(0)
    for number, group in enumerate(_groups(config)):
        name = f"model-{number:05d}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(header((tensor, "BF16", shape) for tensor, shape in group))
            for tensor, shape in group:
                file.write(_values(tensor, shape, random).tobytes())
        shards |= {tensor: name for tensor, _ in group}
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.uint16]:
    """bfloat16 bits: ones for norms, zeros for biases, normal with deviation 0.02 otherwise."""
    if name.endswith("norm.weight"):
        return np.full(shape, 0x3F80, np.uint16)
    if name.endswith("bias"):
        return np.zeros(shape, np.uint16)
    values = random.standard_normal(shape, np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _groups(config: dict[str, object]) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    """Tensors with their shapes, one file's worth at a time."""
    hidden, vocabulary = _int(config, "hidden_size"), _int(config, "vocab_size")
    yield [("model.embed_tokens.weight", (vocabulary, hidden))]
    for layer in range(_int(config, "num_hidden_layers")):
        yield _layer(f"model.layers.{layer}.", config)
    yield [("model.norm.weight", (hidden,)), ("lm_head.weight", (vocabulary, hidden))]


def _layer(at: str, config: dict[str, object]) -> list[tuple[str, tuple[int, ...]]]:
    hidden, inner = _int(config, "hidden_size"), _int(config, "intermediate_size")
    heads = _int(config, "num_attention_heads")
    kv = hidden // heads * _int(config, "num_key_value_heads")
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("input_layernorm.weight", (hidden,)),
        ("post_attention_layernorm.weight", (hidden,)),
        ("self_attn.q_proj.weight", (hidden, hidden)),
        ("self_attn.k_proj.weight", (kv, hidden)),
        ("self_attn.v_proj.weight", (kv, hidden)),
        ("self_attn.o_proj.weight", (hidden, hidden)),
        ("mlp.gate_proj.weight", (inner, hidden)),
        ("mlp.up_proj.weight", (inner, hidden)),
        ("mlp.down_proj.weight", (hidden, inner)),
    ]
    if config["model_type"] == "qwen2":
        widths = {"q": hidden, "k": kv, "v": kv}
        shapes += [(f"self_attn.{name}_proj.bias", (width,)) for name, width in widths.items()]
    return [(at + name, shape) for name, shape in shapes]


def _int(config: dict[str, object], key: str) -> int:
    value = config[key]
    assert isinstance(value, int)
    return value
