"""Writes a dialogue in the markup of Qwen2.5, Llama-3 or Mistral, as trained and untrained text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fastsft.demo.corpus import Dialogue

Family = Literal["qwen2.5", "llama", "mistral"]


@dataclass(frozen=True)
class Segment:
    """A piece of text whose tokens do not join with those of its neighbours."""

    text: str
    is_answer: bool


def segments(dialogue: Dialogue, family: Family) -> list[Segment]:
    """The pieces of `dialogue`; joined, they are what the family's chat template writes.

    One exception: Mistral's system prompt goes in front of the first user turn here, as a
    dialogue's first question may stand in it; with a single turn that is the same.
    """
    return _WRITERS[family](dialogue)


def _chatml(dialogue: Dialogue) -> list[Segment]:
    system = dialogue.system or "You are a helpful assistant."
    pieces = [Segment(f"<|im_start|>system\n{system}<|im_end|>\n", False)]
    for user, assistant in dialogue.turns:
        head = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
        pieces += [Segment(head, False), Segment(f"{assistant}<|im_end|>", True)]
        pieces.append(Segment("\n", False))
    return pieces


def _llama(dialogue: Dialogue) -> list[Segment]:
    pieces = [Segment("<|begin_of_text|>", False)]
    if dialogue.system:
        pieces.append(Segment(f"{_header('system')}{dialogue.system}<|eot_id|>", False))
    for user, assistant in dialogue.turns:
        pieces.append(Segment(f"{_header('user')}{user}<|eot_id|>{_header('assistant')}", False))
        pieces.append(Segment(f"{assistant}<|eot_id|>", True))
    return pieces


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _mistral(dialogue: Dialogue) -> list[Segment]:
    pieces = [Segment("<s>", False)]
    system = f"{dialogue.system}\n\n" if dialogue.system else ""
    for user, assistant in dialogue.turns:
        pieces.append(Segment(f"[INST] {system}{user}[/INST]", False))
        pieces.append(Segment(f" {assistant}</s>", True))
        system = ""
    return pieces


_WRITERS: Final[Mapping[Family, Callable[[Dialogue], list[Segment]]]] = {
    "qwen2.5": _chatml,
    "llama": _llama,
    "mistral": _mistral,
}
