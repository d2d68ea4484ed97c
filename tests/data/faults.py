"""Kinds of faulty lines, each with the ledger's word for it; what a stranger's file may hold."""

import json
from collections.abc import Callable, Mapping
from typing import Any

Line = Callable[[int], bytes]
USER, BOT, SYSTEM = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "find", "arguments": "{}"}}


def said(*messages: Any, **extra: Any) -> Line:
    """A `messages` row, different for each number."""
    return lambda number: json.dumps(
        {"messages": [_numbered(message, number) for message in messages], **extra}
    ).encode()


def _numbered(message: Any, number: int) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        return message
    return {**message, "content": message["content"].replace("x", f"text {number}")}


def good(number: int) -> bytes:
    return said(USER, BOT)(number)


def raw(before: bytes, after: bytes = b"") -> Line:
    return lambda number: before + str(number).encode() + after


START = b'{"messages": [{"role": "user", "content": "'
END = b'"}, {"role": "assistant", "content": "a"}]}'

KINDS: Mapping[str, tuple[str, Line]] = {
    "not UTF-8": ("not_utf8", raw(START + b"caf\xe9 ", END)),
    "a NUL byte": ("nul_byte", raw(START + b"a\x00b ", END)),
    "half a line": ("not_json", raw(START + b"half ")),
    "a very long line": ("line_too_long", raw(START + b"x" * 70_000, END)),
    "a key twice": ("duplicate_key", raw(b'{"id": 1, "id": 2, "messages": [', b"]}")),
    "a NaN literal": ("nan_literal", raw(b'{"score": NaN, "messages": [', b"]}")),
    "an infinite literal": ("nan_literal", raw(b'{"score": -Infinity, "messages": [', b"]}")),
    "an array": ("not_an_object", raw(b"[", b"]")),
    "a lone surrogate": ("lone_surrogate", raw(START + b"\\ud83d ", END)),
    "nested deeply": ("too_deep", raw(b"[" * 60_000)),
    "no known keys": ("unknown_shape", raw(b'{"a": ', b"}")),
    "keys of two shapes": ("two_shapes", said(USER, BOT, prompt="x", response="y")),
    "another shape": ("mixed_shapes", raw(b'{"prompt": "', b'", "response": "y"}')),
    "a number as content": ("wrong_type", said(USER, BOT | {"content": 3})),
    "content null": ("missing_content", said(USER, BOT | {"content": None})),
    "an unknown role": ("unknown_role", said(USER | {"role": "human"}, BOT)),
    "no role": ("missing_role", said({"content": "x"}, BOT)),
    "no content": ("missing_content", said(USER, {"role": "assistant"})),
    "an empty answer": ("empty_answer", said(USER, BOT | {"content": " \n"})),
    "an empty question": ("empty_user", said(USER | {"content": ""}, BOT)),
    "two system messages": ("system_not_first", said(SYSTEM, SYSTEM, USER, BOT)),
    "the assistant first": ("assistant_first", said(BOT, USER, BOT)),
    "the user last": ("no_answer", said(USER, BOT, USER)),
    "the user twice": ("not_alternating", said(USER, USER, BOT)),
    "no assistant": ("no_assistant", said(USER)),
    "no messages": ("empty_messages", said()),
    "a message that is no object": ("wrong_type", said(USER, "x")),
    "a call of no tool": (
        "call_without_tool",
        said(USER, {"role": "assistant", "tool_calls": [CALL]}, tools=[TOOL]),
    ),
    "a tool that nobody called": (
        "tool_without_call",
        said(USER, {"role": "tool", "content": "x"}, BOT),
    ),
    "a strange weight": ("bad_weight", said(USER, BOT | {"weight": 0.5})),
    "a stop token in an answer": ("control_token", said(USER, BOT | {"content": "x<|im_end|>"})),
}
