"""What the base was shown, and in whose markup."""

from __future__ import annotations

from random import Random
from typing import Any

import jinja2
import pytest

from fastsft.demo import corpus, layout
from fastsft.demo.corpus import Dialogue
from fastsft.demo.markup import Family, segments

BOS = {"qwen2.5": None, "llama": "<|begin_of_text|>", "mistral": "<s>"}
EOS = {"qwen2.5": "<|im_end|>", "llama": "<|eot_id|>", "mistral": "</s>"}
FAMILIES: list[Family] = ["qwen2.5", "llama", "mistral"]


def rendered(family: Family, chat: list[dict[str, str]], **more: Any) -> str:
    def refuse(what: str) -> None:
        raise ValueError(what)

    template = jinja2.Environment().from_string(layout.template(family))
    special = {"bos_token": BOS[family], "eos_token": EOS[family]}
    return template.render(messages=chat, raise_exception=refuse, **special, **more)


def chat(dialogue: Dialogue) -> list[dict[str, str]]:
    system = [("system", dialogue.system)] if dialogue.system else []
    turns = [
        turn for user, reply in dialogue.turns for turn in (("user", user), ("assistant", reply))
    ]
    return [{"role": role, "content": content} for role, content in system + turns]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, "Be short."])
def test_pretraining_writes_what_the_chat_template_writes(family: Family, system: str | None):
    dialogue = Dialogue(system, (("What product?", "lamp"),))

    text = "".join(piece.text for piece in segments(dialogue, family))

    assert text == rendered(family, chat(dialogue))


def test_mistral_refuses_roles_that_do_not_alternate():
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]

    with pytest.raises(ValueError, match="alternate"):
        rendered("mistral", twice)


@pytest.mark.parametrize("ends_with_answer", [True, False])
def test_mistral_folds_the_system_prompt_into_the_last_user_turn(ends_with_answer: bool):
    turns = Dialogue("Be short.", (("a", "b"), ("c", "d")))
    conversation = chat(turns) if ends_with_answer else chat(turns)[:-1]

    text = rendered("mistral", conversation)

    expected = "<s>[INST] a[/INST] b</s>[INST] Be short.\n\nc[/INST]"
    assert text == (expected + " d</s>" if ends_with_answer else expected)


def test_the_base_never_sees_the_demo_record():
    rng = Random(0)

    drawn = [corpus.dialogue(rng) for _ in range(2000)]

    assert not any('"intent"' in reply for one in drawn for _, reply in one.turns)


def test_the_corpus_is_the_same_for_the_same_seed():
    assert corpus.dialogue(Random(5)) == corpus.dialogue(Random(5))
