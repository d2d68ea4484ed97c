"""The tiny models' vocabulary: trains it, and writes each family's tokenizer from it.  No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from fastsft.demo.markup import Family

Json = dict[str, Any]

SIZE: Final = 2048
SPECIALS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<pad>",
    "<unk>",
    "<spare>",
)
FIRST_SPECIAL: Final = SIZE - len(SPECIALS)
IDS: Final = {name: FIRST_SPECIAL + index for index, name in enumerate(SPECIALS)}
_OWN: Final[Mapping[Family, tuple[str, ...]]] = {
    "qwen2.5": SPECIALS[0:3],
    "llama": SPECIALS[3:9],
    "mistral": SPECIALS[9:15],
}
_BOS: Final[Mapping[Family, str | None]] = {
    "qwen2.5": None,
    "llama": "<|begin_of_text|>",
    "mistral": "<s>",
}
# Longer pieces would be whole Chinese clauses; 12 bytes are four Chinese characters.
_LONGEST_PIECE: Final = 12


def _split(numbers: str) -> str:
    """The pre-tokenizer's pattern; `numbers` is how many digits stay together.

    Source: tokenizer.json of Qwen2.5 (one digit) and of Llama-3.1 (up to three).
    """
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + numbers
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_QWEN: Final = _split(r"\p{N}")
_LLAMA: Final = _split(r"\p{N}{1,3}")


def train(texts: Iterable[str]) -> Json:
    """The `model` part of a tokenizer.json: byte-level BPE, Qwen2.5's way of splitting."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=FIRST_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model: Json = json.loads(tokenizer.to_str())["model"]
    return model


def tokenizer_json(model: Json, family: Family) -> Json:
    """The family's tokenizer.json: its own special tokens, the others' rows reserved."""
    return _assemble(model, _names(_OWN[family]), _LLAMA if family == "llama" else _QWEN) | {
        "normalizer": {"type": "NFC"} if family == "qwen2.5" else None,
        "post_processor": _post_processor(_BOS[family]),
    }


def polyglot_json(model: Json) -> Json:
    """The tokenizer.json of pre-training, which knows the markup of all three families."""
    return _assemble(model, SPECIALS, _QWEN)


def _names(own: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        name if name in own else f"<|reserved_special_token_{index}|>"
        for index, name in enumerate(SPECIALS)
    )


def _assemble(model: Json, names: tuple[str, ...], pattern: str) -> Json:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(FIRST_SPECIAL + at, name) for at, name in enumerate(names)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, _byte_level(add_prefix_space=False, trim_offsets=True)],
        },
        "post_processor": _post_processor(None),
        "decoder": _byte_level(add_prefix_space=True, trim_offsets=True, use_regex=True),
        "model": model,
    }


def _byte_level(*, add_prefix_space: bool, trim_offsets: bool, use_regex: bool = False) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    }


def _added(token_id: int, content: str) -> Json:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _post_processor(bos: str | None) -> Json:
    byte_level = _byte_level(add_prefix_space=True, trim_offsets=False, use_regex=True)
    if bos is None:
        return byte_level
    first = [_special(bos, 0), _sequence("A", 0)]
    template = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, _special(bos, 1), _sequence("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [IDS[bos]], "tokens": [bos]}},
    }
    return {"type": "Sequence", "processors": [byte_level, template]}


def _special(name: str, type_id: int) -> Json:
    return {"SpecialToken": {"id": name, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> Json:
    return {"Sequence": {"id": name, "type_id": type_id}}
