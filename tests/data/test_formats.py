"""Shapes of rows, what each becomes, and the message for each row that is none."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from fastsft.data.formats import (
    Conversation,
    Document,
    Message,
    Shape,
    detect,
    extra_keys,
    rename,
    to_conversation,
    to_document,
)
from fastsft.data.rows import Row
from fastsft.errors import BadRow

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "yes"}
SYSTEM = {"role": "system", "content": "terse"}
HUMAN = {"from": "human", "value": "hi"}
GPT = {"from": "gpt", "value": "yes"}
PLACE = "train.jsonl:17"

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
PARSED = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3"}


def row(value: dict[str, Any]) -> Row:
    return Row("train.jsonl", 17, value)


def conversation(value: dict[str, Any]) -> Conversation:
    return to_conversation(row(value), detect(value, where=PLACE))


def converted(value: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation(value).messages]


def trained(value: dict[str, Any]) -> list[bool]:
    return [m.trained for m in conversation(value).messages if m.role == "assistant"]


def tooled(*messages: Mapping[str, Any], tools: object = (TOOL,)) -> dict[str, Any]:
    return {"messages": list(messages), "tools": list(tools) if tools == (TOOL,) else tools}


def call(**function: object) -> dict[str, Any]:
    return ASKS | {"tool_calls": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        ({"messages": [USER, BOT]}, "messages"),
        ({"prompt": "x", "prompt_id": 1, "messages": [USER, BOT]}, "messages"),
        ({"conversations": [HUMAN, GPT]}, "sharegpt"),
        ({"prompt": "x", "response": "y"}, "prompt_response"),
        ({"prompt": "x", "completion": "y"}, "prompt_response"),
        ({"prompt": "x", "answer": "y"}, "prompt_response"),
        ({"prompt": "x", "output": "y"}, "prompt_response"),
        ({"query": "x", "response": "y"}, "prompt_response"),
        ({"instruction": "x", "output": "y"}, "alpaca"),
        ({"instruction": "x", "input": "", "output": "y"}, "alpaca"),
        ({"instruction": "x", "context": "", "response": "y", "category": "qa"}, "alpaca"),
        ({"question": "x", "answer": "y"}, "question_answer"),
        ({"text": "x"}, "text"),
        ({"instruction": "x", "output": "y", "text": "x y"}, "alpaca"),
    ],
)
def test_the_shape_is_told_by_key_names(value: dict[str, Any], shape: Shape):
    assert detect(value) == shape


def test_messages_are_taken_as_they_stand():
    value = {"messages": [SYSTEM, USER, {"role": "assistant", "content": " yes\n"}]}

    assert converted(value) == [("system", "terse"), ("user", "hi"), ("assistant", " yes\n")]


def test_a_conversation_keeps_its_place():
    chat = to_conversation(row({"messages": [USER, BOT]}), "messages")

    assert chat.where == PLACE
    assert chat.messages[1] == Message("assistant", "yes")


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]

    assert converted({"messages": [USER | {"content": parts}, BOT]})[0] == ("user", "a b")


def test_sharegpt_turns_become_messages():
    value = {"conversations": [{"from": "system", "value": "terse"}, HUMAN, GPT]}

    assert converted(value) == [("system", "terse"), ("user", "hi"), ("assistant", "yes")]


@pytest.mark.parametrize(("user", "assistant"), [("human", "gpt"), ("user", "assistant")])
def test_sharegpt_roles_have_two_names(user: str, assistant: str):
    value = {"conversations": [HUMAN | {"from": user}, GPT | {"from": assistant}]}

    assert converted(value) == [("user", "hi"), ("assistant", "yes")]


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [USER, BOT]},
        {"conversations": [HUMAN, GPT]},
        {"prompt": "hi", "response": "yes"},
        {"prompt": [USER], "completion": [BOT]},
        {"query": "hi", "response": "yes"},
        {"question": "hi", "answer": "yes"},
        {"instruction": "hi", "output": "yes"},
    ],
)
def test_a_system_column_comes_first_in_every_shape(value: dict[str, Any]):
    expected = [("system", "terse"), ("user", "hi"), ("assistant", "yes")]

    assert converted(value | {"system": "terse"}) == expected
    assert converted(value | {"system": None}) == converted(value | {"system": " "}) == expected[1:]


@pytest.mark.parametrize("answer", ["response", "completion", "answer", "output"])
def test_prompt_and_response_are_one_turn(answer: str):
    assert converted({"prompt": "hi", answer: "yes"}) == [("user", "hi"), ("assistant", "yes")]


def test_a_null_column_beside_the_answer_is_none():
    value = {"prompt": "hi", "response": None, "completion": "yes"}

    assert converted(value) == [("user", "hi"), ("assistant", "yes")]


def test_answers_inside_a_prompt_of_messages_are_not_trained():
    value = {"prompt": [SYSTEM, USER, BOT, USER], "completion": [BOT, USER, BOT]}

    assert trained(value) == [False, True, True]
    assert len(converted(value)) == 7


def test_alpaca_input_follows_the_instruction():
    value = {"instruction": "sum", "input": "1 2", "output": "3"}

    assert converted(value) == [("user", "sum\n\n1 2"), ("assistant", "3")]


def test_dollys_context_is_an_input():
    value = {"instruction": "sum", "context": "1 2", "response": "3", "category": "maths"}

    assert converted(value) == [("user", "sum\n\n1 2"), ("assistant", "3")]


def test_alpaca_history_comes_before():
    value = {"instruction": "c", "output": "C", "history": [["a", "A"], ["b", "B"]], "system": "s"}

    assert [content for _, content in converted(value)] == ["s", "a", "A", "b", "B", "c", "C"]
    assert trained(value) == [True, True, True]


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_column_is_none(empty: str | None):
    value = {"instruction": "hi", "input": empty, "output": "yes", "system": empty}

    assert converted(value) == [("user", "hi"), ("assistant", "yes")]


@pytest.mark.parametrize("empty", ["", [], None])
def test_an_empty_history_is_none(empty: object):
    value = {"instruction": "hi", "output": "yes", "history": empty}

    assert converted(value) == [("user", "hi"), ("assistant", "yes")]


def test_an_explicit_empty_system_message_stays():
    value = {"messages": [{"role": "system", "content": ""}, USER, BOT]}

    assert converted(value)[0] == ("system", "")


@pytest.mark.parametrize(
    ("weight", "is_trained"), [(0, False), (0.0, False), (1, True), (1.0, True), (None, True)]
)
def test_a_weight_says_whether_an_answer_is_trained(weight: object, is_trained: bool):
    messages = [USER | {"weight": 0}, BOT | {"weight": weight}, USER, BOT]
    shared = [HUMAN, GPT | {"weight": weight}, HUMAN, GPT]

    assert trained({"messages": messages}) == [is_trained, True]
    assert trained({"conversations": shared}) == [is_trained, True]


def test_a_tool_call_gets_its_arguments_as_an_object():
    chat = conversation(tooled(USER, ASKS, RESULT | {"name": "add"}, BOT))

    assert chat.tools == (TOOL,)
    assert chat.messages[1] == Message("assistant", "", tool_calls=(PARSED,))
    assert chat.messages[2] == Message("tool", "3", tool_call_id="c1", name="add")


def test_arguments_that_are_an_object_already_stay():
    asks = call(name="add", arguments={"a": "é"})

    assert conversation(tooled(USER, asks)).messages[1].tool_calls == tuple(asks["tool_calls"])


@pytest.mark.parametrize(
    "messages",
    [
        [USER, ASKS],
        [USER, ASKS | {"content": "wait"}, RESULT, BOT],
        [USER, ASKS, RESULT, ASKS, RESULT, BOT],
        [USER, ASKS | {"tool_calls": [CALL, CALL | {"id": "c2"}]}, RESULT, RESULT, BOT, USER, BOT],
        [USER, ASKS, RESULT | {"tool_call_id": None, "content": ""}, BOT],
        [SYSTEM, USER, BOT | {"tool_calls": None}, USER, BOT | {"tool_calls": []}],
    ],
)
def test_tools_may_speak_after_their_call(messages: list[dict[str, Any]]):
    assert len(converted(tooled(*messages))) == len(messages)


@pytest.mark.parametrize("tools", [json.dumps([TOOL]), [TOOL]])
def test_tools_may_be_json_text(tools: object):
    assert conversation(tooled(USER, ASKS, tools=tools)).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, [], "", "[]", " "])
def test_a_row_without_tools_has_none(tools: object):
    assert conversation(tooled(USER, BOT, tools=tools)).tools == ()


def test_a_text_is_a_document():
    assert to_document(row({"text": " a\n"}), "text") == Document(" a\n", PLACE)
    assert to_document(row({"text": "a", "continues": True}), "text").continues


def test_keys_that_nothing_reads_are_named():
    value = {"messages": [USER | {"name": "Ann"}, BOT | {"weight": 1, "id": None}], "source": "web"}

    assert extra_keys(value, "messages") == {"source", "messages[].name"}


@pytest.mark.parametrize(
    ("value", "extra"),
    [
        (
            {"conversations": [HUMAN | {"markdown": 1}, GPT], "id": 3},
            {"conversations[].markdown", "id"},
        ),
        (
            {"prompt": [USER], "completion": [BOT | {"x": 1}], "text": ""},
            {"completion[].x", "text"},
        ),
        ({"instruction": "x", "context": "c", "response": "y", "category": "q"}, {"category"}),
        ({"question": "x", "answer": "y", "context": "z"}, {"context"}),
        ({"text": "x", "url": "u"}, {"url"}),
        (tooled(USER, ASKS, RESULT | {"name": "add"}, BOT), set()),
    ],
)
def test_what_a_shape_does_not_read_is_extra(value: dict[str, Any], extra: set[str]):
    assert extra_keys(value, detect(value)) == extra


def test_columns_are_renamed_and_the_others_left_out():
    renamed = rename(row({"q": "hi", "a": "yes", "text": "t"}), {"prompt": "q", "response": "a"})

    assert renamed == row({"prompt": "hi", "response": "yes"})


def test_a_missing_column_is_told_with_the_nearest_one():
    with pytest.raises(BadRow) as caught:
        rename(row({"question_text": "hi", "a": "yes"}), {"prompt": "question_txt"})

    assert caught.value.reason == "missing_column"
    assert str(caught.value) == (
        f'{PLACE}: the row has no "question_txt", which data.sources[].columns names; '
        'did you mean "question_text"?\n  hint: name one of the row\'s keys: "question_text", "a"'
    )


@pytest.mark.parametrize(
    ("value", "reason", "what", "hint"),
    [
        ({"a": 1}, "unknown_shape", 'the row has no known shape; its keys are: "a"', '"messages"'),
        ({}, "unknown_shape", "the row has no known shape; its keys are: none", '"messages"'),
        ({"conversation": []}, "unknown_shape", "the row has no", "{conversations: conversation}"),
        (
            {"Question": "x", "Answer": "y", "Id": 1},
            "unknown_shape",
            'the row has no known shape; its keys are: "Question", "Answer", "Id"',
            "case-sensitive: set data.sources[].columns to {answer: Answer, question: Question}",
        ),
        (
            {"prompt": "x", "chosen": "y", "rejected": "z"},
            "unknown_shape",
            "the row has no known shape",
            "{prompt: prompt, response: chosen}",
        ),
        ({"text": "x"}, "no_answer", "the row is raw text", "set method: pretrain"),
        (
            {"prompt": "x", "response": "y", "messages": []},
            "two_shapes",
            "the row has the keys of two shapes: messages and prompt_response",
            "keep the keys of one shape",
        ),
        (
            {"question": "x", "answer": "y", "prompt": "z"},
            "two_shapes",
            "the row has the keys of two shapes: prompt_response and question_answer",
            "data.sources[].columns",
        ),
        (
            {"prompt": "x", "response": "y", "completion": "z"},
            "two_shapes",
            'the row has "response" and "completion", of which one would be left out',
            "data.sources[].columns",
        ),
        (
            {"instruction": "x", "input": "", "context": "c", "output": "z"},
            "two_shapes",
            'the row has "input" and "context", of which one would be left out',
            "data.sources[].columns",
        ),
        ({"messages": "x"}, "wrong_type", '"messages" is not a list with at least', "write"),
        ({"messages": []}, "empty_messages", '"messages" is not a list with at least', "write"),
        (
            {"conversations": []},
            "empty_messages",
            '"conversations" is not a list with at least one message',
            'write "conversations": [{"from": "human", "value": "…"}, …]',
        ),
        ({"messages": ["hi"]}, "wrong_type", "message 1 is not an object", "write every message"),
        ({"conversations": [1]}, "wrong_type", "message 1 is not an object", '{"from": "…"'),
        (
            {"messages": [USER, {"role": "assistant"}]},
            "missing_content",
            'message 2 has no "content"',
            'add a "content" string to every message, or remove the message',
        ),
        (
            {"messages": [USER, BOT | {"content": None}]},
            "missing_content",
            'message 2: "content" is null, not a string',
            "one string",
        ),
        (
            {"conversations": [HUMAN, {"from": "gpt"}]},
            "missing_content",
            'message 2 has no "value"',
            'add a "value" string',
        ),
        (
            {"messages": [USER | {"content": [{"type": "text"}]}, BOT]},
            "wrong_type",
            'message 1: "content" has a part that is not text',
            "one string",
        ),
        (
            {"messages": [USER | {"content": [{"type": "image_url", "text": "x"}]}, BOT]},
            "wrong_type",
            'message 1: "content" has a part that is not text',
            "one string",
        ),
        (
            {"messages": [USER | {"content": []}, BOT]},
            "wrong_type",
            'message 1: "content" is an empty list',
            "one string",
        ),
        (
            {"messages": [{"content": "hi"}]},
            "missing_role",
            'message 1 has no "role"',
            "add one of: system, user, assistant, tool",
        ),
        ({"messages": [HUMAN]}, "missing_role", "message 1 has no", "{conversations: messages}"),
        ({"conversations": [USER]}, "missing_role", 'message 1 has no "from"', "{messages: conv"),
        (
            {"messages": [USER | {"role": "human"}, BOT]},
            "unknown_role",
            "message 1 has the unknown role 'human'; did you mean \"user\"?",
            "use one of: system, user, assistant",
        ),
        (
            {"messages": [USER, BOT | {"role": "gpt"}]},
            "unknown_role",
            "message 2 has the unknown role 'gpt'; did you mean \"assistant\"?",
            "use one of: system, user, assistant",
        ),
        (
            {"messages": [SYSTEM | {"role": "developer"}, USER, BOT]},
            "unknown_role",
            "message 1 has the unknown role 'developer'; did you mean \"system\"?",
            "use one of",
        ),
        (
            {"messages": [USER | {"role": "User "}, BOT]},
            "unknown_role",
            "message 1 has the unknown role 'User '; did you mean \"user\"?",
            "use one of",
        ),
        (
            {"messages": [USER | {"role": ["user"]}, BOT]},
            "unknown_role",
            "message 1 has the unknown role ['user']",
            "use one of",
        ),
        (
            {"conversations": [HUMAN, GPT | {"from": "chatgpt"}]},
            "unknown_role",
            "message 2 has the unknown role 'chatgpt'; did you mean \"gpt\"?",
            "use one of: system, human, user, gpt, assistant",
        ),
        (
            {"conversations": [HUMAN, GPT | {"from": "function_call"}]},
            "unknown_role",
            "message 2 is from 'function_call'; tools are not read from ShareGPT rows",
            'write the row as "messages" with "tool_calls"',
        ),
        ({"messages": [USER]}, "no_assistant", "no assistant turn, so nothing", "add the answer"),
        ({"messages": [SYSTEM]}, "no_assistant", "no assistant turn, so nothing", "add the"),
        (
            {"messages": [USER, BOT, USER]},
            "no_answer",
            "message 3, the last one, is from the user and has no answer",
            "add the assistant's answer, or remove the last message",
        ),
        (
            {"messages": [USER, BOT, SYSTEM]},
            "system_not_first",
            "message 3 is a system message, but not the first message",
            "put the one system message first",
        ),
        (
            {"messages": [SYSTEM, SYSTEM, USER, BOT]},
            "system_not_first",
            "message 2 is a system message, but not the first message",
            "put the one system message first",
        ),
        (
            {"messages": [SYSTEM, USER, BOT], "system": "terse"},
            "system_not_first",
            'the row has a "system" and a system message',
            "keep one of the two",
        ),
        (
            {"messages": [USER, USER, BOT]},
            "not_alternating",
            "message 2 is from the user where the assistant must speak",
            "take turns",
        ),
        (
            {"conversations": [HUMAN, HUMAN, GPT], "system": "terse"},
            "not_alternating",
            "message 2 is from the user where the assistant must speak",
            "take turns",
        ),
        (
            {"messages": [BOT]},
            "assistant_first",
            "message 1 is from the assistant where the user must speak",
            "take turns",
        ),
        (
            {"messages": [SYSTEM, BOT]},
            "assistant_first",
            "message 2 is from the assistant where the user must speak",
            "take turns",
        ),
        (
            {"messages": [USER, BOT | {"content": " \n"}]},
            "empty_answer",
            "message 2 is an empty answer",
            "write its text, or remove the row",
        ),
        (
            {"messages": [USER | {"content": ""}, BOT]},
            "empty_user",
            "message 1 is an empty user message",
            "write its text, or remove the row",
        ),
        (
            {"prompt": 3, "response": "y"},
            "wrong_type",
            'the row: "prompt" is a number, not a string',
            "one string",
        ),
        (
            {"prompt": [USER], "completion": "yes"},
            "wrong_type",
            '"completion" is not a list with at least one message',
            "write",
        ),
        ({"instruction": "x", "output": ""}, "empty_answer", "message 2 is an empty", "its text"),
        (
            {"instruction": "x", "output": "y", "history": [["a"]]},
            "wrong_type",
            '"history" is not a list of pairs of strings',
            'write "history": [["question", "answer"], …]',
        ),
        (
            {"prompt": "x", "response": "y", "history": [["a", "b"]]},
            "unsupported",
            'the row has "history", which is not supported',
            'remove "history"',
        ),
        (
            {"conversations": [HUMAN, GPT], "tools": [TOOL]},
            "unsupported",
            'the row has "tools", which is not supported',
            'remove "tools"',
        ),
        (
            {"messages": [USER, BOT], "functions": [{}]},
            "unsupported",
            'the row has "functions", which is not supported',
            'write them as "tools"',
        ),
        (
            {"messages": [USER, BOT | {"function_call": {}, "images": [1]}]},
            "unsupported",
            'message 2 has "images", which is not supported',
            'remove "images"',
        ),
        (
            {"messages": [USER, BOT], "weight": 1},
            "unsupported",
            'the row has "weight", which is not supported',
            'remove "weight"',
        ),
    ],
)
def test_a_bad_row_is_told_what_and_how(value: dict[str, Any], reason: str, what: str, hint: str):
    assert_refused(value, reason, what, hint)


@pytest.mark.parametrize(
    ("messages", "what", "hint"),
    [
        ([USER, BOT | {"weight": 2}], "message 2 has the weight 2", "write 0 or 1"),
        ([USER, BOT | {"weight": 0.5}], "message 2 has the weight 0.5", "write 0 or 1"),
        ([USER, BOT | {"weight": True}], "message 2 has the weight True", "write 0 or 1"),
        ([USER, BOT | {"weight": "1"}], "message 2 has the weight '1'", "write 0 or 1"),
        (
            [USER | {"weight": 1}, BOT],
            "message 1 is from the user and has the weight 1",
            "only answers are trained",
        ),
    ],
)
def test_a_weight_that_is_none_is_refused(messages: list[Any], what: str, hint: str):
    assert_refused({"messages": messages}, "bad_weight", what, hint)


def test_a_weight_inside_a_prompt_is_refused():
    value = {"prompt": [USER, BOT | {"weight": 1}, USER], "completion": [BOT]}

    assert_refused(value, "bad_weight", "message 2 has the weight 1, but a prompt is", "completion")


BAD_CALL = 'write {"id": "…", "type": "function"'
BAD_TOOLS = 'write "tools" as a list'
AFTER_CALL = "put it after the assistant message"


@pytest.mark.parametrize(
    ("value", "reason", "what", "hint"),
    [
        (
            tooled(USER, RESULT, BOT),
            "tool_without_call",
            "message 2 is from a tool that nobody called",
            AFTER_CALL,
        ),
        (
            tooled(USER, BOT, RESULT, BOT),
            "tool_without_call",
            "message 3 is from a tool that nobody called",
            AFTER_CALL,
        ),
        (
            tooled(USER, ASKS, RESULT, RESULT, BOT),
            "tool_without_call",
            "message 4 is a tool's result number 2, but there are 1 calls",
            AFTER_CALL,
        ),
        (
            tooled(USER, ASKS, RESULT | {"tool_call_id": "c9"}, BOT),
            "tool_without_call",
            "message 3 answers the tool call 'c9', which nobody made",
            AFTER_CALL,
        ),
        (
            {"messages": [USER, ASKS]},
            "call_without_tool",
            "message 2 calls 'add', which needs \"tools\" in the row",
            "describe the function",
        ),
        (
            tooled(USER, call(name="sub", arguments={})),
            "call_without_tool",
            "message 2 calls 'sub', which is not among the row's tools",
            "describe the function",
        ),
        (
            tooled(USER, ASKS, USER, BOT),
            "not_alternating",
            "message 3 is from the user where the tool must speak",
            "answer the tool call",
        ),
        (
            tooled(USER, ASKS, RESULT, USER, BOT),
            "not_alternating",
            "message 4 is from the user where the assistant must speak",
            "take turns",
        ),
        (
            tooled(USER, ASKS, RESULT),
            "no_answer",
            "message 3, the last one, is from the tool and has no answer",
            "add the assistant's answer",
        ),
        (
            tooled(USER | {"tool_calls": [CALL]}, BOT),
            "unsupported",
            'message 1 is from the user and has "tool_calls"',
            'remove "tool_calls"',
        ),
        (
            tooled(USER, BOT | {"tool_calls": {"name": "add"}}),
            "bad_tool_call",
            'message 2: "tool_calls" is not a list',
            BAD_CALL,
        ),
        (
            tooled(USER, BOT | {"tool_calls": [{"name": "add", "arguments": {}}]}),
            "bad_tool_call",
            "message 2 has a tool call that is not a function with a name",
            BAD_CALL,
        ),
        (
            tooled(USER, ASKS | {"tool_calls": [CALL | {"id": 7}]}),
            "bad_tool_call",
            "message 2 has a tool call that is not a function with a name and a text id",
            BAD_CALL,
        ),
        (
            tooled(USER, call(name="add", arguments='{"a": ')),
            "bad_tool_call",
            "message 2: the arguments of 'add' are not JSON: Expecting value",
            BAD_CALL,
        ),
        (
            tooled(USER, call(name="add", arguments='{"a": NaN}')),
            "bad_tool_call",
            "message 2: the arguments of 'add' are not JSON: NaN is not JSON",
            BAD_CALL,
        ),
        (
            tooled(USER, call(name="add", arguments='{"a": 1, "a": 2}')),
            "bad_tool_call",
            "message 2: the arguments of 'add' are not JSON: a key appears twice",
            BAD_CALL,
        ),
        (
            tooled(USER, call(name="add", arguments='{"a": "\\ud83d"}')),
            "bad_tool_call",
            "message 2: the arguments of 'add' are not JSON: 'utf-8' codec can't encode",
            BAD_CALL,
        ),
        (
            tooled(USER, call(name="add", arguments="[" * 100_000)),
            "bad_tool_call",
            "message 2: the arguments of 'add' are not JSON: nested too deeply",
            BAD_CALL,
        ),
        (
            tooled(USER, call(name="add", arguments="[1]")),
            "bad_tool_call",
            "message 2: the arguments of 'add' are no object",
            BAD_CALL,
        ),
        (tooled(USER, BOT, tools=[{"name": "add"}]), "bad_tools", "tool 1 is not a", BAD_TOOLS),
        (tooled(USER, BOT, tools={"a": 1}), "bad_tools", '"tools" is not a list', BAD_TOOLS),
        (tooled(USER, BOT, tools="[{"), "bad_tools", '"tools" is text that is not', BAD_TOOLS),
    ],
)
def test_tools_out_of_place_are_told(value: dict[str, Any], reason: str, what: str, hint: str):
    assert_refused(value, reason, what, hint)


def assert_refused(value: dict[str, Any], reason: str, what: str, hint: str) -> None:
    with pytest.raises(BadRow) as caught:
        conversation(value)

    assert str(caught.value).startswith(f"{PLACE}: {what}")
    assert hint in caught.value.hint
    assert caught.value.reason == reason


def test_a_row_of_another_shape_than_the_first_is_named():
    with pytest.raises(BadRow, match=rf"{PLACE}: the row is not of the shape alpaca") as caught:
        to_conversation(row({"prompt": "x", "response": "y"}), "alpaca")

    assert caught.value.reason == "mixed_shapes"


@pytest.mark.parametrize(
    ("value", "shape", "reason", "what"),
    [
        ({"text": " \n"}, "text", "missing_content", '"text" is empty'),
        ({"text": 3}, "text", "wrong_type", 'the row: "text" is a number, not a string'),
        ({"messages": [USER, BOT]}, "text", "mixed_shapes", "the row is not of the shape text"),
        (
            {"messages": [USER, BOT]},
            "messages",
            "mixed_shapes",
            "the row is of the shape messages, not raw text",
        ),
    ],
)
def test_what_is_no_document_is_told(value: dict[str, Any], shape: Shape, reason: str, what: str):
    with pytest.raises(BadRow) as caught:
        to_document(row(value), shape)

    assert str(caught.value).startswith(f"{PLACE}: {what}")
    assert caught.value.reason == reason
