"""Turns a row of any supported shape into one conversation.  Guesses nothing, renames nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from fastsft.data.rows import Row
from fastsft.errors import DataError

Role = Literal["system", "user", "assistant"]
Shape = Literal["messages", "prompt_response", "alpaca"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

SHAPES_HINT = (
    'use "messages" (a list of {"role", "content"}), "prompt" and "response", '
    'or "instruction" and "output"'
)
KNOWN_KEYS: Mapping[Shape, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "prompt_response": frozenset({"system", "prompt", "response", "completion"}),
    "alpaca": frozenset({"system", "instruction", "input", "output"}),
}
ROLE_CURES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
# Leaving these out would train on something else than the row says.
UNSUPPORTED = ("tools", "tool_calls", "function_call", "functions", "images", "history", "weight")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """System (at most one, first), then user and assistant in turn, an assistant last."""

    messages: tuple[Message, ...]
    where: str


def detect(value: Mapping[str, Any], *, where: str | None = None) -> Shape:
    """The shape that a row's key names spell.

    Raises `DataError` when they spell none, or two.
    """
    found: list[Shape] = []
    if "messages" in value:
        found.append("messages")
    if "prompt" in value and ("response" in value or "completion" in value):
        found.append("prompt_response")
    if "instruction" in value and "output" in value:
        found.append("alpaca")
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"the row has the keys of two shapes: {' and '.join(found)}",
            where=where,
            hint="keep the keys of one shape and remove the others",
        )
    return _refuse_shape(value, where)


def to_conversation(row: Row, shape: Shape) -> Conversation:
    """The row as a checked conversation.

    Raises `DataError` with the place and the cure when the row has another shape, a field
    that is missing or no string, a role out of order, or no answer to train on.
    """
    if detect(row.value, where=row.where) != shape:
        raise DataError(
            f"the row is not of the shape {shape}, which the file's first row has",
            where=row.where,
            hint="give all rows of one file the same keys, or split the file",
        )
    _refuse_unsupported(row.value, "the row", row.where)
    builders = {"messages": _listed, "prompt_response": _prompted, "alpaca": _instructed}
    conversation = Conversation(tuple(builders[shape](row)), row.where)
    _check(conversation)
    return conversation


def extra_keys(value: Mapping[str, Any], shape: Shape) -> frozenset[str]:
    """Keys of a row that nothing reads, for a note; those inside messages as `messages[].key`."""
    extra = set(value) - KNOWN_KEYS[shape]
    if shape == "messages":
        for message in value["messages"]:
            extra |= {f"messages[].{key}" for key in set(message) - {"role", "content"}}
    return frozenset(extra)


def _refuse_shape(value: Mapping[str, Any], where: str | None) -> NoReturn:
    keys = ", ".join(f'"{key}"' for key in list(value)[:8]) or "none"
    hint = SHAPES_HINT
    if "conversations" in value or "conversation" in value:
        hint = 'rename it to "messages", "from" to "role" and "value" to "content"'
    elif "text" in value:
        hint = f"raw text has no answer to train on; {SHAPES_HINT}"
    raise DataError(f"the row has no known shape; its keys are: {keys}", where=where, hint=hint)


def _refuse_unsupported(value: Mapping[str, Any], what: str, where: str) -> None:
    for key in UNSUPPORTED:
        if (key == "weight" and key in value) or value.get(key):
            raise DataError(
                f'{what} has "{key}", which is not supported',
                where=where,
                hint=f'remove "{key}", or the row; leaving it out in silence would change it',
            )


def _listed(row: Row) -> list[Message]:
    entries = row.value["messages"]
    if not isinstance(entries, list) or not entries:
        raise DataError(
            '"messages" is not a list with at least one message',
            where=row.where,
            hint='write "messages": [{"role": "user", "content": "…"}, …]',
        )
    return [_message(entry, number, row.where) for number, entry in enumerate(entries, start=1)]


def _message(entry: Any, number: int, where: str) -> Message:
    name = f"message {number}"
    if not isinstance(entry, dict):
        raise DataError(
            f"{name} is not an object",
            where=where,
            hint='write every message as {"role": "…", "content": "…"}',
        )
    _refuse_unsupported(entry, name, where)
    return Message(_role(entry, name, where), _text(entry, "content", name, where))


def _role(entry: Mapping[str, Any], name: str, where: str) -> Role:
    role: object = entry.get("role")
    for known in ROLES:
        if role == known:
            return known
    if "role" not in entry:
        raise DataError(
            f'{name} has no "role"', where=where, hint="add one of: system, user, assistant"
        )
    cure = ROLE_CURES.get(str(role).lower())
    raise DataError(
        f"{name} has the unknown role {role!r}" + (f'; did you mean "{cure}"?' if cure else ""),
        where=where,
        hint="use one of: system, user, assistant",
    )


def _text(entry: Mapping[str, Any], key: str, name: str, where: str) -> str:
    if key not in entry:
        raise DataError(
            f'{name} has no "{key}"',
            where=where,
            hint=f'add a "{key}" string to every message, or remove the message',
        )
    text = entry[key]
    if not isinstance(text, str):
        raise DataError(
            f'{name}: "{key}" is {_kind(text)}, not a string',
            where=where,
            hint=f'write "{key}" as one string',
        )
    return text


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number")


def _prompted(row: Row) -> list[Message]:
    answer = "response" if "response" in row.value else "completion"
    user = _text(row.value, "prompt", "the row", row.where)
    return [*_system(row), Message("user", user), _answer(row, answer)]


def _instructed(row: Row) -> list[Message]:
    """Alpaca's `input`, where it is not empty, follows the instruction after a blank line."""
    user = _text(row.value, "instruction", "the row", row.where)
    if row.value.get("input") is not None:
        extra = _text(row.value, "input", "the row", row.where)
        user = f"{user}\n\n{extra}" if extra.strip() else user
    return [*_system(row), Message("user", user), _answer(row, "output")]


