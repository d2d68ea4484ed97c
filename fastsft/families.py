"""What Qwen2.5, Llama and Mistral each need.  Facts with their sources, no files, no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fastsft.errors import DataError
from fastsft.recipe import ALL_LINEAR


@dataclass(frozen=True)
class Family:
    """One line of models that share an architecture and the rules of its chat tokens.

    `stop_tokens` end a turn or a generation, the usual end of a chat turn first.
    `pad_candidates` are tried in order; the tokenizer takes the first that it has and that
    no turn ends with.  Either may name tokens that one release of the family lacks.
    `turn_marker` is a token that only this family's chat models have.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    stop_tokens: tuple[str, ...]
    pad_candidates: tuple[str, ...]
    bos_token: str | None
    turn_marker: str
    lora_targets: tuple[str, ...] = ALL_LINEAR

    @property
    def end_of_text(self) -> str:
        """The token that ends a document; base models were trained with it."""
        return self.stop_tokens[-1]


QWEN25 = Family(
    name="qwen2.5",
    model_types=("qwen2",),
    architectures=("Qwen2ForCausalLM",),
    stop_tokens=("<|im_end|>", "<|endoftext|>"),
    pad_candidates=("<|endoftext|>", "<|vision_pad|>", "<|fim_pad|>"),
    bos_token=None,
    turn_marker="<|im_end|>",
)
"""Source: Qwen2.5-Instruct tokenizer_config.json (bos null, pad <|endoftext|>, eos <|im_end|>)
and generation_config.json (eos_token_id [151645, 151643])."""

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    architectures=("LlamaForCausalLM",),
    stop_tokens=("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    pad_candidates=("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<unk>"),
    bos_token="<|begin_of_text|>",
    turn_marker="<|eot_id|>",
)
"""Source: Llama 3.1 model card and generation_config.json (eos_token_id [128001, 128008,
128009]); the padding token <|finetune_right_pad_id|> is 128004 from 3.1 on, Llama 3.0 names
that id a reserved token; no release sets pad_token (unsloth#416, #419: never pad with eos)."""

MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    architectures=("MistralForCausalLM",),
    stop_tokens=("</s>",),
    pad_candidates=("<pad>", "[control_8]", "[control_12]", "<SPECIAL_20>", "<unk>"),
    bos_token="<s>",
    turn_marker="[INST]",
)
"""Source: the tokenizers of 7B-Instruct-v0.3 (no pad; [control_*] are unused control tokens,
their first number differs between uploads), of Nemo-Instruct-2407 (<pad> is 11), and of
v0.1/v0.2, where <unk> is the only token that is never trained."""

SUPPORTED = (QWEN25, LLAMA, MISTRAL)


def of(config: Mapping[str, object]) -> Family:
    """The family of a model's `config.json`, by its `model_type`.

    Raises `DataError`, listing what is supported, for any other model.
    """
    model_type = config.get("model_type")
    for family in SUPPORTED:
        if model_type in family.model_types:
            return family
    known = ", ".join(f"{f.name} ({', '.join(f.model_types)})" for f in SUPPORTED)
    raise DataError(
        f"config.json: model_type {model_type!r} is not supported",
        hint=f"choose a model of one of these families: {known}",
    )


def of_vocabulary(tokens: Collection[str]) -> Family | None:
    """The family that a chat tokenizer's own tokens give away; None when they do not."""
    return next((f for f in SUPPORTED if f.turn_marker in tokens), None)
