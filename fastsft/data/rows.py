"""What a source is made of: files, batches of them, rows that know their place.  Opens nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastsft.data.json_rows import StrictJson
from fastsft.errors import BadRow

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "text", "hub"]
Item = tuple[int, dict[str, Any]] | BadRow
"""A value with the line where it begins, or what is wrong with it."""

SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file; `line` counts from 1 and counts blank lines too.

    In a table without lines (Parquet, a Hugging Face dataset) it is the number of the row.
    """

    file: str
    line: int
    value: dict[str, Any]

    @property
    def where(self) -> str:
        """The place as errors print it, such as `train.jsonl:17`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class DataFile:
    """One file of a source, `name`d as errors name it: relative to the folder that was given.

    `path` is None for a Hugging Face dataset, which has a config, split and revision instead.
    """

    path: Path | None
    name: str
    kind: Kind
    is_gzip: bool = False
    config: str | None = None
    split: str | None = None
    revision: str | None = None


def data_file(path: Path, name: str) -> DataFile | None:
    """The file as its suffix says, perhaps with .gz; None where that is none that is known."""
    is_gzip = path.suffix.lower() == ".gz"
    kind = SUFFIXES.get((path.with_suffix("") if is_gzip else path).suffix.lower())
    return None if kind is None else DataFile(path, name, kind, is_gzip)


@dataclass(frozen=True)
class Batch:
    """Some rows of a file, small enough to be sent to another process, which parses them.

    `items` are either raw lines, the first of which is line `line`, or values with the line
    where each begins, and faults.
    """

    file: str
    line: int
    items: tuple[bytes, ...] | tuple[Item, ...]


def parse(batch: Batch) -> Iterator[Row | BadRow]:
    """The batch's rows in order, each or what is wrong with it; a blank line is no row."""
    json = StrictJson()
    for number, item in enumerate(batch.items, start=batch.line):
        if isinstance(item, bytes):
            data = item.strip()
            if data:
                yield _parsed(json, batch.file, number, data)
        elif isinstance(item, BadRow):
            yield item
        else:
            yield Row(batch.file, *item)


def _parsed(json: StrictJson, file: str, line: int, data: bytes) -> Row | BadRow:
    try:
        return Row(file, line, json.line(data))
    except BadRow as fault:
        fault.where = f"{file}:{line}"
        return fault
