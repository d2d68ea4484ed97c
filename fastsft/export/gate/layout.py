"""How llama.cpp names and lays out the weights of `qwen2` and `llama` models.  Reads no file.

The gate's own table, so that a mistake in the writer's is seen.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsft.export.gate.expected import EMBEDDING, HEAD, head_dim

# Source: llama.cpp src/llama-arch.cpp, LLM_TENSOR_NAMES; transformers modeling_llama.py.
_OUTER = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight"}
_OUTER[HEAD] = "output.weight"
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE = "rope_freqs.weight"
ARCHITECTURES = {"qwen2": "qwen2", "llama": "llama", "mistral": "llama"}


def gguf_name(name: str) -> str | None:
    """llama.cpp's name of a weight; None for one that it has no place for."""
    if name in _OUTER:
        return _OUTER[name]
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if not found or found[2] not in _INNER:
        return None
    return f"blk.{found[1]}.{_INNER[found[2]]}.{found[3]}"


def heads(name: str, config: Mapping[str, Any]) -> int | None:
    """Attention heads whose rows llama.cpp interleaves; None where the rows stand as they were.

    Its `llama` architecture rotates neighbouring values, transformers the halves of a head.
    Source: llama.cpp src/llama-model.cpp, `llama_model_rope_type`.
    """
    if ARCHITECTURES.get(str(config.get("model_type"))) != "llama":
        return None
    count = int(config["num_attention_heads"])
    if ".q_proj." in name:
        return count
    return int(config.get("num_key_value_heads") or count) if ".k_proj." in name else None


def rows_of_head(config: Mapping[str, Any]) -> NDArray[np.intp]:
    """For each row of an interleaved head in a GGUF, the head's row in the base."""
    half = head_dim(config) // 2
    row = np.arange(2 * half)
    found: NDArray[np.intp] = row // 2 + half * (row % 2)
    return found


def metadata(config: Mapping[str, Any]) -> dict[str, float | str]:
    """The settings that llama.cpp computes with, by key less the architecture."""
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    count = config["num_attention_heads"]
    return {
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": count,
        "attention.head_count_kv": config.get("num_key_value_heads") or count,
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps", 1e-6),
        "attention.key_length": head_dim(config),
        "attention.value_length": head_dim(config),
        "rope.dimension_count": head_dim(config),
        "rope.freq_base": theta,
    }


def implied(config: Mapping[str, Any]) -> dict[str, float | str]:
    """What llama.cpp takes for a key of `metadata` that the file leaves out.

    Source: llama.cpp src/llama-model.cpp, `llama_model::load_hparams`.
    """
    width = config["hidden_size"] // config["num_attention_heads"]
    heads = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    return {
        **dict.fromkeys(heads, width),
        "rope.freq_base": 10000.0,
        "attention.head_count_kv": config["num_attention_heads"],
    }
