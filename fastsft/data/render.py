"""Renders a conversation with its own template and finds what is trained.  No ids, no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from fastsft.data.formats import Conversation, Message
from fastsft.data.template import pin_date
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError

TrainOn = Literal["assistant", "last_turn", "all"]


class Span(NamedTuple):
    """Characters [start, end) of the text that are trained; the first `lead` are white space
    that the template puts before the answer and the model has to write."""

    start: int
    end: int
    lead: int = 0


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of one conversation and its trained spans, in order and apart."""

    text: str
    spans: tuple[Span, ...]
    train_on: TrainOn
    where: str

    @property
    def begins_with_space(self) -> bool:
        """Whether a trained answer begins with white space of its own."""
        return self.train_on != "all" and any(
            self.text[span.start + span.lead].isspace() for span in self.spans
        )


def render(
    conversation: Conversation,
    tokenizer: ChatTokenizer,
    *,
    train_on: TrainOn = "assistant",
    system: str | None = None,
    date: str | None = None,
) -> Rendered:
    """The template's text, and for each trained turn the answer and its stop token.

    "assistant" trains every assistant turn, "last_turn" the last one, "all" the whole text
    but BOS, user turns included.  `system` is added where the row has no system message.
    `date` (2024-07-26, or any text) is what the template takes for today.

    The answers are found by rendering once more with a sentinel in place of each: what
    stands between the sentinels must stand between the answers, character by character.
    An answer is trained as the template left it, trimmed where the template trims.

    Raises `DataError` when an answer, its stop token, a user turn or the system prompt
    cannot be found in the text, or a trained turn holds a control token of the tokenizer.
    """
    conversation = _with_system(conversation, system)
    _refuse_markers(conversation, tokenizer, train_on)
    pinned = pin_date(date)
    missing = _left_out(conversation, tokenizer, pinned)
    if missing == 1 and conversation.messages[0].role == "system":
        conversation, missing = _fold_system(conversation, tokenizer, pinned), None
    text = _text(conversation, tokenizer, pinned)
    _require_users(conversation, text, missing)
    if train_on == "all":
        start = len(tokenizer.bos_token or "") if text.startswith(tokenizer.bos_token or "") else 0
        return Rendered(text, (Span(start, len(text)),), train_on, conversation.where)
    spans = tuple(_spans(conversation, tokenizer, text, pinned))
    return Rendered(
        text, spans if train_on == "assistant" else spans[-1:], train_on, conversation.where
    )


def _with_system(conversation: Conversation, system: str | None) -> Conversation:
    if system is None or conversation.messages[0].role == "system":
        return conversation
    return replace(conversation, messages=(Message("system", system), *conversation.messages))


def _text(conversation: Conversation, tokenizer: ChatTokenizer, pinned: dict[str, Any]) -> str:
    return tokenizer.render(_dicts(conversation.messages), where=conversation.where, **pinned)


