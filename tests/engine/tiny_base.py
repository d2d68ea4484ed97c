"""A random Qwen2.5-shaped base of 0.3 MB and twenty-odd rows, written without torch."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, INNER, LAYERS, HEADS, KEY_VALUE_HEADS = 64, 128, 2, 4, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "dtype": "float32",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": 258,
    "pad_token_id": 256,
}


def write_base(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    tensors = {name: tensor.astype("float32") for name, tensor in _tensors().items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder)
    return folder


def _tensors() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0)
    key_value = HIDDEN // HEADS * KEY_VALUE_HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (key_value, HIDDEN),
        "self_attn.v_proj": (key_value, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    found = {
        "model.embed_tokens.weight": noise.normal(size=(VOCABULARY, HIDDEN)) * 0.3,
        "model.norm.weight": np.ones(HIDDEN),
    }
    for layer in (f"model.layers.{index}" for index in range(LAYERS)):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}.{norm}.weight"] = np.ones(HIDDEN)
        for name, shape in shapes.items():
            found[f"{layer}.{name}.weight"] = noise.normal(size=shape) * 0.1
            if name[-6:] in ("q_proj", "k_proj", "v_proj"):
                found[f"{layer}.{name}.bias"] = np.zeros(shape[0])
    return found


def _write_tokenizer(folder: Path) -> None:
    """One token a byte, then the special ones."""
    alphabet = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "chat_template.jinja").write_text(CHATML, "utf-8")


def write_rows(path: Path, count: int = 23) -> Path:
    """Rows of unequal length; `count` is odd, so that each epoch ends with a smaller batch."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {index} " + "again " * (index % 4)},
                {"role": "assistant", "content": f"{index * 37} " * (1 + index % 5)},
            ]
        }
        for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
