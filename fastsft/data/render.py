"""Renders a conversation with its own template and finds what is trained.  No ids, no files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from fastsft.data import tool_turns
from fastsft.data.conversation import Conversation, Message, Role
from fastsft.data.template import pin_date
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import BadRow

TrainOn = Literal["assistant", "last_turn", "all"]
LAYOUTS = 1024
"""Sequences of roles remembered; a data set has a few dozen."""


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


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a template puts the messages of a conversation: `pieces[0]`, the message
    `order[0]`, `pieces[1]` …, the pieces one more than the messages.

    `missing` is the first message that it leaves out, None where it writes all, once each.
    """

    order: tuple[int, ...]
    pieces: tuple[str, ...]
    missing: int | None


class Renderer:
    """Renders conversations with one template and one set of rules.

    The template is rendered once for each row.  Where the answers stand in its text is known
    from a second rendering, once for each sequence of roles, with a mark in place of every
    message: what stands between the marks must stand between the messages, character by
    character.  So a template that treats a message specially is noticed, whatever it does.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        train_on: TrainOn = "assistant",
        system: str | None = None,
        date: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.train_on = train_on
        self._system = system
        self._pinned = pin_date(date)
        self._layouts: dict[tuple[Role, ...], Layout] = {}
        controls = {*tokenizer.stop_tokens, tokenizer.pad_token}
        bos = {tokenizer.bos_token} - {None}
        self._controls = _any_of(controls | bos)
        self._bos = _any_of(bos)

    def __call__(self, conversation: Conversation) -> Rendered:
        """The template's text, and for each trained turn the answer and its stop token.

        "assistant" trains every assistant turn, "last_turn" the last one, "all" the whole
        text but BOS, user turns included.  `system` is added where the row has no system
        message.  `date` (2024-07-26, or any text) is what the template takes for today.
        An answer is trained as the template left it, trimmed where the template trims.

        Raises `BadRow` when an answer, its stop token, a user turn or the system prompt
        cannot be found in the text, or a trained turn holds a control token of the tokenizer.
        """
        conversation = self._with_system(self.weighted(conversation))
        self._refuse_markers(conversation)
        if conversation.tools or any(m.role == "tool" for m in conversation.messages):
            text, found = tool_turns.render(conversation, self.tokenizer, self._pinned)
            spans = [Span(start, end) for start, end in found]
        else:
            conversation, layout = self._placed(conversation)
            text = self._text(conversation)
            spans = list(self._walk(conversation, layout, text))
        if self.train_on == "all":
            bos = self.tokenizer.bos_token or ""
            spans = [Span(len(bos) if text.startswith(bos) else 0, len(text))]
        return Rendered(text, tuple(spans), self.train_on, conversation.where)

    def prompt(self, messages: Sequence[Message], where: str) -> str:
        """The text that generation starts from."""
        return self.tokenizer.render(
            tool_turns.dicts(messages), add_generation_prompt=True, where=where, **self._pinned
        )

    def added(self) -> str:
        """What the template writes before the first question by itself: a system prompt, a date.

        What stands before the first user turn, less what stands before the second one too.
        """
        roles: tuple[Role, ...] = ("user", "assistant", "user", "assistant")
        messages = tuple(Message(role, role) for role in roles)
        pieces = self._layout(Conversation(messages, "the template")).pieces
        first, second = pieces[0].removeprefix(self.tokenizer.bos_token or ""), pieces[2]
        pairs = zip(reversed(first), reversed(second), strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return first[: len(first) - common]

    def weighted(self, conversation: Conversation) -> Conversation:
        """The conversation with `trained` false wherever nothing is to be trained."""
        messages = conversation.messages
        if self.train_on == "last_turn":
            *others, last = messages
            return replace(conversation, messages=(*map(_untrained, others), last))
        if self.train_on == "all" and not all(m.trained for m in messages):
            raise BadRow(
                "a message has weight 0, but data.train_on is all",
                reason="bad_weight",
                where=conversation.where,
                hint="set data.train_on to assistant, or remove the weights",
            )
        return conversation

    def _with_system(self, conversation: Conversation) -> Conversation:
        if self._system is None or conversation.messages[0].role == "system":
            return conversation
        first = Message("system", self._system)
        return replace(conversation, messages=(first, *conversation.messages))

    def _text(self, conversation: Conversation) -> str:
        return self.tokenizer.render(
            tool_turns.dicts(conversation.messages), where=conversation.where, **self._pinned
        )

    def _refuse_markers(self, conversation: Conversation) -> None:
        """A stop, pad or BOS token written out in a trained turn cannot be told from a real one."""
        for number, message in enumerate(conversation.messages, start=1):
            is_trained = message.role == "assistant" and message.trained
            forbidden = self._controls if is_trained or self.train_on == "all" else self._bos
            found = forbidden.search(message.content)
            if found is not None:
                token = found.group()
                raise BadRow(
                    f"message {number} ({message.role}) contains {token}, "
                    "which the tokenizer reads as a control token",
                    reason="control_token",
                    where=conversation.where,
                    hint=f"write {token} differently, with a space in it for example, "
                    "or remove the row",
                )

    def _placed(self, conversation: Conversation) -> tuple[Conversation, Layout]:
        """The conversation and where its messages stand; folded where the template needs it."""
        layout = self._layout(conversation)
        if layout.missing == 0 and conversation.messages[0].role == "system":
            conversation = self._folded(conversation)
            layout = self._layout(conversation)
        if layout.missing is not None:
            raise _changed(layout.missing, conversation.where)
        return conversation, layout

    def _layout(self, conversation: Conversation) -> Layout:
        roles = tuple(message.role for message in conversation.messages)
        if roles not in self._layouts:
            if len(self._layouts) >= LAYOUTS:
                self._layouts.clear()
            self._layouts[roles] = self._layout_of(roles, conversation.where)
        return self._layouts[roles]

    def _layout_of(self, roles: tuple[Role, ...], where: str) -> Layout:
        marks = [f"\ue000{number}\ue001" for number in range(len(roles))]
        pairs = zip(roles, marks, strict=True)
        marked = tuple(Message(role, mark) for role, mark in pairs)
        text = self._text(Conversation(marked, where))
        missing = next((i for i, mark in enumerate(marks) if text.count(mark) != 1), None)
        if missing is not None:
            return Layout((), (), missing)
        parts = re.split("\ue000([0-9]+)\ue001", text)
        return Layout(tuple(map(int, parts[1::2])), tuple(parts[::2]), None)

    def _folded(self, conversation: Conversation) -> Conversation:
        """The system prompt moved into the last user turn, where generation puts it.

        Mistral Nemo's template writes the system prompt only if the last message is the
        user's, so never for a row with its answer.  The move is accepted only if the text
        then begins with exactly the prompt that the template gives at generation.
        """
        system, *turns = conversation.messages
        question = replace(turns[-2], content=f"{system.content}\n\n{turns[-2].content}")
        folded = replace(conversation, messages=(*turns[:-2], question, turns[-1]))
        prompt = self.prompt(conversation.messages[:-1], conversation.where)
        is_there = system.content.strip() in prompt
        if not is_there or not self._text(folded).startswith(prompt):
            raise BadRow(
                "the chat template leaves the system message out",
                reason="unproved",
                where=conversation.where,
                hint="put its text into the first user message, or remove it",
            )
        return folded

    def _walk(self, conversation: Conversation, layout: Layout, text: str) -> Iterator[Span]:
        """One span for each trained answer, by walking the text along the layout."""
        position = len(layout.pieces[0])
        if not text.startswith(layout.pieces[0]):
            raise _changed(layout.order[0], conversation.where)
        for step, number in enumerate(layout.order):
            message, after = conversation.messages[number], layout.pieces[step + 1]
            is_last = step + 1 == len(layout.order)
            length = _length_as_left(message.content, after, text, position, is_last=is_last)
            if length is None:
                raise _changed(number, conversation.where)
            if message.role == "assistant" and message.trained:
                yield self._span(text, position, position + length, after, number, conversation)
            position += length + len(after)

    def _span(
        self, text: str, start: int, end: int, after: str, number: int, conversation: Conversation
    ) -> Span:
        stop = self.tokenizer.stop_after(text, end)
        if stop is None or stop > end + len(after):
            raise BadRow(
                f"no stop token follows message {number + 1} in the rendered text",
                reason="unproved",
                where=conversation.where,
                hint="the model would never learn to stop; take the original template",
            )
        lead = self.tokenizer.turn.lead
        width = len(lead) if text.endswith(lead, 0, start) else 0
        return Span(start - width, stop, width)


def render(
    conversation: Conversation,
    tokenizer: ChatTokenizer,
    *,
    train_on: TrainOn = "assistant",
    system: str | None = None,
    date: str | None = None,
) -> Rendered:
    """One conversation's text and spans; see `Renderer`."""
    return Renderer(tokenizer, train_on=train_on, system=system, date=date)(conversation)


def _untrained(message: Message) -> Message:
    return replace(message, trained=False) if message.role == "assistant" else message


def _any_of(tokens: set[Any]) -> re.Pattern[str]:
    """A pattern that finds any of the tokens; one that finds nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _length_as_left(
    content: str, after: str, text: str, position: int, *, is_last: bool
) -> int | None:
    """How long the message is as the template left it at `position`; None if it is not there."""
    for kept in (content, content.strip(), content.rstrip(), content.lstrip(), content.strip("\n")):
        end = position + len(kept) + len(after)
        if is_last and end != len(text):
            continue
        if text.startswith(kept, position) and text.startswith(after, position + len(kept)):
            return len(kept)
    return None


def _changed(number: int, where: str) -> BadRow:
    return BadRow(
        f"the chat template changes or leaves out message {number + 1}, or depends on it",
        reason="unproved",
        where=where,
        hint="remove what the template treats specially, or use the template of the model's "
        "original repository",
    )
