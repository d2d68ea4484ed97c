"""Reads files of JSON: one object on each line, or one array of objects.  Bounded memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from fastsft.data.json_rows import StrictJson, not_utf8, nul_byte
from fastsft.data.rows import Batch, Item
from fastsft.data.streams import BATCH_BYTES, BATCH_ROWS, MAX_LINE_BYTES, line_too_long, lines
from fastsft.errors import BadRow, DataError

SPACE = re.compile(r"[ \t\r\n]*")
UNSURE = 16
"""An error so near the end of what was read may be due to what was not read yet: the longest
token but a string is -Infinity, or the two halves of an escaped character."""
REST = "; the rest of the file is not read"
ARRAY_HINT = "write [{…}, {…}], or one JSON object on each line"

Sized = tuple[int, int, Item]
"""A row's line, its size in bytes or characters, and the row."""


def read(stream: IO[bytes], name: str) -> Iterator[Batch]:
    """The rows of a file that is an array if it begins with `[`, and lines if it does not."""
    head = _head(stream)
    if head.startswith(b"["):
        return grouped(name, _Array(stream, name).rows())
    if head.rstrip() == b"{":
        raise DataError(
            "the file is one JSON object over several lines",
            where=name,
            hint="write one JSON object on each line; jq -c . FILE > fixed.jsonl does it",
        )
    return _line_batches(stream, name)


def _head(stream: IO[bytes]) -> bytes:
    """The start of the first line that is not blank, the stream left as it was."""
    begin = stream.tell()
    head = b""
    while (raw := stream.readline(BATCH_ROWS)) and not (head := raw.lstrip()):
        pass
    stream.seek(begin)
    return head


def _line_batches(stream: IO[bytes], name: str) -> Iterator[Batch]:
    first, size, held = 1, 0, list[bytes]()
    for number, raw in enumerate(lines(stream), start=1):
        if raw is None:
            yield from _batch(name, first, held)
            yield Batch(name, number, (line_too_long(f"{name}:{number}"),))
            first, size, held = number + 1, 0, []
            continue
        held.append(raw)
        size += len(raw)
        if size >= BATCH_BYTES or len(held) >= BATCH_ROWS:
            yield from _batch(name, first, held)
            first, size, held = number + 1, 0, []
    yield from _batch(name, first, held)


def _batch(name: str, first: int, held: list[bytes]) -> Iterator[Batch]:
    if any(raw.strip() for raw in held):
        yield Batch(name, first, tuple(held))


def grouped(name: str, rows: Iterator[Sized]) -> Iterator[Batch]:
    """Parsed rows in batches."""
    first, size, held = 0, 0, list[Item]()
    for line, length, item in rows:
        first = first if held else line
        held.append(item)
        size += length
        if size >= BATCH_BYTES or len(held) >= BATCH_ROWS:
            yield Batch(name, first, tuple(held))
            size, held = 0, []
    if held:
        yield Batch(name, first, tuple(held))


class _Array:
    """Goes through an array, holding little more than one element's text."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream, self._name = stream, name
        # Bytes that are no UTF-8 spoil their own element only: they pass as lone surrogates.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._json, self._lenient = StrictJson(), json.JSONDecoder(strict=False)
        self._text, self._at, self._is_end = "", 0, False
        self._line, self._counted = 1, 0  # the line of the character at `_counted`
        self._before = 0  # characters of that line that are no longer held

    def rows(self) -> Iterator[Sized]:
        """Every element; the last item is a fault where the grammar is broken."""
        self._next_character()
        self._at += 1
        if self._next_character() != "]":
            try:
                yield from self._elements()
            except BadRow as fault:
                fault.what += REST
                fault.where = fault.where or f"{self._name}:{self._line}"
                yield self._line, 0, fault
                return
        self._at += 1
        if self._next_character():
            yield self._line_now(), 0, self._broken("Extra data after the array")

    def _elements(self) -> Iterator[Sized]:
        while True:
            self._next_character()
            line = self._line_now()
            value, size, fault = self._element()
            text = self._text[self._at : self._at + size]
            self._at += size
            yield line, size, self._row(value, text, line, fault)
            following = self._next_character()
            if following == "]":
                return
            if following != ",":
                raise self._broken("Expecting ',' or ']'")
            self._at += 1

    def _element(self) -> tuple[Any, int, BadRow | None]:
        """The next value, its length, and its fault where only the lenient decoder reads it."""
        wanted = BATCH_BYTES
        while True:
            try:
                value, end = self._json.element(self._text, self._at)
                if end < len(self._text) or self._is_end:
                    return value, end - self._at, None
            except json.JSONDecodeError as error:
                if self._is_end or not self._may_go_on(error):
                    return self._recovered(error)
            except BadRow:
                raise
            except ValueError as error:
                raise self._broken(f"not readable ({error})") from error
            if len(self._text) - self._at > MAX_LINE_BYTES:
                raise line_too_long(f"{self._name}:{self._line_now()}", "element")
            self._read(wanted)
            wanted *= 2

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        is_open = error.msg.startswith("Unterminated string")
        return is_open or error.pos >= len(self._text) - UNSURE

    def _recovered(self, error: json.JSONDecodeError) -> tuple[Any, int, BadRow | None]:
        """An element whose one fault is a raw control character in a string has an end."""
        fault = self._broken(error.msg, error.pos)
        try:
            value, end = self._lenient.raw_decode(self._text, self._at)
        except (ValueError, RecursionError):
            raise fault from error
        return value, end - self._at, fault

    def _row(self, value: Any, text: str, line: int, fault: BadRow | None) -> Item:
        try:
            _refuse_bytes(text)
            if fault is None:
                return line, self._json.checked(value, text)
        except BadRow as found:
            fault = found
        fault.where = f"{self._name}:{line}"
        return fault

    def _broken(self, what: str, at: int | None = None) -> BadRow:
        line = self._line_now(at)
        start = self._text.rfind("\n", 0, self._counted) + 1
        column = self._counted - start + 1 + (self._before if start == 0 else 0)
        if self._text[self._counted : self._counted + 1] == "\0":
            fault = nul_byte(column)
        else:
            fault = BadRow(
                f"not JSON: {what} at column {column}", reason="not_json", hint=ARRAY_HINT
            )
        fault.where = f"{self._name}:{line}"
        return fault

    def _line_now(self, at: int | None = None) -> int:
        """The line of a character of the text, counted from the last one that was asked for."""
        at = self._at if at is None else at
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def _next_character(self) -> str:
        """The next character that is not white space, now at `_at`; nothing at the end."""
        while True:
            found = SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text) or self._is_end:
                return self._text[self._at : self._at + 1]
            self._read(BATCH_BYTES)

    def _read(self, size: int) -> None:
        """More text, without what lies before `_at`."""
        self._line_now()
        newline = self._text.rfind("\n", 0, self._at)
        self._before = self._at - newline - 1 + (self._before if newline < 0 else 0)
        data = self._stream.read(size)
        self._is_end = not data
        self._text = self._text[self._at :] + self._decode(data, final=self._is_end)
        self._at = self._counted = 0


def _refuse_bytes(text: str) -> None:
    """Raises `BadRow` for an element with a byte that was no UTF-8."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        data = text.encode("utf-8", "surrogateescape")
        index = len(text[: error.start].encode("utf-8"))
        column = index - data.rfind(b"\n", 0, index)
        fault = not_utf8(data, index)
        fault.what = f"not UTF-8: byte {data[index]:#04x} at byte {column} of its line"
        raise fault from error
