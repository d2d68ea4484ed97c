"""Finds the trained text of conversations with tool calls, by what the template adds turn by turn.

A call has no content that a mark could stand for, so each turn is found as the difference of two
renderings: the prompt that it answers, and the conversation up to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastsft.data.conversation import Conversation, Message
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import BadRow


def render(
    conversation: Conversation, tokenizer: ChatTokenizer, pinned: Mapping[str, Any]
) -> tuple[str, list[tuple[int, int]]]:
    """The template's text, and [start, end) of each trained turn with its stop token.

    Raises `BadRow` where the template does not write the tools, a call, a tool's result or a
    user turn, or where a turn is not found after the prompt that it answers.
    """
    whole = _text(conversation, tokenizer, pinned, len(conversation.messages))
    _require_written(conversation, whole)
    spans = [
        _span(conversation, tokenizer, pinned, number, whole)
        for number, message in enumerate(conversation.messages)
        if message.role == "assistant" and message.trained
    ]
    return whole, spans


def dicts(messages: Sequence[Message]) -> list[dict[str, object]]:
    """The messages as a chat template sees them; keys that say nothing are left out."""
    return [_as_dict(message) for message in messages]


def _as_dict(message: Message) -> dict[str, object]:
    made: dict[str, object] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        made["tool_calls"] = [_plain(call) for call in message.tool_calls]
    for key, value in (("tool_call_id", message.tool_call_id), ("name", message.name)):
        if value is not None:
            made[key] = value
    return made


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, Mapping) else v for k, v in value.items()}


def _text(
    conversation: Conversation,
    tokenizer: ChatTokenizer,
    pinned: Mapping[str, Any],
    count: int,
    *,
    is_prompt: bool = False,
) -> str:
    """The first `count` messages, rendered."""
    return tokenizer.render(
        dicts(conversation.messages[:count]),
        add_generation_prompt=is_prompt,
        where=conversation.where,
        tools=[dict(tool) for tool in conversation.tools] or None,
        **pinned,
    )


def _span(
    conversation: Conversation,
    tokenizer: ChatTokenizer,
    pinned: Mapping[str, Any],
    number: int,
    whole: str,
) -> tuple[int, int]:
    before = _text(conversation, tokenizer, pinned, number, is_prompt=True)
    after = _text(conversation, tokenizer, pinned, number + 1)
    if not (after.startswith(before) and whole.startswith(after.rstrip())):
        raise _unproved(
            f"the chat template rewrites what stands before message {number + 1}",
            conversation.where,
        )
    turn = whole[len(before) : len(after)]
    stops = list(tokenizer.stops_in(turn))
    if len(stops) != 1:
        raise _unproved(
            f"message {number + 1} is written with {len(stops)} stop tokens", conversation.where
        )
    _require_in(turn, conversation.messages[number], number, conversation.where)
    return len(before), len(before) + stops[0]


def _require_in(turn: str, message: Message, number: int, where: str) -> None:
    names = [call["function"]["name"] for call in message.tool_calls]
    wanted = [*names, *([message.content.strip()] if message.content.strip() else [])]
    if not all(text in turn for text in wanted):
        raise _unproved(f"the chat template leaves out a part of message {number + 1}", where)


def _require_written(conversation: Conversation, whole: str) -> None:
    missing = next((n for n in _names(conversation) if n not in whole), None)
    if missing is not None:
        raise BadRow(
            f"the chat template does not write the tool {missing!r}",
            reason="tools_unknown",
            where=conversation.where,
            hint="this template knows no tools: use a base whose template does, or remove the row",
        )
    for number, message in enumerate(conversation.messages, start=1):
        is_there = message.content.strip() in whole or message.role == "tool"
        if not is_there:
            raise _unproved(f"the chat template leaves out message {number}", conversation.where)
    for text in _results(conversation):
        if text not in whole:
            raise _unproved("the chat template leaves out a tool's result", conversation.where)


def _names(conversation: Conversation) -> Iterator[str]:
    for tool in conversation.tools:
        yield str(tool["function"]["name"] if "function" in tool else tool["name"])


def _results(conversation: Conversation) -> Iterator[str]:
    """The first words of each tool's result; templates may write it as JSON text."""
    for message in conversation.messages:
        words = message.content.split()
        if message.role == "tool" and words and words[0].isalnum():
            yield words[0]


def _unproved(what: str, where: str) -> BadRow:
    return BadRow(
        what,
        reason="unproved",
        where=where,
        hint="this family's template cannot prove such a conversation; end the row at its last "
        "tool call's answer, or leave the tools out",
    )
