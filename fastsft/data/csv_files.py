"""Reads CSV and TSV: a header, then rows whose cells are all text.  A bad row spoils no other."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO

from fastsft.data.json_files import Sized, grouped
from fastsft.data.json_rows import not_utf8, nul_byte
from fastsft.data.rows import Batch
from fastsft.data.streams import MAX_LINE_BYTES, line_too_long, lines
from fastsft.errors import BadRow, DataError

HEADER_HINT = "the first line names the columns, each once"
QUOTES_HINT = 'close it with "; write a quote inside a quoted cell twice: ""'


def read(stream: IO[bytes], name: str, delimiter: str) -> Iterator[Batch]:
    """The file's rows as objects of strings; an empty cell is an empty string."""
    return grouped(name, _Table(stream, name, delimiter).rows())


class _Table:
    """The csv module's reader over lines that are decoded and judged one by one."""

    def __init__(self, stream: IO[bytes], name: str, delimiter: str) -> None:
        csv.field_size_limit(MAX_LINE_BYTES)
        self._name, self._size = name, 0
        self._fault: BadRow | None = None  # of a line of the row that is being read
        self._stream = stream
        self._cells = csv.reader(self._lines(), delimiter=delimiter, strict=True)

    def rows(self) -> Iterator[Sized]:
        """Every row after the header, with the line where it begins."""
        header = self._header()
        while True:
            line, size = self._cells.line_num + 1, self._size
            where = f"{self._name}:{line}"
            try:
                cells = next(self._cells)
            except StopIteration:
                return
            except csv.Error as error:
                broken, is_last = self._broken(error, where)
                yield line, 0, broken
                if is_last:
                    return
                continue
            fault = self._take_fault(where) or _ragged(cells, header, where)
            if cells or fault:
                row = fault or (line, dict(zip(header, cells, strict=True)))
                yield line, self._size - size, row

    def _lines(self) -> Iterator[str]:
        for raw in lines(self._stream):
            if raw is None:
                self._fault = self._fault or line_too_long("")
                yield "\n"
                continue
            self._size += len(raw)
            yield self._decoded(raw)

    def _decoded(self, raw: bytes) -> str:
        if b"\0" in raw:
            self._fault = self._fault or nul_byte(raw.index(b"\0") + 1)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self._fault = self._fault or not_utf8(raw, error.start)
            return raw.decode("utf-8", "replace")

    def _take_fault(self, where: str) -> BadRow | None:
        fault, self._fault = self._fault, None
        if fault is not None:
            fault.where = where
        return fault

    def _broken(self, error: csv.Error, where: str) -> tuple[BadRow, bool]:
        """What is wrong with a row that could not be split into cells; whether it is the last."""
        known = self._take_fault(where)
        if "unexpected end" in str(error) or "field larger" in str(error):
            fault = BadRow(
                "a quote that opens in this row is never closed; the rest of the file is not read",
                reason="unclosed_quote",
                where=where,
                hint=QUOTES_HINT,
            )
            return fault, True
        fault = BadRow(
            f"not CSV: {error}", reason="bad_quotes", where=where, hint="quote the whole cell"
        )
        return known or fault, False

    def _header(self) -> list[str]:
        cells: list[str] = []
        try:
            while not cells and self._fault is None:
                cells = next(self._cells)
        except StopIteration:
            return []
        except csv.Error as error:
            raise DataError(
                f"the header is not CSV: {error}", where=self._name, hint=QUOTES_HINT
            ) from error
        where = f"{self._name}:{self._cells.line_num}"
        fault = self._take_fault(where)
        if fault is not None:
            raise DataError(fault.what, where=where, hint=fault.hint)
        self._check(cells)
        return cells

    def _check(self, header: list[str]) -> None:
        twice = next((cell for cell in header if header.count(cell) > 1), None)
        if "" in (cell.strip() for cell in header):
            number = [cell.strip() for cell in header].index("") + 1
            raise DataError(
                f"column {number} has no name in the header", where=self._name, hint=HEADER_HINT
            )
        if twice is not None:
            raise DataError(f'the header names "{twice}" twice', where=self._name, hint=HEADER_HINT)
        if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
            raise DataError(
                "the header is one column: the cells are not separated as the file's name says",
                where=self._name,
                hint="save it with commas; name a file with tabs .tsv",
            )


def _ragged(cells: list[str], header: list[str], where: str) -> BadRow | None:
    if not cells or len(cells) == len(header):
        return None
    return BadRow(
        f"the row has {len(cells)} cells, the header has {len(header)}",
        reason="ragged_row",
        where=where,
        hint='put a cell that contains a comma, a quote or a newline in quotes: "…"',
    )
