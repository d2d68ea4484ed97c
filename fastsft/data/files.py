"""Finds the files of a source and reads each as its kind asks.  Judges no row's meaning."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastsft.data import csv_files, hub, json_files, tables, text_files
from fastsft.data.rows import SUFFIXES, Batch, DataFile, Row, data_file, parse
from fastsft.data.streams import faults_of, opened, require_file
from fastsft.errors import BadRow, DataError

KNOWN = f"{', '.join(SUFFIXES)}, each also with .gz"
EMPTY_HINT = "write one JSON object on each line, a table with a header, or some text"


@dataclass(frozen=True)
class Found:
    """The data files of a source in the order they are read, and the names of other files."""

    files: tuple[DataFile, ...]
    ignored: tuple[str, ...] = ()


def find(path: str) -> Found:
    """The file at a path, or those in the folder there, by their path within it.

    Hidden files are no part of a folder.  Raises `DataError` for what is missing, empty of
    data files, neither file nor folder, of no known kind, or a loop of links.
    """
    with faults_of(path):
        try:
            place = Path(path).expanduser()
            mode = place.stat().st_mode
        except FileNotFoundError as error:
            raise _missing(place, path) from error
        except (ValueError, RuntimeError) as error:  # a NUL in it; a ~user who does not exist
            raise DataError(
                f"is no path: {error}", where=repr(path), hint="check the path and its spelling"
            ) from error
    if stat.S_ISDIR(mode):
        return _Walk(place, path).found()
    require_file(place, path)
    file = data_file(place, place.name)
    if file is None:
        raise DataError(
            "its suffix names no known kind of file", where=path, hint=f"known are {KNOWN}"
        )
    return Found((file,))


def batches(file: DataFile) -> Iterator[Batch]:
    """The file's rows in order, never much more of it in memory than a batch.

    Raises `DataError` where the file as a whole cannot be read or has no row.
    """
    is_empty = True
    for batch in _batches(file):
        is_empty = False
        yield batch
    if is_empty:
        raise DataError("the file has no rows", where=file.name, hint=EMPTY_HINT)


def row_at(file: DataFile, line: int) -> Row | BadRow:
    """The row that begins at a line, or what is wrong with it.

    Raises `DataError` where no row does.
    """
    before = 0
    for batch in batches(file):
        if batch.line > line:
            break
        for row in parse(batch):
            number = row.line if isinstance(row, Row) else _line_of(row)
            if number == line:
                return row
            before = number if number < line else before
    raise DataError(
        "no row begins there",
        where=f"{file.name}:{line}",
        hint=f"the row before it begins at line {before}" if before else "lines count from 1",
    )


def _line_of(fault: BadRow) -> int:
    return int((fault.where or "").rpartition(":")[2])


def _batches(file: DataFile) -> Iterator[Batch]:
    if file.kind == "hub":
        yield from hub.batches(file.name, file.config, file.split, file.revision)
        return
    with opened(file) as stream:
        match file.kind:
            case "csv" | "tsv":
                yield from csv_files.read(stream, file.name, "," if file.kind == "csv" else "\t")
            case "parquet":
                yield from tables.read_parquet(stream, file.name, is_gzip=file.is_gzip)
            case "text":
                yield from text_files.read(stream, file.name)
            case _:
                yield from json_files.read(stream, file.name)


def _missing(place: Path, path: str) -> DataError:
    if place.is_symlink():
        return DataError(
            f"the link leads to {_shown(place.readlink())}, which does not exist",
            where=path,
            hint="make the link lead to a file, or remove it",
        )
    near = _nearest(place)
    return DataError(
        "no such file or folder" + (f"; did you mean {near}?" if near else ""),
        where=path,
        hint="check the path and its spelling",
    )


def _nearest(place: Path) -> str | None:
    """The entry of the same folder whose name is most like a missing one's."""
    try:
        names = [entry.name for entry in place.parent.iterdir()]
    except OSError:
        return None
    near = difflib.get_close_matches(place.name, names, n=1)
    return _shown(place.with_name(near[0])) if near else None


def _shown(path: Path) -> str:
    """The path as text that can be printed, whatever bytes its name is made of."""
    return bytes(path).decode("utf-8", "replace")


class _Walk:
    """Goes through a folder and those in it, following links, each folder once."""

    def __init__(self, root: Path, name: str) -> None:
        self._root, self._name = root, name
        self._files: list[DataFile] = []
        self._ignored: list[str] = []
        self._seen: dict[tuple[int, int], Path] = {}

    def found(self) -> Found:
        """What is in the folder; raises `DataError` where no data file is."""
        pending = [self._root]
        while pending:
            pending += self._folder(pending.pop())
        if not self._files:
            raise DataError(
                "the folder has no data file", where=self._name, hint=f"known are {KNOWN}"
            )
        files = sorted(self._files, key=lambda file: Path(file.name).parts)
        return Found(tuple(files), tuple(sorted(self._ignored)))

    def _folder(self, folder: Path) -> Iterator[Path]:
        """The folders in a folder, its files noted."""
        with faults_of(_shown(folder)):
            self._enter(folder)
            entries = sorted(folder.iterdir())
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if self._is_folder(entry):
                yield entry
            else:
                self._note(entry)

    def _is_folder(self, entry: Path) -> bool:
        try:
            return stat.S_ISDIR(entry.stat().st_mode)
        except FileNotFoundError as error:
            if data_file(entry, entry.name) is None:
                return False
            raise _missing(entry, _shown(entry)) from error
        except OSError:
            with faults_of(_shown(entry)):
                raise

    def _enter(self, folder: Path) -> None:
        status = folder.stat()
        first = self._seen.setdefault((status.st_dev, status.st_ino), folder)
        if first is folder:
            return
        what = "a loop: it leads back to" if first in folder.parents else "the same folder as"
        raise DataError(f"is {what} {_shown(first)}", where=_shown(folder), hint="remove the link")

    def _note(self, entry: Path) -> None:
        name = _shown(entry.relative_to(self._root))
        file = data_file(entry, name)
        if file is None:
            self._ignored.append(name)
        else:
            require_file(entry, _shown(entry))
            self._files.append(file)