def _dicts(messages: Sequence[Message]) -> list[dict[str, object]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _refuse_markers(
    conversation: Conversation, tokenizer: ChatTokenizer, train_on: TrainOn
) -> None:
    """A stop, pad or BOS token written out in a trained turn cannot be told from a real one."""
    last = len(conversation.messages)
    controls = {*tokenizer.stop_tokens, tokenizer.pad_token}
    for number, message in enumerate(conversation.messages, start=1):
        trained = message.role == "assistant" and (train_on != "last_turn" or number == last)
        forbidden = set(controls) if trained or train_on == "all" else set()
        if tokenizer.bos_token is not None:
            forbidden.add(tokenizer.bos_token)
        for token in sorted(forbidden):
            if token in message.content:
                raise DataError(
                    f"message {number} ({message.role}) contains {token}, "
                    "which the tokenizer reads as a control token",
                    where=conversation.where,
                    hint=f"write {token} differently, with a space in it for example, "
                    "or remove the row",
                )


def _left_out(
    conversation: Conversation, tokenizer: ChatTokenizer, pinned: dict[str, Any]
) -> int | None:
    """The number of the first message that the template does not write; None if it writes all.

    Seen with a mark in place of each message: its own words may stand elsewhere in the text.
    """
    marks = [f"\ue000{number}\ue001" for number in range(len(conversation.messages))]
    pairs = zip(conversation.messages, marks, strict=True)
    marked = tuple(replace(message, content=mark) for message, mark in pairs)
    text = _text(replace(conversation, messages=marked), tokenizer, pinned)
    return next((number for number, mark in enumerate(marks, start=1) if mark not in text), None)


def _fold_system(
    conversation: Conversation, tokenizer: ChatTokenizer, pinned: dict[str, Any]
) -> Conversation:
    """The system prompt moved into the last user turn, where generation puts it.

    Mistral Nemo's template writes the system prompt only if the last message is the user's,
    so never for a row with its answer.  The move is accepted only if the text then begins
    with exactly the prompt that the template gives at generation.
    """
    system, *turns = conversation.messages
    question = replace(turns[-2], content=f"{system.content}\n\n{turns[-2].content}")
    folded = replace(conversation, messages=(*turns[:-2], question, turns[-1]))
    prompt = tokenizer.render(
        _dicts(conversation.messages[:-1]),
        add_generation_prompt=True,
        where=conversation.where,
        **pinned,
    )
    if system.content.strip() not in prompt or not _text(folded, tokenizer, pinned).startswith(
        prompt
    ):
        raise DataError(
            "the chat template leaves the system message out",
            where=conversation.where,
            hint="put its text into the first user message, or remove it",
        )
    return folded


def _require_users(conversation: Conversation, text: str, missing: int | None) -> None:
    for number, message in enumerate(conversation.messages, start=1):
        changed = message.role == "user" and message.content.strip() not in text
        if changed or number == missing:
            raise DataError(
                f"the chat template changes or leaves out message {number}",
                where=conversation.where,
                hint="use the template of the model's original repository",
            )


def _spans(
    conversation: Conversation, tokenizer: ChatTokenizer, text: str, pinned: dict[str, Any]
) -> Iterator[Span]:
    """One span for each assistant turn, by walking the text along the sentinel rendering."""
    where = conversation.where
    answers = [m.content for m in conversation.messages if m.role == "assistant"]
    pieces = _between(conversation, tokenizer, text, pinned)
    position = len(pieces[0])
    if len(pieces) != len(answers) + 1 or not text.startswith(pieces[0]):
        raise _unlocated(1, where)
    for number, (answer, after) in enumerate(zip(answers, pieces[1:], strict=True), start=1):
        is_last = number == len(answers)
        content = _as_left(answer, after, text, position, is_last=is_last)
        if content is None:
            raise _unlocated(number, where)
        end = tokenizer.stop_after(text, position + len(content))
        if end is None or end > position + len(content) + len(after):
            raise DataError(
                f"no stop token follows answer {number} in the rendered text",
                where=where,
                hint="the model would never learn to stop; take the original template",
            )
        lead = len(tokenizer.turn.lead) if text[:position].endswith(tokenizer.turn.lead) else 0
        yield Span(position - lead, end, lead)
        position += len(content) + len(after)


def _between(
    conversation: Conversation, tokenizer: ChatTokenizer, text: str, pinned: dict[str, Any]
) -> list[str]:
    """The rendered text around the answers: one piece more than there are answers."""
    sentinel = _sentinel(text, conversation)
    marked = tuple(
        replace(message, content=sentinel) if message.role == "assistant" else message
        for message in conversation.messages
    )
    return _text(replace(conversation, messages=marked), tokenizer, pinned).split(sentinel)


def _sentinel(text: str, conversation: Conversation) -> str:
    """Text that stands nowhere in the row: private-use characters around a number."""
    haystack = text + "".join(message.content for message in conversation.messages)
    number = 0
    while (sentinel := f"\ue000{number}\ue001") in haystack:
        number += 1
    return sentinel


def _as_left(answer: str, after: str, text: str, position: int, *, is_last: bool) -> str | None:
    """The answer as the template left it at `position`; None if it is not there."""
    for content in (answer, answer.strip(), answer.rstrip(), answer.lstrip(), answer.strip("\n")):
        end = position + len(content) + len(after)
        if text.startswith(content + after, position) and (not is_last or end == len(text)):
            return content
    return None


def _unlocated(number: int, where: str) -> DataError:
    return DataError(
        f"answer {number} cannot be located in the rendered text: "
        "the chat template changes it or depends on it",
        where=where,
        hint="remove what the template treats specially, or use the original template",
    )
