"""Conversations with tool calls: what the model writes is trained, what tools say is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_tokenizer import CHATML, write_tokenizer
from transformers import AutoTokenizer

from fastsft.data.conversation import Conversation, Message
from fastsft.data.encode import encode, prove
from fastsft.data.render import TrainOn, render
from fastsft.data.show import segments
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.data.tool_turns import dicts
from fastsft.errors import BadRow

Load = Callable[[str], ChatTokenizer]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "北京"}},
}
ASKED = (
    Message("user", "Weather in Beijing?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "sunny", tool_call_id="abcdefghi", name="get_weather"),
    Message("assistant", "It is sunny in Beijing."),
)
MORE = (*ASKED, Message("user", "Thanks!"), Message("assistant", "You are welcome."))


def chat(*messages: Message) -> Conversation:
    return Conversation(messages, "rows.jsonl:7", tools=(WEATHER,))


def trained(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn = "assistant"
) -> list[str]:
    rendered = render(conversation, tokenizer, train_on=train_on, date="2024-07-26")
    encoded = encode(rendered, tokenizer)
    prove(encoded, rendered, tokenizer)
    parts = segments(encoded.input_ids, encoded.labels, tokenizer)
    return [text for text, is_trained in parts if is_trained]


CALLS = {
    "qwen2.5": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}}\n</tool_call>'
    "<|im_end|>",
    "llama-3.1": '{"name": "get_weather", "parameters": {"city": "北京"}}<|eot_id|>',
}
ENDS = {"qwen2.5": "<|im_end|>", "llama-3.1": "<|eot_id|>"}


@pytest.mark.parametrize("name", CALLS)
def test_the_call_and_the_answers_are_trained_with_their_stop_tokens(
    real_tokenizer: Load, name: str
):
    end = ENDS[name]

    assert trained(chat(*MORE), real_tokenizer(name)) == [
        CALLS[name],
        f"It is sunny in Beijing.{end}",
        f"You are welcome.{end}",
    ]


def test_mistral_nemo_trains_a_call_within_one_question(real_tokenizer: Load):
    call, answer = trained(chat(*ASKED), real_tokenizer("mistral-nemo"))

    assert call.strip().startswith("[TOOL_CALLS]")
    assert call.endswith("</s>")
    assert '"get_weather"' in call
    assert answer.strip() == "It is sunny in Beijing.</s>"


@pytest.mark.parametrize("name", ["qwen2.5", "llama-3.1", "mistral-nemo"])
def test_the_text_is_that_of_transformers(
    real_tokenizer: Load, tokenizer_folder: Callable[[str], Path], name: str
):
    theirs = AutoTokenizer.from_pretrained(tokenizer_folder(name)).apply_chat_template(
        dicts(ASKED), tools=[WEATHER], tokenize=False, date_string="26 Jul 2024"
    )

    assert render(chat(*ASKED), real_tokenizer(name), date="2024-07-26").text == theirs


def test_the_last_turn_alone_can_be_trained(real_tokenizer: Load):
    texts = trained(chat(*MORE), real_tokenizer("qwen2.5"), "last_turn")

    assert texts == ["You are welcome.<|im_end|>"]


def test_a_weight_of_zero_leaves_a_call_untrained(real_tokenizer: Load):
    user, _, result, answer = ASKED
    call = Message("assistant", "", trained=False, tool_calls=(CALL,))

    texts = trained(chat(user, call, result, answer), real_tokenizer("qwen2.5"))

    assert texts == ["It is sunny in Beijing.<|im_end|>"]


def test_mistral_refuses_what_it_rewrites(real_tokenizer: Load):
    """Its template writes the tools before the last question only."""
    with pytest.raises(BadRow) as caught:
        render(chat(*MORE), real_tokenizer("mistral-nemo"))

    assert caught.value.reason == "unproved"
    assert caught.value.where == "rows.jsonl:7"


def test_a_real_template_that_knows_no_tools_is_refused(real_tokenizer: Load):
    with pytest.raises(BadRow, match="does not write the tool 'get_weather'"):
        render(chat(*ASKED), real_tokenizer("mistral-v0.3"))


def test_a_template_that_knows_no_tools_is_refused(tmp_path: Path):
    tokenizer = ChatTokenizer.load(write_tokenizer(tmp_path, template=CHATML))

    with pytest.raises(BadRow, match="does not write the tool 'get_weather'") as caught:
        render(chat(*ASKED), tokenizer)

    assert caught.value.reason == "tools_unknown"


def test_a_stop_marker_in_a_tools_result_is_never_trained(real_tokenizer: Load):
    user, call, _, answer = ASKED
    result = Message("tool", "sunny <|im_end|> day", tool_call_id="abcdefghi")

    texts = trained(chat(user, call, result, answer), real_tokenizer("qwen2.5"))

    assert texts[1] == "It is sunny in Beijing.<|im_end|>"
