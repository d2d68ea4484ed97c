"""Tells the shape of a row by its key names, and renames keys.  Reads no value but key names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from fastsft.data.rows import Row
from fastsft.errors import BadRow

Shape = Literal["messages", "sharegpt", "prompt_response", "alpaca", "question_answer", "text"]

PROMPTS = ("prompt", "query")
ANSWERS = ("response", "completion", "answer", "output")
OUTPUTS = ("output", "response")
INPUTS = ("input", "context")
"""Alpaca's name of what an instruction is about, then Dolly's."""

SHAPES_HINT = (
    'use "messages" (a list of {"role", "content"}), "conversations" (a list of {"from", '
    '"value"}), "prompt" and "response", "instruction" and "output", or "question" and '
    '"answer"; or name the keys to read in data.sources[].columns'
)
KNOWN_KEYS: Mapping[Shape, frozenset[str]] = {
    "messages": frozenset({"system", "tools", "messages"}),
    "sharegpt": frozenset({"system", "conversations"}),
    "prompt_response": frozenset({"system", "tools", *PROMPTS, *ANSWERS}),
    "alpaca": frozenset({"system", "instruction", "history", *INPUTS, *OUTPUTS}),
    "question_answer": frozenset({"system", "question", "answer"}),
    "text": frozenset({"text", "continues"}),
}
OPENAI_KEYS = frozenset({"role", "content", "weight", "tool_calls"})
TOOL_KEYS = frozenset({"role", "content", "weight", "tool_call_id", "name"})
SHAREGPT_KEYS = frozenset({"from", "value", "weight"})


def detect(value: Mapping[str, Any], *, where: str | None = None) -> Shape:
    """The shape that a row's key names spell; "text" only where they spell nothing else.

    Raises `BadRow` when they spell none, or two.
    """
    found = _spelled(value)
    if len(found) == 1:
        return found[0]
    if found:
        raise two_shapes(f"the row has the keys of two shapes: {' and '.join(found)}", where)
    raise _unknown(value, where)


def extra_keys(value: Mapping[str, Any], shape: Shape) -> frozenset[str]:
    """Keys of a good row that nothing reads, for a note; those inside turns as `messages[].key`."""
    extra = set(value) - KNOWN_KEYS[shape]
    for key in ("messages", "conversations", *PROMPTS, *ANSWERS):
        entries = value.get(key)
        if key in KNOWN_KEYS[shape] and isinstance(entries, list):
            extra |= {f"{key}[].{name}" for entry in entries for name in _unread(entry, shape)}
    return frozenset(extra)


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the mapped keys alone, under our names; `columns` is ours: theirs.

    Raises `BadRow` for a column that the row lacks.
    """
    try:
        return Row(
            row.file, row.line, {ours: row.value[theirs] for ours, theirs in columns.items()}
        )
    except KeyError as missing:
        raise _no_column(row, str(missing.args[0])) from missing


def two_shapes(what: str, where: str | None) -> BadRow:
    """The error for keys that leave it open what is to be read."""
    return BadRow(
        what,
        reason="two_shapes",
        where=where,
        hint="keep the keys of one shape and remove the others, or name the keys to read in "
        "data.sources[].columns, as {prompt: prompt, response: answer}",
    )


def _spelled(value: Mapping[str, Any]) -> list[Shape]:
    found: list[Shape] = []
    if "messages" in value:
        found.append("messages")
    if "conversations" in value:
        found.append("sharegpt")
    if ("prompt" in value and any(key in value for key in ANSWERS)) or (
        "query" in value and "response" in value
    ):
        found.append("prompt_response")
    if "instruction" in value and ("output" in value or "response" in value):
        found.append("alpaca")
    if "question" in value and "answer" in value:
        found.append("question_answer")
    return found or (["text"] if "text" in value else [])


def _unread(entry: Mapping[str, Any], shape: Shape) -> Iterator[str]:
    known = SHAREGPT_KEYS if shape == "sharegpt" else OPENAI_KEYS
    known = TOOL_KEYS if entry.get("role") == "tool" else known
    return (key for key in entry if key not in known and entry[key] is not None)


def _unknown(value: Mapping[str, Any], where: str | None) -> BadRow:
    keys = ", ".join(f'"{key}"' for key in list(value)[:8]) or "none"
    hint = SHAPES_HINT
    lowered = {key.lower(): key for key in value}
    if spelled := _spelled(lowered):
        ours = sorted(KNOWN_KEYS[spelled[0]] & lowered.keys())
        columns = ", ".join(f"{key}: {lowered[key]}" for key in ours)
        hint = f"key names are case-sensitive: set data.sources[].columns to {{{columns}}}"
    elif "conversation" in value:
        hint = "set data.sources[].columns to {conversations: conversation}, or to {messages: …}"
    elif "chosen" in value and "rejected" in value:
        hint = "preference pairs are not trained by fastsft; name the good answer in " + (
            "data.sources[].columns, as {prompt: prompt, response: chosen}"
        )
    return BadRow(
        f"the row has no known shape; its keys are: {keys}",
        reason="unknown_shape",
        where=where,
        hint=hint,
    )


def _no_column(row: Row, name: str) -> BadRow:
    close = difflib.get_close_matches(name, list(row.value)[:200], n=1)
    guess = f'; did you mean "{close[0]}"?' if close else ""
    keys = ", ".join(f'"{key}"' for key in list(row.value)[:8]) or "none"
    return BadRow(
        f'the row has no "{name}", which data.sources[].columns names{guess}',
        reason="missing_column",
        where=row.where,
        hint=f"name one of the row's keys: {keys}",
    )
