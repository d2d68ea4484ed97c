"""Reads one entry of a list of turns, OpenAI's or ShareGPT's, into a message.  Judges no order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastsft.data import toolcalls
from fastsft.data.conversation import Message, Role
from fastsft.errors import BadRow

OPENAI_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
SHAREGPT_ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
CURES: Mapping[str, Role] = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}
KEY_CURES: Mapping[str, str] = {
    "functions": 'write them as "tools": [{"type": "function", "function": {…}}]',
    "function_call": 'write it as "tool_calls": [{"type": "function", "function": {…}}]',
}
OTHER_KEY: Mapping[str, tuple[str, str]] = {
    "role": ("from", "{conversations: messages}"),
    "from": ("role", "{messages: conversations}"),
}
SHAREGPT_TOOLS = ("tool", "function_call", "observation", "function")
# Leaving these out would train on something else than the row says.
UNSUPPORTED = ("function_call", "functions", "images", "videos", "audio", "audios")
KINDS = {list: "a list", dict: "an object", type(None): "null", bool: "a boolean", str: "a string"}


def openai(entry: Any, number: int, where: str) -> Message:
    """The message of an OpenAI-style entry: role, content, weight, tool calls and results.

    Raises `BadRow`.
    """
    if type(entry) is dict and len(entry) == 2:  # the common case, kept quick
        role, content = entry.get("role"), entry.get("content")
        if type(content) is str and (role == "user" or role == "assistant"):
            return Message(role, content)
    what = f"message {number}"
    if not isinstance(entry, dict):
        raise _no_object(what, '{"role": "…", "content": "…"}', where)
    refuse_unsupported(entry, UNSUPPORTED, what, where)
    role = _role(entry, "role", OPENAI_ROLES, what, where)
    calls = toolcalls.calls(entry.get("tool_calls"), what, where)
    if calls and role != "assistant":
        raise unsupported(f'{what} is from the {role} and has "tool_calls"', "tool_calls", where)
    is_call_only = bool(calls) and entry.get("content") is None
    content = "" if is_call_only else _content(entry, what, where)
    trained = _trained(entry, role, what, where)
    if role != "tool":
        return Message(role, content, trained, calls)
    call_id = _optional(entry, "tool_call_id", what, where)
    return Message(role, content, trained, (), call_id, _optional(entry, "name", what, where))


def sharegpt(entry: Any, number: int, where: str) -> Message:
    """The message of a ShareGPT entry: from, value, weight.

    Raises `BadRow`, also for the dialects that write tool calls as roles.
    """
    what = f"message {number}"
    if not isinstance(entry, dict):
        raise _no_object(what, '{"from": "…", "value": "…"}', where)
    refuse_unsupported(entry, (*UNSUPPORTED, "tool_calls"), what, where)
    if entry.get("from") in SHAREGPT_TOOLS:
        raise BadRow(
            f"{what} is from {entry['from']!r}; tools are not read from ShareGPT rows",
            reason="unknown_role",
            where=where,
            hint='write the row as "messages" with "tool_calls" and the role tool, or remove it',
        )
    role = _role(entry, "from", SHAREGPT_ROLES, what, where)
    return Message(role, text(entry, "value", what, where), _trained(entry, role, what, where))


def text(entry: Mapping[str, Any], key: str, what: str, where: str) -> str:
    """The string under a key.

    Raises `BadRow` when there is none, or something else than a string.
    """
    found = entry.get(key)
    if isinstance(found, str):
        return found
    if key not in entry:
        raise BadRow(
            f'{what} has no "{key}"',
            reason="missing_content",
            where=where,
            hint=f'add a "{key}" string to every message, or remove the message',
        )
    raise BadRow(
        f'{what}: "{key}" is {KINDS.get(type(found), "a number")}, not a string',
        reason="missing_content" if found is None else "wrong_type",
        where=where,
        hint=f'write "{key}" as one string',
    )


def refuse_unsupported(
    value: Mapping[str, Any], keys: Iterable[str], what: str, where: str
) -> None:
    """Raises `BadRow` for the first of these keys that holds something."""
    for key in keys:
        if value.get(key):
            raise unsupported(f'{what} has "{key}", which is not supported', key, where)


def unsupported(what: str, key: str, where: str) -> BadRow:
    """The error for a key whose meaning would be lost."""
    return BadRow(
        what,
        reason="unsupported",
        where=where,
        hint=KEY_CURES.get(
            key, f'remove "{key}", or the row; leaving it out in silence would change it'
        ),
    )


def _role(
    entry: Mapping[str, Any], key: str, roles: Mapping[str, Role], what: str, where: str
) -> Role:
    name = entry.get(key)
    role = roles.get(name) if isinstance(name, str) else None
    if role is not None:
        return role
    names = ", ".join(roles)
    if name is None:
        other, columns = OTHER_KEY[key]
        cure = (
            f"set data.sources[].columns to {columns}" if other in entry else f"add one of: {names}"
        )
        raise BadRow(f'{what} has no "{key}"', reason="missing_role", where=where, hint=cure)
    meant = _meant(str(name), roles)
    raise BadRow(
        f"{what} has the unknown role {name!r}" + (f'; did you mean "{meant}"?' if meant else ""),
        reason="unknown_role",
        where=where,
        hint=f"use one of: {names}",
    )


def _meant(name: str, roles: Mapping[str, Role]) -> str | None:
    """The role, spelled as the shape spells it, that an unknown name probably means."""
    plain = name.strip().lower()
    if plain in roles:
        return plain
    role = CURES.get(plain)
    return next((known for known, means in roles.items() if means == role), None)


def _content(entry: Mapping[str, Any], what: str, where: str) -> str:
    """A string, or OpenAI's list of parts where all of them are text."""
    parts = entry.get("content")
    if not isinstance(parts, list):
        return text(entry, "content", what, where)
    texts = [part["text"] for part in parts if _is_text(part)]
    if not parts or len(texts) < len(parts):
        raise BadRow(
            f'{what}: "content" has a part that is not text'
            if parts
            else f'{what}: "content" is an empty list',
            reason="wrong_type",
            where=where,
            hint='write "content" as one string, or as a list of {"type": "text", "text": "…"}',
        )
    return "".join(texts)


def _is_text(part: object) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _trained(entry: Mapping[str, Any], role: Role, what: str, where: str) -> bool:
    """`weight` 0 leaves an answer untrained; on other turns it can only repeat that they are."""
    weight = entry.get("weight")
    if weight is None:
        return True
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        raise bad_weight(f"{what} has the weight {weight!r}", "write 0 or 1", where)
    if weight and role != "assistant":
        raise bad_weight(
            f"{what} is from the {role} and has the weight 1",
            "only answers are trained; remove the weight, or set data.train_on: all",
            where,
        )
    return bool(weight)


def bad_weight(what: str, hint: str, where: str) -> BadRow:
    """The error for a weight that is none, or that nothing would follow from."""
    return BadRow(what, reason="bad_weight", where=where, hint=hint)


def _optional(entry: Mapping[str, Any], key: str, what: str, where: str) -> str | None:
    return None if entry.get(key) is None else text(entry, key, what, where)


def _no_object(what: str, form: str, where: str) -> BadRow:
    return BadRow(
        f"{what} is not an object",
        reason="wrong_type",
        where=where,
        hint=f"write every message as {form}",
    )