def _system(row: Row) -> list[Message]:
    """The `system` column; empty or null is how a table says "none"."""
    if row.value.get("system") is None:
        return []
    text = _text(row.value, "system", "the row", row.where)
    return [Message("system", text)] if text.strip() else []


def _answer(row: Row, key: str) -> Message:
    return Message("assistant", _text(row.value, key, "the row", row.where))


def _check(conversation: Conversation) -> None:
    """The order of roles, and that there is something to answer and an answer."""
    where, messages = conversation.where, conversation.messages
    if not any(message.role == "assistant" for message in messages):
        raise DataError(
            "no assistant turn, so nothing to train on",
            where=where,
            hint="add the answer as a message with the role assistant, or remove the row",
        )
    offset = 1 if messages[0].role == "system" else 0
    for number, message in enumerate(messages, start=1):
        if number > offset:
            expected: Role = "user" if (number - offset) % 2 else "assistant"
            _check_turn(message, number, expected, where)
    if messages[-1].role != "assistant":
        raise DataError(
            f"message {len(messages)}, the last one, is from the user and has no answer",
            where=where,
            hint="add the assistant's answer, or remove the last message",
        )


def _check_turn(message: Message, number: int, expected: Role, where: str) -> None:
    if message.role == "system":
        raise DataError(
            f"message {number} is a system message, but not the first message",
            where=where,
            hint="put the one system message first",
        )
    if message.role != expected:
        raise DataError(
            f"message {number} is from the {message.role} where the {expected} must speak",
            where=where,
            hint="let user and assistant take turns, the user first; join messages of one speaker",
        )
    if not message.content.strip():
        what = "answer" if message.role == "assistant" else "user message"
        raise DataError(
            f"message {number} is an empty {what}",
            where=where,
            hint="write its text, or remove the row",
        )
