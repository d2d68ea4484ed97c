"""Turns a row of any supported shape into a conversation or a document.  Guesses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastsft.data import toolcalls, turns
from fastsft.data.conversation import Conversation as Conversation
from fastsft.data.conversation import Document as Document
from fastsft.data.conversation import Message as Message
from fastsft.data.conversation import Role as Role
from fastsft.data.conversation import check
from fastsft.data.rows import Row
from fastsft.data.shapes import ANSWERS, INPUTS, OUTPUTS, PROMPTS, two_shapes
from fastsft.data.shapes import Shape as Shape
from fastsft.data.shapes import detect as detect
from fastsft.data.shapes import extra_keys as extra_keys
from fastsft.data.shapes import rename as rename
from fastsft.errors import BadRow

_ALWAYS = frozenset({"weight", *turns.UNSUPPORTED})
REFUSED: Mapping[Shape, frozenset[str]] = {
    "messages": _ALWAYS | {"history"},
    "sharegpt": _ALWAYS | {"history", "tools"},
    "prompt_response": _ALWAYS | {"history"},
    "alpaca": _ALWAYS | {"tools"},
    "question_answer": _ALWAYS | {"history", "tools"},
}
"""Keys of a row that would be left out in silence."""


def to_conversation(row: Row, shape: Shape) -> Conversation:
    """The row as a checked conversation; `shape` is the one that its file has.

    Raises `BadRow` with the place and the cure when the row has another shape, a field
    that is missing or no string, a role out of order, or no answer to train on.
    """
    where, value = row.where, row.value
    _require_shape(value, shape, where)
    if shape == "text":
        raise BadRow(
            "the row is raw text, which has no answer to train on",
            reason="no_answer",
            where=where,
            hint='set method: pretrain, or write "messages", or "prompt" and "response"',
        )
    _refuse_unsupported(value, shape, where)
    tools = toolcalls.tools(value["tools"], where) if "tools" in value else ()
    spoken = READERS[shape](value, where)
    system = _system(value, where) if "system" in value else ()
    if system and spoken[0].role == "system":
        raise _second_system(where)
    conversation = Conversation((*system, *spoken), where, tools)
    check(conversation, first=0 if system and shape in ("messages", "sharegpt") else 1)
    return conversation


def to_document(row: Row, shape: Shape) -> Document:
    """The row's raw text; a key `continues` says that the next row goes on with it.

    Raises `BadRow` for a row of another shape, and for one without text.
    """
    where, value = row.where, row.value
    _require_shape(value, shape, where)
    if shape != "text":
        raise BadRow(
            f"the row is of the shape {shape}, not raw text",
            reason="mixed_shapes",
            where=where,
            hint='set method: sft, or name the text\'s key: data.sources[].columns: {text: "…"}',
        )
    text = turns.text(value, "text", "the row", where)
    if not text.strip():
        hint = "write some text, or remove the row"
        raise BadRow('"text" is empty', reason="missing_content", where=where, hint=hint)
    return Document(text, where, value.get("continues") is True)


def _require_shape(value: Mapping[str, Any], shape: Shape, where: str) -> None:
    if detect(value, where=where) != shape:
        raise BadRow(
            f"the row is not of the shape {shape}, which the file's first row has",
            reason="mixed_shapes",
            where=where,
            hint="give all rows of one file the same keys, or split the file",
        )


def _refuse_unsupported(value: Mapping[str, Any], shape: Shape, where: str) -> None:
    refused = REFUSED[shape]
    if refused.isdisjoint(value):
        return
    if "weight" in value:
        raise turns.unsupported('the row has "weight", which is not supported', "weight", where)
    turns.refuse_unsupported(value, sorted(refused), "the row", where)


def _listed(value: Mapping[str, Any], where: str) -> list[Message]:
    return _turns(value, "messages", turns.openai, where)


def _shared(value: Mapping[str, Any], where: str) -> list[Message]:
    return _turns(value, "conversations", turns.sharegpt, where)


def _prompted(value: Mapping[str, Any], where: str) -> list[Message]:
    """Two strings, or TRL's two lists of messages: those of the prompt are not trained."""
    prompt, answer = _only(value, PROMPTS, where), _only(value, ANSWERS, where)
    if not isinstance(value[prompt], list):
        return _exchange(value, prompt, answer, where)
    before = _turns(value, prompt, turns.openai, where)
    for number, entry in enumerate(value[prompt], start=1):
        if before[number - 1].role == "assistant" and entry.get("weight"):
            hint = 'move the message into "completion", or write the row as "messages"'
            what = f"message {number} has the weight 1, but a prompt is never trained"
            raise turns.bad_weight(what, hint, where)
    after = _turns(value, answer, turns.openai, where, first=len(before) + 1)
    return [*(replace(message, trained=False) for message in before), *after]


