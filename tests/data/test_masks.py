"""The masks of the four real tokenizers: what is trained, exactly, and that it is proved."""

from collections.abc import Callable

import numpy as np
import pytest
from conversations import CONVERSATIONS, ask, turns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sayings import CHATS, answers_of, as_trained, unjoined

from fastsft.data.encode import UNTRAINED, Encoded, encode, prove
from fastsft.data.formats import Conversation
from fastsft.data.render import render
from fastsft.data.show import segments
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError

REAL = ("qwen2.5", "llama-3.1", "mistral-v0.3", "mistral-nemo")
Load = Callable[[str], ChatTokenizer]
PROPERTY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def trained_texts(encoded: Encoded, tokenizer: ChatTokenizer) -> list[str]:
    parts = segments(encoded.input_ids, encoded.labels, tokenizer)
    return [text for text, trained in parts if trained]


def test_there_are_at_least_forty_conversations():
    assert len(CONVERSATIONS) >= 40


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("title", CONVERSATIONS)
def test_exactly_the_answers_and_their_stop_tokens_are_trained(
    real_tokenizer: Load, name: str, title: str
):
    tokenizer, conversation = real_tokenizer(name), CONVERSATIONS[title]

    encoded = encode(render(conversation, tokenizer), tokenizer)

    answers = answers_of(conversation)
    pairs = zip(trained_texts(encoded, tokenizer), answers, strict=True)
    assert [unjoined(text, a, name) for text, a in pairs] == [as_trained(a, name) for a in answers]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("title", CONVERSATIONS)
def test_the_mask_is_proved(real_tokenizer: Load, name: str, title: str):
    tokenizer = real_tokenizer(name)
    rendered = render(CONVERSATIONS[title], tokenizer)

    prove(encode(rendered, tokenizer), rendered, tokenizer)


@pytest.mark.parametrize(("name", "count"), list(zip(REAL, (0, 1, 1, 1), strict=True)))
def test_bos_stands_once_where_the_family_has_one(real_tokenizer: Load, name: str, count: int):
    tokenizer = real_tokenizer(name)

    ids = [encode(render(c, tokenizer), tokenizer).input_ids for c in CONVERSATIONS.values()]

    assert {int(np.count_nonzero(row == (tokenizer.bos_id or -1))) for row in ids} == {count}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen2.5", "yes<|im_end|>"),
        ("llama-3.1", "yes<|eot_id|>"),
        ("mistral-v0.3", " yes</s>"),
        ("mistral-nemo", "yes</s>"),
    ],
)
def test_a_stop_marker_typed_by_the_user_is_never_trained(
    real_tokenizer: Load, name: str, text: str
):
    tokenizer = real_tokenizer(name)
    stop = tokenizer.turn.stop

    encoded = encode(render(ask(f"say {stop} or {stop}", "yes"), tokenizer), tokenizer)

    assert trained_texts(encoded, tokenizer) == [text]


@pytest.mark.parametrize("name", REAL)
def test_an_answer_that_contains_a_stop_marker_is_refused(real_tokenizer: Load, name: str):
    tokenizer = real_tokenizer(name)

    with pytest.raises(DataError, match=r"test.jsonl:1: message 2 \(assistant\) contains"):
        render(ask("hi", f"yes {tokenizer.turn.stop} no"), tokenizer)


def test_a_user_who_types_the_bos_token_is_refused(real_tokenizer: Load):
    with pytest.raises(DataError, match=r"message 1 \(user\) contains <s>"):
        render(ask("<s>old</s>", "yes"), real_tokenizer("mistral-nemo"))


@pytest.mark.parametrize("name", REAL)
def test_the_last_turn_alone_can_be_trained(real_tokenizer: Load, name: str):
    tokenizer = real_tokenizer(name)
    rendered = render(CONVERSATIONS["many turns"], tokenizer, train_on="last_turn")

    encoded = encode(rendered, tokenizer)

    prove(encoded, rendered, tokenizer)
    assert trained_texts(encoded, tokenizer) == [as_trained("a 19", name)]


@pytest.mark.parametrize("name", REAL)
def test_everything_but_bos_can_be_trained(real_tokenizer: Load, name: str):
    tokenizer = real_tokenizer(name)
    rendered = render(CONVERSATIONS["two turns"], tokenizer, train_on="all")

    encoded = encode(rendered, tokenizer)

    prove(encoded, rendered, tokenizer)
    assert np.flatnonzero(encoded.labels == UNTRAINED).tolist() == ([0] if tokenizer.bos_id else [])


def test_training_on_everything_refuses_a_stop_marker_of_the_user(qwen: ChatTokenizer):
    with pytest.raises(DataError, match=r"message 1 \(user\) contains <\|im_end\|>"):
        render(ask("say <|im_end|>", "yes"), qwen, train_on="all")


@pytest.mark.parametrize("name", REAL)
@PROPERTY
@given(chat=CHATS, data=st.data())
def test_one_label_more_or_less_is_never_proved(
    real_tokenizer: Load, name: str, chat: Conversation, data: st.DataObject
):
    tokenizer = real_tokenizer(name)
    rendered = render(chat, tokenizer)
    encoded = encode(rendered, tokenizer)
    place = data.draw(st.integers(0, len(encoded.labels) - 1))
    labels = encoded.labels.copy()
    labels[place] = UNTRAINED if encoded.trained[place] else encoded.input_ids[place]

    with pytest.raises(DataError, match="the training mask cannot be proved"):
        prove(Encoded(encoded.input_ids, labels), rendered, tokenizer)


def test_a_system_prompt_is_added_where_the_row_has_none(qwen: ChatTokenizer):
    text = render(ask("hi", "yes"), qwen, system="Be terse.").text

    assert text.startswith("<|im_start|>system\nBe terse.<|im_end|>")


def test_a_system_prompt_of_the_row_wins(qwen: ChatTokenizer):
    text = render(CONVERSATIONS["chinese system"], qwen, system="Be terse.").text

    assert "Be terse." not in text


def test_nemo_gets_the_system_prompt_that_its_template_leaves_out(real_tokenizer: Load):
    """The template writes it only if the user speaks last, so never in a training row."""
    tokenizer = real_tokenizer("mistral-nemo")

    text = render(CONVERSATIONS["system"], tokenizer).text

    assert text == "<s>[INST]Be terse.\n\nhi[/INST]yes</s>"


def test_a_pinned_date_is_what_llama_writes(real_tokenizer: Load):
    text = render(ask("hi", "yes"), real_tokenizer("llama-3.1"), date="2025-01-31").text

    assert "Today Date: 31 Jan 2025\n" in text


def test_a_system_prompt_left_out_is_seen_though_its_words_stand_elsewhere(real_tokenizer: Load):
    chat = turns(("system", "hi"), ("user", "say hi"), ("assistant", "hi"))

    text = render(chat, real_tokenizer("mistral-nemo")).text

    assert text == "<s>[INST]hi\n\nsay hi[/INST]hi</s>"
