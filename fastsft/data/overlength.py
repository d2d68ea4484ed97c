"""Makes a conversation that is too long fit, where the recipe asks for it; never cuts an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastsft.data.conversation import Conversation, Message
from fastsft.data.tokenizer import ChatTokenizer

Overlength = Literal["drop", "truncate_prompt", "split_turns", "error"]
Measure = Callable[[Conversation], int]
"""Tokens of a conversation, rendered."""

TRIES = 8


@dataclass(frozen=True)
class Fitted:
    """What is trained instead of the row, and one sentence on what was done to it."""

    pieces: tuple[Conversation, ...]
    detail: str


def truncate_prompt(
    conversation: Conversation, max_tokens: int, measure: Measure, tokenizer: ChatTokenizer
) -> Fitted | None:
    """The row with the beginning of its first question taken off, or None if that is not enough."""
    number = next(i for i, m in enumerate(conversation.messages) if m.role == "user")
    question = conversation.messages[number].content
    (tokens,) = tokenizer.encode_batch([question])
    over = measure(conversation) - max_tokens
    for _ in range(TRIES):
        if over >= len(tokens.ids):
            return None
        rest = question[tokens.start(over) :].lstrip()
        if not rest:
            return None
        shorter = _with(conversation, number, rest)
        excess = measure(shorter) - max_tokens
        if excess <= 0:
            detail = f"the first {len(question) - len(rest)} characters of the question cut"
            return Fitted((shorter,), detail)
        over += excess
    return None


def split_turns(conversation: Conversation, max_tokens: int, measure: Measure) -> Fitted | None:
    """The row as several, each with the system message and as many exchanges as fit.

    An exchange is a user's message and all that follows it up to the next one.  None where a
    single exchange is too long.
    """
    first, *_ = conversation.messages
    opening = (first,) if first.role == "system" else ()
    exchanges = list(_exchanges(conversation.messages[len(opening) :]))
    pieces: list[Conversation] = []
    taken: tuple[Message, ...] = ()
    for exchange in exchanges:
        longer = replace(conversation, messages=(*opening, *taken, *exchange))
        if measure(longer) <= max_tokens:
            taken = (*taken, *exchange)
            continue
        alone = replace(conversation, messages=(*opening, *exchange))
        if measure(alone) > max_tokens:
            return None
        if taken:
            pieces.append(replace(conversation, messages=(*opening, *taken)))
        taken = exchange
    pieces.append(replace(conversation, messages=(*opening, *taken)))
    return Fitted(tuple(pieces), f"split between turns into {len(pieces)} rows")


def _exchanges(messages: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    group: list[Message] = []
    for message in messages:
        if message.role == "user" and group:
            yield tuple(group)
            group = []
        group.append(message)
    yield tuple(group)


def _with(conversation: Conversation, number: int, content: str) -> Conversation:
    messages = list(conversation.messages)
    messages[number] = replace(messages[number], content=content)
    return replace(conversation, messages=tuple(messages))