def _instructed(value: Mapping[str, Any], where: str) -> list[Message]:
    """Earlier turns of `history` first; the input follows the instruction after a blank line."""
    question, answer = _exchange(value, "instruction", _only(value, OUTPUTS, where), where)
    about = _only(value, INPUTS, where)
    if value.get(about) is not None:
        extra = turns.text(value, about, "the row", where)
        if extra.strip():
            question = Message("user", f"{question.content}\n\n{extra}")
    return [*_history(value.get("history"), where), question, answer]


def _questioned(value: Mapping[str, Any], where: str) -> list[Message]:
    return _exchange(value, "question", "answer", where)


READERS: Mapping[Shape, Callable[[Mapping[str, Any], str], list[Message]]] = {
    "messages": _listed,
    "sharegpt": _shared,
    "prompt_response": _prompted,
    "alpaca": _instructed,
    "question_answer": _questioned,
}


def _turns(
    value: Mapping[str, Any],
    key: str,
    read: Callable[[Any, int, str], Message],
    where: str,
    *,
    first: int = 1,
) -> list[Message]:
    entries = value[key]
    if not isinstance(entries, list) or not entries:
        form = '"from": "human", "value"' if key == "conversations" else '"role": "user", "content"'
        raise BadRow(
            f'"{key}" is not a list with at least one message',
            reason="empty_messages" if entries == [] else "wrong_type",
            where=where,
            hint=f'write "{key}": [{{{form}: "…"}}, …]',
        )
    return [read(entry, number, where) for number, entry in enumerate(entries, start=first)]


def _exchange(value: Mapping[str, Any], asked: str, answered: str, where: str) -> list[Message]:
    user = turns.text(value, asked, "the row", where)
    return [
        Message("user", user),
        Message("assistant", turns.text(value, answered, "the row", where)),
    ]


def _history(history: Any, where: str) -> Iterable[Message]:
    """Pairs of a question and its answer; null, empty text and an empty list are none."""
    if history is None or history == "":
        return
    if not isinstance(history, list) or not all(map(_is_pair, history)):
        raise BadRow(
            '"history" is not a list of pairs of strings',
            reason="wrong_type",
            where=where,
            hint='write "history": [["question", "answer"], …]',
        )
    for question, answer in history:
        yield Message("user", question)
        yield Message("assistant", answer)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)


def _only(value: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    """The one key of these that holds something; the first that is there if none does."""
    filled = [key for key in keys if value.get(key) is not None]
    if len(filled) > 1:
        names = " and ".join(f'"{key}"' for key in filled)
        raise two_shapes(f"the row has {names}, of which one would be left out", where)
    return filled[0] if filled else next((key for key in keys if key in value), keys[0])


def _system(value: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """The `system` column; empty or null is how a table says "none"."""
    if value["system"] is None:
        return ()
    text = turns.text(value, "system", "the row", where)
    return (Message("system", text),) if text.strip() else ()


def _second_system(where: str) -> BadRow:
    return BadRow(
        'the row has a "system" and a system message',
        reason="system_not_first",
        where=where,
        hint="keep one of the two",
    )
