"""Reads Arrow tables, which is what Parquet files and Hugging Face datasets hold."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from fastsft.data.rows import Batch, Item
from fastsft.data.streams import BATCH_BYTES, BATCH_ROWS
from fastsft.errors import BadRow, DataError

if TYPE_CHECKING:
    import pyarrow as pa

BUFFER_BYTES = 2**20


def read_parquet(stream: IO[bytes], name: str, *, is_gzip: bool) -> Iterator[Batch]:
    """The file's rows, a null being an absent key; `line` is the row's number from 1."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with _seekable(stream, is_gzip) as source:
        try:
            with ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False) as table:
                check_columns(table.schema_arrow.names, name)
                rows = _batch_rows(table.metadata)
                yield from batches(name, table.iter_batches(batch_size=rows))
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _not_parquet(error, name) from error


@contextmanager
def _seekable(stream: IO[bytes], is_gzip: bool) -> Iterator[IO[bytes]]:
    """A Parquet file is read from its end, so that a packed one is unpacked to disk first."""
    if not is_gzip:
        yield stream
        return
    with tempfile.TemporaryFile() as unpacked:
        shutil.copyfileobj(stream, unpacked)
        unpacked.seek(0)
        yield unpacked


def _batch_rows(metadata: Any) -> int:
    """Rows of about `BATCH_BYTES` in all, by their mean size, which Parquet knows."""
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    mean = max(1, size // max(1, metadata.num_rows))
    return int(min(BATCH_ROWS, max(1, BATCH_BYTES // mean)))


def _not_parquet(error: Exception, name: str) -> DataError:
    said = str(error).partition("\n")[0].partition(". ")[0]
    return DataError(
        f"not a Parquet file that can be read: {said}",
        where=name,
        hint="write or download it again; name a file by what it holds (.jsonl, .csv, …)",
    )


def check_columns(names: list[str], name: str) -> None:
    """Return if every column has its own name, without which a row is no object."""
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise DataError(
            f'two columns are named "{twice}"', where=name, hint="rename or remove one of them"
        )


def batches(name: str, tables: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Batch]:
    """Arrow's batches as ours."""
    line = 1
    for table in tables:
        if table.num_rows:
            yield Batch(name, line, tuple(_items(name, line, table)))
        line += table.num_rows


def _items(name: str, line: int, table: pa.RecordBatch | pa.Table) -> Iterator[Item]:
    try:
        values = table.to_pylist()
    except UnicodeDecodeError as error:
        if table.num_rows > 1:
            for row in range(table.num_rows):
                yield from _items(name, line + row, table.slice(row, 1))
            return
        yield BadRow(
            f"not UTF-8: byte {error.object[error.start]:#04x} in a text column",
            reason="not_utf8",
            where=f"{name}:{line}",
            hint="write the table again from text that is UTF-8",
        )
        return
    for number, value in enumerate(values, start=line):
        yield number, present(value)


def present(value: Any) -> Any:
    """The value without the keys that are null, in every object inside it too."""
    if isinstance(value, dict):
        return {key: present(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [present(inner) for inner in value]
    return value
