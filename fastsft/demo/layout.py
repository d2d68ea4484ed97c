"""The files of a tiny model beside its weights: config, tokenizer, chat template.  No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastsft.demo.markup import Family
from fastsft.demo.vocabulary import IDS, SIZE, Json, tokenizer_json

MAX_POSITIONS: Final = 1024
_TEMPLATES: Final = Path(__file__).parent / "templates"
_SHAPE: Final[Json] = {
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 704,
    "max_position_embeddings": MAX_POSITIONS,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": SIZE,
}


@dataclass(frozen=True)
class _Names:
    architecture: str
    model_type: str
    bos: str | None
    pad: str
    stops: tuple[str, ...]
    extra: Mapping[str, object]


_NAMES: Final[Mapping[Family, _Names]] = {
    "qwen2.5": _Names(
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        bos=None,
        pad="<|endoftext|>",
        stops=("<|im_end|>", "<|endoftext|>"),
        extra={"use_sliding_window": False},
    ),
    "llama": _Names(
        architecture="LlamaForCausalLM",
        model_type="llama",
        bos="<|begin_of_text|>",
        pad="<|finetune_right_pad_id|>",
        stops=("<|eot_id|>", "<|end_of_text|>"),
        extra={"attention_bias": False, "mlp_bias": False},
    ),
    "mistral": _Names(
        architecture="MistralForCausalLM",
        model_type="mistral",
        bos="<s>",
        pad="<pad>",
        stops=("</s>",),
        extra={"sliding_window": None},
    ),
}


def write_files(folder: Path, family: Family, vocabulary: Json) -> None:
    """Writes everything but the weights and the model card into `folder`."""
    files = {
        "config.json": config(family),
        "generation_config.json": _generation(family),
        "tokenizer.json": tokenizer_json(vocabulary, family),
        "tokenizer_config.json": _tokenizer_config(family),
    }
    for name, content in files.items():
        _write(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    _write(folder / "chat_template.jinja", template(family))


def template(family: Family) -> str:
    """The family's chat template."""
    return (_TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")


def config(family: Family) -> Json:
    """The family's config.json; all three share one shape."""
    names = _NAMES[family]
    return {
        "architectures": [names.architecture],
        "model_type": names.model_type,
        **_SHAPE,
        **names.extra,
        **_token_ids(names),
        "eos_token_id": IDS[names.stops[0]],
    }


def _generation(family: Family) -> Json:
    names = _NAMES[family]
    stops = [IDS[name] for name in names.stops]
    return {"do_sample": False, **_token_ids(names), "eos_token_id": stops}


def _token_ids(names: _Names) -> Json:
    bos = IDS[names.bos] if names.bos else None
    return {"bos_token_id": bos, "pad_token_id": IDS[names.pad]}


def _tokenizer_config(family: Family) -> Json:
    names = _NAMES[family]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names.bos,
        "eos_token": names.stops[0],
        "pad_token": names.pad,
        "unk_token": "<unk>" if family == "mistral" else None,
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
