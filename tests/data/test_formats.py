"""Shapes of rows, and the message for each row that is none."""

from typing import Any

import pytest

from fastsft.data.formats import Message, Shape, detect, extra_keys, to_conversation
from fastsft.data.rows import Row
from fastsft.errors import DataError

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "yes"}
SYSTEM = {"role": "system", "content": "terse"}
PLACE = "train.jsonl:17"


def row(value: dict[str, Any]) -> Row:
    return Row("train.jsonl", 17, value)


def converted(value: dict[str, Any]) -> list[tuple[str, str]]:
    conversation = to_conversation(row(value), detect(value))
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ({"messages": [USER, BOT]}, "messages"),
        ({"prompt": "x", "prompt_id": 1, "messages": [USER, BOT]}, "messages"),
        ({"prompt": "x", "response": "y"}, "prompt_response"),
        ({"prompt": "x", "completion": "y"}, "prompt_response"),
        ({"instruction": "x", "output": "y"}, "alpaca"),
        ({"instruction": "x", "input": "", "output": "y"}, "alpaca"),
    ],
)
def test_the_shape_is_told_by_key_names(value: dict[str, Any], shape: Shape):
    assert detect(value) == shape


def test_messages_are_taken_as_they_stand():
    value = {"messages": [SYSTEM, USER, {"role": "assistant", "content": " yes\n"}]}

    assert converted(value) == [("system", "terse"), ("user", "hi"), ("assistant", " yes\n")]


def test_a_conversation_keeps_its_place():
    conversation = to_conversation(row({"messages": [USER, BOT]}), "messages")

    assert conversation.where == PLACE
    assert conversation.messages[1] == Message("assistant", "yes")


@pytest.mark.parametrize("answer", ["response", "completion"])
def test_prompt_and_response_are_one_turn(answer: str):
    value = {"prompt": "hi", answer: "yes", "system": "terse"}

    assert converted(value) == [("system", "terse"), ("user", "hi"), ("assistant", "yes")]


def test_alpaca_input_follows_the_instruction():
    value = {"instruction": "sum", "input": "1 2", "output": "3"}

    assert converted(value) == [("user", "sum\n\n1 2"), ("assistant", "3")]


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_column_is_none(empty: str | None):
    value = {"instruction": "hi", "input": empty, "output": "yes", "system": empty}

    assert converted(value) == [("user", "hi"), ("assistant", "yes")]


def test_an_explicit_empty_system_message_stays():
    value = {"messages": [{"role": "system", "content": ""}, USER, BOT]}

    assert converted(value)[0] == ("system", "")


def test_keys_that_nothing_reads_are_named():
    value = {"messages": [USER | {"name": "Ann"}, BOT], "source": "web"}

    assert extra_keys(value, "messages") == {"source", "messages[].name"}


@pytest.mark.parametrize(
    ("value", "what", "hint"),
    [
        ({"a": 1}, 'the row has no known shape; its keys are: "a"', '"messages"'),
        ({}, "the row has no known shape; its keys are: none", '"messages"'),
        ({"conversations": []}, "the row has no known shape", 'rename it to "messages"'),
        ({"text": "x"}, "the row has no known shape", "raw text has no answer"),
        (
            {"prompt": "x", "response": "y", "messages": []},
            "the row has the keys of two shapes: messages and prompt_response",
            "keep the keys of one shape",
        ),
        ({"messages": "x"}, '"messages" is not a list with at least one message', "write"),
        ({"messages": []}, '"messages" is not a list with at least one message', "write"),
        ({"messages": ["hi"]}, "message 1 is not an object", "write every message as"),
        (
            {"messages": [USER, {"role": "assistant"}]},
            'message 2 has no "content"',
            'add a "content" string to every message, or remove the message',
        ),
        (
            {"messages": [USER, BOT | {"content": None}]},
            'message 2: "content" is null, not a string',
            "one string",
        ),
        (
            {"messages": [USER | {"content": [{"type": "text"}]}, BOT]},
            'message 1: "content" is a list, not a string',
            "one string",
        ),
        ({"messages": [{"content": "hi"}]}, 'message 1 has no "role"', "add one of: system"),
        (
            {"messages": [USER | {"role": "human"}, BOT]},
            "message 1 has the unknown role 'human'; did you mean \"user\"?",
            "use one of: system, user, assistant",
        ),
        (
            {"messages": [USER, BOT | {"role": "gpt"}]},
            "message 2 has the unknown role 'gpt'; did you mean \"assistant\"?",
            "use one of: system, user, assistant",
        ),
        (
            {"messages": [USER, BOT | {"role": "tool"}]},
            "message 2 has the unknown role 'tool'",
            "use one of: system, user, assistant",
        ),
        ({"messages": [USER]}, "no assistant turn, so nothing to train on", "add the answer"),
        (
            {"messages": [USER, BOT, USER]},
            "message 3, the last one, is from the user and has no answer",
            "add the assistant's answer, or remove the last message",
        ),
        (
            {"messages": [USER, BOT, SYSTEM]},
            "message 3 is a system message, but not the first message",
            "put the one system message first",
        ),
        (
            {"messages": [USER, USER, BOT]},
            "message 2 is from the user where the assistant must speak",
            "take turns",
        ),
        (
            {"messages": [BOT]},
            "message 1 is from the assistant where the user must speak",
            "take turns",
        ),
        (
            {"messages": [USER, BOT | {"content": " \n"}]},
            "message 2 is an empty answer",
            "write its text, or remove the row",
        ),
        (
            {"messages": [USER | {"content": ""}, BOT]},
            "message 1 is an empty user message",
            "write its text, or remove the row",
        ),
        (
            {"messages": [USER, BOT | {"tool_calls": [{}]}]},
            'message 2 has "tool_calls", which is not supported',
            'remove "tool_calls"',
        ),
        (
            {"messages": [USER, BOT], "tools": [{}]},
            'the row has "tools", which is not supported',
            'remove "tools"',
        ),
        (
            {"prompt": 3, "response": "y"},
            'the row: "prompt" is a number, not a string',
            "one string",
        ),
        ({"instruction": "x", "output": ""}, "message 2 is an empty answer", "write its text"),
    ],
)
def test_a_bad_row_is_told_what_and_how(value: dict[str, Any], what: str, hint: str):
    with pytest.raises(DataError) as caught:
        converted_at_place(value)

    assert str(caught.value).startswith(f"{PLACE}: {what}")
    assert hint in caught.value.hint


def converted_at_place(value: dict[str, Any]) -> None:
    to_conversation(row(value), detect(value, where=PLACE))


def test_a_row_of_another_shape_than_the_first_is_named():
    with pytest.raises(DataError, match=rf"{PLACE}: the row is not of the shape alpaca"):
        to_conversation(row({"prompt": "x", "response": "y"}), "alpaca")


def test_a_message_weight_is_refused_even_when_it_is_zero():
    value = {"messages": [USER, BOT | {"weight": 0}]}

    with pytest.raises(DataError, match='message 2 has "weight"'):
        converted(value)
