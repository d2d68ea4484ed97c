"""Reads a plain text or Markdown file as one document, in pieces where it is long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from fastsft.data.json_rows import not_utf8, nul_byte
from fastsft.data.rows import Batch
from fastsft.errors import BadRow

PIECE_BYTES = 2**19
NEWLINE = b"\n"
REST = "; the rest of the file is not read"


def read(stream: IO[bytes], name: str) -> Iterator[Batch]:
    """The document as values {"text": …}, one after the other, no character lost or changed.

    A piece ends at the last end of a line within half a mebibyte, where there is one.  Every piece
    but the last has {"continues": True} too: the next one belongs to the same document.  A
    piece's line is the one where it begins, or the number after the last piece's where that
    is the same; the first is 1, and no two are equal.
    """
    held: tuple[int, str] | None = None
    line, number = 1, 0
    for data in _pieces(stream):
        number = max(line, number + 1)
        fault = _fault(data, f"{name}:", number, line)
        if held is not None:
            yield _batch(name, *held, continues=fault is None)
        if fault is not None:
            yield Batch(name, number, (fault,))
            return
        held = number, data.decode("utf-8")
        line += data.count(NEWLINE)
    if held is not None:
        yield _batch(name, *held, continues=False)


def _batch(name: str, line: int, text: str, *, continues: bool) -> Batch:
    value = {"text": text, "continues": True} if continues else {"text": text}
    return Batch(name, line, ((line, value),))


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while more := stream.read(PIECE_BYTES):
        rest += more
        if len(more) == PIECE_BYTES:
            end = rest.rfind(NEWLINE) + 1 or _character_border(rest)
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _character_border(data: bytes) -> int:
    """The end of the last whole character, if it is UTF-8."""
    tail = data[-3:]
    for index, byte in enumerate(tail):
        length = 2 + (byte >= 0xE0) + (byte >= 0xF0) if byte >= 0xC0 else 1
        if index + length > len(tail):
            return len(data) - len(tail) + index
    return len(data)


def _fault(data: bytes, prefix: str, number: int, line: int) -> BadRow | None:
    """The first byte of a piece that is no text; its place is the piece's, its line is told."""
    found: tuple[int, BadRow] | None = None
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = error.start, not_utf8(*_line_of(data, error.start))
    nul = data.find(b"\0")
    if nul >= 0 and (found is None or nul < found[0]):
        found = nul, nul_byte(_line_of(data, nul)[1] + 1)
    if found is None:
        return None
    index, fault = found
    fault.what += f" of line {line + data.count(NEWLINE, 0, index)}{REST}"
    fault.where = f"{prefix}{number}"
    return fault


def _line_of(data: bytes, index: int) -> tuple[bytes, int]:
    """The line that a byte is on, and the byte's index there."""
    begin = data.rfind(NEWLINE, 0, index) + 1
    return data[begin : index + 1], index - begin
