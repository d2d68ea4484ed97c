"""Opens data files as plain UTF-8 bytes and reads bounded lines.  Whatever fails is a DataError."""

from __future__ import annotations

import errno
import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fastsft.data.rows import DataFile
from fastsft.errors import BadRow, DataError

MAX_LINE_BYTES = 8 * 2**20
BATCH_BYTES = 2**18
BATCH_ROWS = 256

BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
WIDE = (b"\xff\xfe", b"\xfe\xff")
SKIP_BYTES = 2**20

NON_FILES = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextmanager
def faults_of(name: str) -> Iterator[None]:
    """What the system says against a file, said as a `DataError` about `name`."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"the gzip file is truncated or damaged: {error}",
            where=name,
            hint="copy or download it again; gzip -t FILE checks it",
        ) from error
    except PermissionError as error:
        raise DataError(
            "permission denied", where=name, hint="make it readable for you: chmod u+r"
        ) from error
    except OSError as error:
        raise _unreadable(error, name) from error


def _unreadable(error: OSError, name: str) -> DataError:
    if error.errno == errno.ELOOP:
        what, hint = "a loop of symbolic links", "remove the link, or point it at the file"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
        what, hint = "no such file", "check the path and its spelling"
    else:
        what, hint = f"cannot be read: {error.strerror or error}", "check the disk and the path"
    return DataError(what, where=name, hint=hint)


def require_file(path: Path, name: str) -> None:
    """Return if the path is a regular file, which can be opened without waiting for anyone."""
    with faults_of(name):
        mode = path.stat().st_mode
    for is_kind, what in NON_FILES:
        if is_kind(mode):
            raise DataError(
                f"is {what}, not a file", where=name, hint="write its content to a file first"
            )


@contextmanager
def opened(file: DataFile) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked, after the byte order mark if there is one."""
    assert file.path is not None
    require_file(file.path, file.name)
    with faults_of(file.name), file.path.open("rb") as packed:
        _check_packing(packed, file)
        if not file.is_gzip:
            _skip_mark(packed, file.name)
            yield packed
            return
        unpacked = gzip.GzipFile(fileobj=packed)
        with io.BufferedReader(unpacked, BATCH_BYTES) as stream:
            _skip_mark(stream, file.name)
            yield stream


def _check_packing(packed: IO[bytes], file: DataFile) -> None:
    """The name says whether a file is packed, and must be right."""
    begin = packed.read(2)
    packed.seek(0)
    if file.is_gzip and begin != GZIP:
        raise DataError(
            "is named .gz but is no gzip file", where=file.name, hint="rename it without .gz"
        )
    if not file.is_gzip and begin == GZIP:
        raise DataError(
            "is a gzip file but not named so", where=file.name, hint="add .gz to its name"
        )


def _skip_mark(stream: IO[bytes], name: str) -> None:
    begin = stream.read(len(BOM))
    if begin.startswith(WIDE):
        raise DataError(
            "is UTF-16, not UTF-8",
            where=name,
            hint="save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > fixed",
        )
    stream.seek(len(BOM) if begin == BOM else 0)


def lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Every line with its end; None for one over `MAX_LINE_BYTES`, which is never held whole."""
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        if len(raw) <= MAX_LINE_BYTES or raw.endswith(b"\n"):
            yield raw
        else:
            _skip_line(stream)
            yield None


def _skip_line(stream: IO[bytes]) -> None:
    while (rest := stream.readline(SKIP_BYTES)) and not rest.endswith(b"\n"):
        pass


def line_too_long(where: str, what: str = "line") -> BadRow:
    """The fault of one row that is too large to be held."""
    return BadRow(
        f"the {what} has more than {MAX_LINE_BYTES // 2**20} MiB",
        reason="line_too_long",
        where=where,
        hint="split it into several rows, or remove it",
    )
