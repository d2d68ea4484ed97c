"""Reads OpenAI's tool calls and function schemas from a row, strictly.  Judges no order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from fastsft.errors import BadRow

CALL_HINT = (
    'write {"id": "…", "type": "function", "function": {"name": "…", "arguments": "{…}"}}, '
    "the arguments as an object or as JSON text of one"
)
TOOLS_HINT = (
    'write "tools" as a list of {"type": "function", "function": {"name": "…", "parameters": {…}}}'
)

Object = Mapping[str, Any]


def calls(value: Any, what: str, where: str) -> tuple[Object, ...]:
    """The tool calls of a message, each with its arguments as an object; null is none.

    Raises `BadRow`, reason `bad_tool_call`.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _bad_call(f'{what}: "tool_calls" is not a list', where)
    return tuple(_call(call, what, where) for call in value)


def tools(value: Any, where: str) -> tuple[Object, ...]:
    """The functions that a row offers, from a list or its JSON text; null is none.

    Raises `BadRow`, reason `bad_tools`.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str):
        try:
            value = strict_json(value)
        except ValueError as error:
            raise _bad_tools(f'"tools" is text that is not JSON: {error}', where) from error
    if not isinstance(value, list):
        raise _bad_tools('"tools" is not a list', where)
    for number, tool in enumerate(value, start=1):
        if _function(tool) is None:
            raise _bad_tools(f"tool {number} is not a function with a name", where)
    return tuple(value)


def strict_json(text: str) -> Any:
    """JSON text parsed; NaN, a key twice and half a character are refused.

    Raises `ValueError`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _call(call: Any, what: str, where: str) -> Object:
    function = _function(call)
    if function is None:
        raise _bad_call(
            f"{what} has a tool call that is not a function with a name and a text id", where
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = strict_json(arguments)
        except ValueError as error:
            fault = f"{what}: the arguments of {function['name']!r} are not JSON: {error}"
            raise _bad_call(fault, where) from error
    if not isinstance(arguments, dict):
        raise _bad_call(f"{what}: the arguments of {function['name']!r} are no object", where)
    plain = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **plain} if call.get("id") is not None else plain


def _function(value: Any) -> Object | None:
    """The `function` of a call or a schema, if it is one and has a name."""
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        return None
    if not isinstance(value.get("id", ""), str | None):
        return None
    function = value.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    return function if function["name"] else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key appears twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _bad_call(what: str, where: str) -> BadRow:
    return BadRow(what, reason="bad_tool_call", where=where, hint=CALL_HINT)


def _bad_tools(what: str, where: str) -> BadRow:
    return BadRow(what, reason="bad_tools", where=where, hint=TOOLS_HINT)
