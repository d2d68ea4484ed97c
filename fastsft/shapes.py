"""The models that fastsft trains, by name and by Hugging Face id.  No files, no torch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fastsft.shape import TYPES as TYPES
from fastsft.shape import Shape as Shape
from fastsft.shape import read

_SOURCE: Final = "https://huggingface.co/{}/blob/main/config.json"


def of(config: Mapping[str, object], *, name: str = "") -> Shape:
    """The shape that a model's `config.json` tells; one of the shipped where the sizes are.

    Raises: DataError for another architecture, or a size that is missing or no count.
    """
    found = read(config, name=name)
    return found if name else _named(found)


def _named(shape: Shape) -> Shape:
    """The shipped shape of the same sizes, which has a name; else the shape itself."""
    for known in SHIPPED.values():
        if replace(known, name=shape.name, source="") == shape:
            return known
    return shape


def _qwen(size: str, *sizes: int, tied: bool = False) -> tuple[str, Shape]:
    layers, hidden, heads, kv_heads, mlp, vocab = sizes
    return f"qwen2.5-{size.lower()}", Shape(
        f"qwen2.5-{size.lower()}",
        "qwen2",
        layers,
        hidden,
        heads,
        kv_heads,
        hidden // heads,
        mlp,
        vocab,
        tied,
        qkv_bias=True,
        source=_SOURCE.format(f"Qwen/Qwen2.5-{size}"),
    )


def _other(name: str, page: str, *sizes: int, tied: bool = False) -> tuple[str, Shape]:
    layers, hidden, heads, kv_heads, head_dim, mlp, vocab = sizes
    kind = name.partition("-")[0]
    widths = (layers, hidden, heads, kv_heads, head_dim, mlp, vocab)
    return name, Shape(name, kind, *widths, tied, qkv_bias=False, source=_SOURCE.format(page))


SHIPPED: Final[Mapping[str, Shape]] = dict(
    (
        _qwen("0.5B", 24, 896, 14, 2, 4864, 151936, tied=True),
        _qwen("1.5B", 28, 1536, 12, 2, 8960, 151936, tied=True),
        _qwen("3B", 36, 2048, 16, 2, 11008, 151936, tied=True),
        _qwen("7B", 28, 3584, 28, 4, 18944, 152064),
        _qwen("14B", 48, 5120, 40, 8, 13824, 152064),
        _qwen("32B", 64, 5120, 40, 8, 27648, 152064),
        _other(
            "llama-3.2-1b",
            "meta-llama/Llama-3.2-1B",
            *(16, 2048, 32, 8, 64, 8192, 128256),
            tied=True,
        ),
        _other(
            "llama-3.2-3b",
            "meta-llama/Llama-3.2-3B",
            *(28, 3072, 24, 8, 128, 8192, 128256),
            tied=True,
        ),
        _other("llama-3.1-8b", "meta-llama/Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256),
        _other(
            "llama-3.3-70b",
            "meta-llama/Llama-3.3-70B-Instruct",
            *(80, 8192, 64, 8, 128, 28672, 128256),
        ),
        _other("mistral-7b", "mistralai/Mistral-7B-v0.3", 32, 4096, 32, 8, 128, 14336, 32768),
        _other(
            "mistral-nemo-12b",
            "mistralai/Mistral-Nemo-Base-2407",
            *(40, 5120, 32, 8, 128, 14336, 131072),
        ),
        _other(
            "mistral-small-24b",
            "mistralai/Mistral-Small-24B-Base-2501",
            *(40, 5120, 32, 8, 128, 32768, 131072),
        ),
    )
)
"""Every base that a recipe ships for, and Llama 3.3 70B (3.1 70B is the same), by recipe name.

Source: each model's config.json (`source`); that the sizes are right, tests/test_shapes.py shows by
the official total of parameters."""

_BASES: Final = {
    **{
        f"qwen/qwen2.5-{size}{kind}": f"qwen2.5-{size}"
        for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b")
        for kind in ("", "-instruct")
    },
    **{
        f"meta-llama/llama-{size}{kind}": f"llama-{size}"
        for size in ("3.2-1b", "3.2-3b", "3.1-8b", "3.3-70b")
        for kind in ("", "-instruct")
        if (size, kind) != ("3.3-70b", "")
    },
    "meta-llama/llama-3.1-70b": "llama-3.3-70b",
    "meta-llama/llama-3.1-70b-instruct": "llama-3.3-70b",
    "mistralai/mistral-7b-v0.3": "mistral-7b",
    "mistralai/mistral-7b-instruct-v0.3": "mistral-7b",
    "mistralai/mistral-nemo-base-2407": "mistral-nemo-12b",
    "mistralai/mistral-nemo-instruct-2407": "mistral-nemo-12b",
    "mistralai/mistral-small-24b-base-2501": "mistral-small-24b",
    "mistralai/mistral-small-24b-instruct-2501": "mistral-small-24b",
}


def of_base(base: str) -> Shape | None:
    """The shape of a Hugging Face id, base or instruct, of a model known here; None for others."""
    name = _BASES.get(base.lower())
    return None if name is None else SHIPPED[name]


_FAMILY_REST: Final[Mapping[str, Mapping[str, object]]] = {
    "qwen2": {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768},
    "llama": {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131072},
    "mistral": {
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "sliding_window": None,
    },
}
_ARCHITECTURES: Final = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}


def _llama3_rope(factor: float) -> dict[str, object]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


_REST: Final[Mapping[str, Mapping[str, object]]] = {
    "llama-3.2-1b": {"rope_scaling": _llama3_rope(32.0)},
    "llama-3.2-3b": {"rope_scaling": _llama3_rope(32.0)},
    "llama-3.1-8b": {"rope_scaling": _llama3_rope(8.0)},
    "llama-3.3-70b": {"rope_scaling": _llama3_rope(8.0)},
    "qwen2.5-14b": {"rms_norm_eps": 1e-5},
    "qwen2.5-32b": {"rms_norm_eps": 1e-5},
    "qwen2.5-7b": {"max_position_embeddings": 131072},
    "mistral-nemo-12b": {"max_position_embeddings": 131072},
    "mistral-small-24b": {"rope_theta": 1e8},
}


def config_of(shape: Shape) -> dict[str, object]:
    """A `config.json` of this shape, with the real model's positions and norms.

    It names no special tokens: those are the tokenizer's.
    """
    config: dict[str, object] = {
        "architectures": [_ARCHITECTURES[shape.model_type]],
        "model_type": shape.model_type,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.mlp,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        **_FAMILY_REST[shape.model_type],
        **_REST.get(shape.name, {}),
    }
    if shape.model_type == "llama":
        config |= {"attention_bias": shape.o_bias, "mlp_bias": shape.mlp_bias}
    return config
