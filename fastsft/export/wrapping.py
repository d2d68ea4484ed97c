"""Finds what a chat template writes around messages, by rendering marks.  Writes no template.

A template is a program, and what it does to a conversation that was never tried cannot be known:
so what was found is only used once it gives back what the template gives (see `ollama`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError, ExportError

SYSTEM = "\ue000system\ue001"
"""Stands for the system message in every piece.  Private use: no template looks for it."""
LONGEST = 6
"""Messages of the longest conversation that is tried: every place a message can stand occurs."""

_MARK = re.compile("\ue000([0-9]+)\ue001")

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, order=True)
class Place:
    """Where a message stands, as far as a template's text may depend on it.

    `closes`: no later message is the user's; `has_system`: the chat has a system message.
    """

    has_system: bool
    is_first: bool
    is_last: bool
    closes: bool


@dataclass(frozen=True)
class Wrapping:
    """The text around messages; `SYSTEM` in it stands for the system message.

    `head` is before everything, by whether there is a system message; `before_user` and
    `before_answer` go before a message, by its place; the others follow one.  `prompt` is what
    invites an answer, `system_is_read` whether a system message is written anywhere.
    """

    head: Mapping[bool, str]
    before_user: Mapping[Place, str]
    before_answer: Mapping[Place, str]
    after_user: str
    after_answer: str
    prompt: str
    system_is_read: bool


class Chats:
    """Renders conversations as the model was trained on them.

    `system` is what conversations without a system message get; `pinned` stops the clock.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, pinned: Mapping[str, Any], *, system: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._pinned = pinned
        self._system = system

    def prompt(self, messages: Messages) -> str:
        """The text before the next token, less the BOS, which llama.cpp adds.

        After a user's message that is the prompt for an answer; after the model's own, its
        answer so far behind the prompt it was given, so that it is gone on with.
        """
        if messages[-1]["role"] != "assistant":
            return self.text(messages, add_generation_prompt=True)
        given = self.text(messages[:-1], add_generation_prompt=True)
        return given + self._tokenizer.turn.lead + messages[-1]["content"]

    def text(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """The template's text, less the BOS."""
        if self._system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        text = self._tokenizer.render(
            messages, add_generation_prompt=add_generation_prompt, **self._pinned
        )
        return text.removeprefix(self._tokenizer.bos_token or "")


def find(chats: Chats) -> Wrapping:
    """What the template writes around each message of a conversation.

    Raises: ExportError when the template repeats, moves or changes messages.
    """
    probes = [_Probe.of(chats, count, False) for count in range(1, LONGEST + 1)]
    with_system = _with_system(chats)
    probes += with_system
    after_user = _shared_start(_after_question(chats), _gaps(probes, after="user"))
    after_answer = _shared_start(_after_answer(chats), _gaps(probes, after="assistant"))
    before_user = _before(probes, "user", after_answer)
    head = _take_head(before_user)
    prompts = {probe.gaps[-1].removeprefix(after_user) for probe in probes if probe.asks}
    if len(prompts) > 1:
        raise _refused(f"invites an answer in more than one way: {sorted(prompts)}")
    return Wrapping(
        head=head,
        before_user=before_user,
        before_answer=_before(probes, "assistant", after_user),
        after_user=after_user,
        after_answer=after_answer,
        prompt=prompts.pop(),
        system_is_read=any(SYSTEM in gap for probe in with_system for gap in probe.gaps),
    )


def _refused(what: str) -> ExportError:
    return ExportError(
        f"the chat template {what}, which a Modelfile cannot say",
        where="Modelfile",
        hint="serve the GGUF with llama.cpp, which runs the template itself",
    )


@dataclass(frozen=True)
class _Probe:
    """One conversation's text between its messages: `gaps[i]` is before message i."""

    has_system: bool
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, chats: Chats, count: int, has_system: bool) -> _Probe:
        """`count` messages, the first of them the user's."""
        roles = ["user", "assistant"] * LONGEST
        chat = [{"role": roles[i], "content": f"\ue000{i}\ue001"} for i in range(count)]
        if has_system:
            chat.insert(0, {"role": "system", "content": SYSTEM})
        parts = _MARK.split(chats.prompt(chat))
        if parts[1::2] != [str(i) for i in range(count)]:
            raise _refused("repeats, moves or leaves out messages")
        return cls(has_system, tuple(parts[::2]))

    @property
    def asks(self) -> bool:
        """Whether the last message is the user's."""
        return len(self.gaps) % 2 == 0

    def places(self) -> Iterator[tuple[int, Place]]:
        """Each message's number and place."""
        count = len(self.gaps) - 1
        for i in range(count):
            closes = i >= count - 2 and i % 2 == 0
            yield i, Place(self.has_system, i == 0, i == count - 1, closes)


def _with_system(chats: Chats) -> list[_Probe]:
    """None where the template refuses the role."""
    try:
        return [_Probe.of(chats, count, True) for count in range(1, LONGEST + 1)]
    except DataError:
        return []


def _gaps(probes: Sequence[_Probe], *, after: str) -> list[str]:
    """Every text that follows a message of that role and is not the end of an answer."""
    start = 1 if after == "user" else 2
    found: list[str] = []
    for probe in probes:
        gaps = probe.gaps if probe.asks else probe.gaps[:-1]
        found += gaps[start::2]
    return found


def _after_question(chats: Chats) -> str:
    try:
        return chats.text([{"role": "user", "content": SYSTEM}]).partition(SYSTEM)[2]
    except DataError:  # some templates refuse a conversation without an answer
        return ""


def _after_answer(chats: Chats) -> str:
    chat = [{"role": "user", "content": "0"}, {"role": "assistant", "content": SYSTEM}]
    return chats.text(chat).partition(SYSTEM)[2]


def common_start(texts: Sequence[str]) -> str:
    """What all the texts start with."""
    low, high = min(texts), max(texts)
    return low[: next((i for i, char in enumerate(low) if char != high[i : i + 1]), len(low))]


def _shared_start(wanted: str, gaps: Sequence[str]) -> str:
    """The wanted text, if every gap starts with it."""
    return wanted if common_start([wanted, *gaps]) == wanted else ""


def _before(probes: Sequence[_Probe], role: str, after_other: str) -> dict[Place, str]:
    parity = 0 if role == "user" else 1
    found: dict[Place, str] = {}
    for probe in probes:
        for i, place in probe.places():
            if i % 2 == parity:
                gap = probe.gaps[i] if i == 0 else probe.gaps[i].removeprefix(after_other)
                if found.setdefault(place, gap) != gap:
                    raise _refused(f"writes other text before a {role}'s message in long chats")
    return found


def _take_head(before_user: dict[Place, str]) -> dict[bool, str]:
    """What the first message has before it and later ones have not, taken off the first ones."""
    heads = {}
    for has_system in sorted({place.has_system for place in before_user}):
        firsts = [p for p in before_user if p.is_first and p.has_system == has_system]
        later = {p: before_user[Place(has_system, False, p.is_last, p.closes)] for p in firsts}
        found = {before_user[p].removesuffix(later[p]) for p in firsts}
        if len(found) == 1 and all(before_user[p].endswith(later[p]) for p in firsts):
            heads[has_system] = found.pop()
            before_user |= later
        else:
            heads[has_system] = ""
    return heads
