"""What a row becomes: turns in order, or a raw document.  Knows no shape and no template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastsft.errors import BadRow

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.  `trained` means something for an assistant's turn only.

    A tool call is `{"id"?, "type": "function", "function": {"name", "arguments"}}` with the
    arguments as an object, as chat templates expect them.
    """

    role: Role
    content: str
    trained: bool = True
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """System (at most one, first), then user and assistant in turn, an assistant last.

    Between a tool call and the answer stand the tools' messages; `tools` are the functions
    that may be called.
    """

    messages: tuple[Message, ...]
    where: str
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """Raw text; `continues` when the file's next piece belongs to the same document."""

    text: str
    where: str
    continues: bool = False


def check(conversation: Conversation, *, first: int = 1) -> None:
    """Refuses an order of roles that is none, an empty turn, and tools out of place.

    `first` is the number that errors give the first message.

    Raises `BadRow`.
    """
    messages, where = conversation.messages, conversation.where
    before: Message | None = None
    has_results = False
    for number, message in enumerate(messages, start=first):
        has_results |= message.role == "tool"
        if message.role != "system" or before is not None:
            _check_turn(message, before, number, where)
        if message.tool_calls:
            _check_calls(message, number, conversation)
        before = message
    if before is None or before.role != "assistant":
        raise _no_answer(messages, first, where)
    if has_results:
        for number, what in _unasked(messages, first):
            raise _unasked_result(f"message {number} {what}", where)


def _no_answer(messages: Sequence[Message], first: int, where: str) -> BadRow:
    if not any(message.role == "assistant" for message in messages):
        return BadRow(
            "no assistant turn, so nothing to train on",
            reason="no_assistant",
            where=where,
            hint="add the answer as a message with the role assistant, or remove the row",
        )
    number = len(messages) - 1 + first
    return BadRow(
        f"message {number}, the last one, is from the {messages[-1].role} and has no answer",
        reason="no_answer",
        where=where,
        hint="add the assistant's answer, or remove the last message",
    )


def _check_turn(message: Message, before: Message | None, number: int, where: str) -> None:
    expected = _expected(before)
    if message.role != expected and not (
        message.role == "tool" and before is not None and before.role == "tool"
    ):
        raise _out_of_order(message, expected, before, number, where)
    if not message.content.strip() and not message.tool_calls and message.role != "tool":
        is_answer = message.role == "assistant"
        raise BadRow(
            f"message {number} is an empty {'answer' if is_answer else 'user message'}",
            reason="empty_answer" if is_answer else "empty_user",
            where=where,
            hint="write its text, or remove the row",
        )


def _expected(before: Message | None) -> Role:
    """Who speaks after a message; after a tool another tool may, too."""
    if before is None or before.role == "system":
        return "user"
    if before.role != "assistant":
        return "assistant"
    return "tool" if before.tool_calls else "user"


def _out_of_order(
    message: Message, expected: Role, before: Message | None, number: int, where: str
) -> BadRow:
    if message.role == "system":
        return BadRow(
            f"message {number} is a system message, but not the first message",
            reason="system_not_first",
            where=where,
            hint="put the one system message first",
        )
    if message.role == "tool":
        return _unasked_result(f"message {number} is from a tool that nobody called", where)
    what = f"message {number} is from the {message.role} where the {expected} must speak"
    if expected == "tool":
        hint = "answer the tool call with a message of the role tool first"
        return BadRow(what, reason="not_alternating", where=where, hint=hint)
    opens = before is None or before.role == "system"
    return BadRow(
        what,
        reason="assistant_first" if opens else "not_alternating",
        where=where,
        hint="let user and assistant take turns, the user first; join messages of one speaker",
    )


def _check_calls(message: Message, number: int, conversation: Conversation) -> None:
    offered = {tool["function"]["name"] for tool in conversation.tools}
    for call in message.tool_calls:
        name = call["function"]["name"]
        if name not in offered:
            lacks = "is not among the row's tools" if offered else 'needs "tools" in the row'
            raise BadRow(
                f"message {number} calls {name!r}, which {lacks}",
                reason="call_without_tool",
                where=conversation.where,
                hint='describe the function in the row\'s "tools", or remove the row',
            )


def _unasked(messages: Sequence[Message], first: int) -> Iterator[tuple[int, str]]:
    """The tools' messages beyond the number of calls, and those with another call's id."""
    calls: Sequence[Mapping[str, Any]] = ()
    results = 0
    for number, message in enumerate(messages, start=first):
        if message.role != "tool":
            calls, results = message.tool_calls, 0
            continue
        results += 1
        ids = {call["id"] for call in calls if "id" in call}
        if results > len(calls):
            yield number, f"is a tool's result number {results}, but there are {len(calls)} calls"
        elif message.tool_call_id is not None and ids and message.tool_call_id not in ids:
            yield number, f"answers the tool call {message.tool_call_id!r}, which nobody made"


def _unasked_result(what: str, where: str) -> BadRow:
    return BadRow(
        what,
        reason="tool_without_call",
        where=where,
        hint='put it after the assistant message whose "tool_calls" ask for it, with the same id',
    )
