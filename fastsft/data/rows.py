"""Reads a JSONL file into rows that know their place.  Judges the file, not what rows mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fastsft.errors import DataError

BOM = b"\xef\xbb\xbf"
ONE_PER_LINE = "write one JSON object on each line; jq -c . FILE > fixed.jsonl does it"

KINDS = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object of a file; `line` counts from 1 and counts blank lines too."""

    file: str
    line: int
    value: dict[str, Any]

    @property
    def where(self) -> str:
        """The place as errors print it, such as `train.jsonl:17`."""
        return f"{self.file}:{self.line}"


def read(path: Path) -> Iterator[Row]:
    """Every row of a JSONL file, in order; blank lines are no rows but keep their number.

    Raises `DataError` at the first line that is not one clean JSON object, and for a file
    that is missing, a folder, empty or one big JSON array.
    """
    for item in scan(path):
        if isinstance(item, DataError):
            raise item
        yield item


def scan(path: Path) -> Iterator[Row | DataError]:
    """Like `read`, but a bad line comes out as its error, so that faults can be collected."""
    _require_file(path)
    seen = False
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            data = raw.removeprefix(BOM).strip() if number == 1 else raw.strip()
            if not data:
                continue
            if not seen and data.startswith(b"["):
                _refuse_array(path)
            seen = True
            yield _row(path.name, number, data)
    if not seen:
        raise DataError("the file has no rows", where=path.name, hint=ONE_PER_LINE)


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise DataError("is a folder, not a file", where=str(path), hint="name one .jsonl file")
    if not path.is_file():
        raise DataError("no such file", where=str(path), hint="check the path and its spelling")


def _refuse_array(path: Path) -> NoReturn:
    raise DataError(
        "the file is a JSON array, not one object on each line",
        where=path.name,
        hint=f"convert it: jq -c '.[]' {path.name} > {path.stem}.jsonl",
    )


def _row(file: str, line: int, data: bytes) -> Row | DataError:
    where = f"{file}:{line}"
    try:
        value = _object(data)
    except UnicodeDecodeError as error:
        return DataError(
            f"not UTF-8: byte {data[error.start]:#04x} at column {error.start + 1}",
            where=where,
            hint="save the file as UTF-8",
        )
    except json.JSONDecodeError as error:
        return DataError(
            f"not JSON: {error.msg} at column {error.colno}", where=where, hint=ONE_PER_LINE
        )
    except RecursionError:
        return DataError("JSON is nested too deeply", where=where, hint="flatten the row")
    except _BadValue as error:
        return DataError(error.what, where=where, hint=error.hint)
    except ValueError as error:
        return DataError(f"not JSON that can be read: {error}", where=where, hint=ONE_PER_LINE)
    return Row(file, line, value)


class _BadValue(Exception):
    """JSON that Python would accept and that means something else than it says."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


def _object(data: bytes) -> dict[str, Any]:
    text = data.decode("utf-8")
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise _BadValue(
            f"the line is {KINDS.get(type(value), 'a number')}, not a JSON object", ONE_PER_LINE
        )
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _BadValue(f'key "{twice}" appears twice in one object', "keep one of the two")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _BadValue(f"{name} is not JSON", "write null, or leave the key out")


def _refuse_surrogates(value: dict[str, Any]) -> None:
    """JSON can spell half of a UTF-16 pair; such a string cannot be written as text."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(error.object[error.start]):04x}"
        raise _BadValue(
            f"a string holds the lone surrogate {code}, which is no character",
            "an emoji was cut in half: write the whole character, or remove the escape",
        ) from error
