"""Parses JSON strictly: what Python would accept and what means something else is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from fastsft.errors import BadRow

ONE_PER_LINE = "write one JSON object on each line; jq -c . FILE > fixed.jsonl does it"
MAX_DEPTH = 100
"""Deepest nesting of a row: no data set needs as much, and later steps may recurse this far."""

KINDS = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class StrictJson:
    """A JSON decoder that refuses duplicate keys, NaN, half characters and deep nesting.

    Faults are bad rows without a place, which only the caller knows.
    """

    def __init__(self) -> None:
        self._fault: BadRow | None = None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._unique, parse_constant=self._constant
        )

    def line(self, data: bytes) -> dict[str, Any]:
        """The one object that the bytes spell.

        Raises `BadRow` for anything else.
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(data, error.start) from error
        self._fault = None
        try:
            value = self._decoder.decode(text)
        except json.JSONDecodeError as error:
            raise _nul_byte(data) or not_json(error.msg, error.colno) from error
        except RecursionError as error:
            raise _too_deep() from error
        except ValueError as error:
            raise _unreadable(error) from error
        return self._checked(value, text, "line")

    def element(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, unchecked, and where it ends.

        Raises `json.JSONDecodeError` for what is not, or not yet, a JSON value, and `BadRow`
        for one too deep.
        """
        self._fault = None
        try:
            return self._decoder.raw_decode(text, start)
        except RecursionError as error:
            raise _too_deep() from error

    def checked(self, value: Any, text: str) -> dict[str, Any]:
        """The value that `element` just returned, made from `text`, if it is a sound object."""
        return self._checked(value, text, "element")

    def _checked(self, value: Any, text: str, what: str) -> dict[str, Any]:
        if self._fault is not None:
            raise self._fault
        if not isinstance(value, dict):
            raise BadRow(
                f"the {what} is {KINDS.get(type(value), 'a number')}, not a JSON object",
                reason="not_an_object",
                hint=ONE_PER_LINE if what == "line" else "write an object: {…}",
            )
        if text.count("{") + text.count("[") > MAX_DEPTH:
            _refuse_depth(value)
        if SURROGATE_ESCAPE.search(text):
            _refuse_surrogates(value)
        return value

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs) and self._fault is None:
            self._fault = BadRow(
                f'key "{_twice(pairs)}" appears twice in one object',
                reason="duplicate_key",
                hint="keep one of the two",
            )
        return value

    def _constant(self, name: str) -> None:
        self._fault = self._fault or BadRow(
            f"{name} is not JSON", reason="nan_literal", hint="write null, or leave the key out"
        )


def not_utf8(data: bytes, index: int) -> BadRow:
    """The fault of a line whose byte at `index` begins no UTF-8 character."""
    return BadRow(
        f"not UTF-8: byte {data[index]:#04x} at column {index + 1}",
        reason="not_utf8",
        hint="save the file as UTF-8",
    )


def nul_byte(column: int) -> BadRow:
    """The fault of a line with byte 0x00 at a column, which counts bytes from 1."""
    return BadRow(
        f"NUL byte 0x00 at column {column}",
        reason="nul_byte",
        hint="remove it: tr -d '\\000' < FILE > fixed; if every second byte is NUL, the file is "
        "UTF-16: save it as UTF-8",
    )


def not_json(message: str, column: int) -> BadRow:
    """The fault of a line that JSON's grammar refuses at a column."""
    return BadRow(f"not JSON: {message} at column {column}", reason="not_json", hint=ONE_PER_LINE)


def _nul_byte(data: bytes) -> BadRow | None:
    index = data.find(b"\0")
    return None if index < 0 else nul_byte(index + 1)


def _too_deep() -> BadRow:
    return BadRow("JSON is nested too deeply", reason="too_deep", hint="flatten the row")


def _unreadable(error: ValueError) -> BadRow:
    """Python reads no number of more than 4300 digits."""
    return BadRow(
        f"not JSON that can be read: {error}", reason="not_json", hint="write the number as text"
    )


def _twice(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            break
        seen.add(key)
    return key


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise _too_deep()


def _inside(value: Any) -> list[Any]:
    """The objects and arrays directly inside a value."""
    inner = value.values() if isinstance(value, Mapping) else value
    return [each for each in inner if isinstance(each, Mapping | list)]


def _refuse_surrogates(value: dict[str, Any]) -> None:
    """JSON can spell half of a UTF-16 pair; such a string cannot be written as text."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        _refuse_surrogate(error)


def _refuse_surrogate(error: UnicodeEncodeError) -> NoReturn:
    code = f"\\u{ord(error.object[error.start]):04x}"
    raise BadRow(
        f"a string holds the lone surrogate {code}, which is no character",
        reason="lone_surrogate",
        hint="an emoji was cut in half: write the whole character, or remove the escape",
    ) from error
