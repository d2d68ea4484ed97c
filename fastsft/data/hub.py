"""Reads a Hugging Face dataset through `datasets`, which is imported late and only here.

Never runs code from a dataset's repository: `datasets` 4 refuses loading scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastsft.data import rows as kinds
from fastsft.data import tables
from fastsft.data.rows import Batch, DataFile
from fastsft.data.streams import BATCH_ROWS
from fastsft.errors import DataError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_dataset_id(path: str) -> bool:
    """Whether a source's path names a dataset: owner/name, and neither a path nor a data file.

    Where the first part is a folder here, the whole is a path, if perhaps a misspelt one.
    """
    if not REPOSITORY.fullmatch(path) or kinds.data_file(Path(path), path) is not None:
        return False
    return not Path(path.partition("/")[0]).exists()


def data_file(
    path: str, config: str | None = None, split: str | None = None, revision: str | None = None
) -> DataFile:
    """The dataset as a source's one file; nothing is downloaded yet."""
    return DataFile(None, path, "hub", config=config, split=split, revision=revision)


def batches(
    path: str, config: str | None, split: str | None, revision: str | None
) -> Iterator[Batch]:
    """Every row of one split, in order; `line` is the row's number from 1, null is absent.

    Raises `DataError` where the dataset, its configuration or its split cannot be had.
    """
    import datasets

    with _faults(path):
        if split is None:
            names = datasets.get_dataset_split_names(path, config, revision=revision)
            raise _no_split(path, names)
        table = datasets.load_dataset(path, config, split=split, revision=revision)
    tables.check_columns(table.column_names, path)
    chunks = table.with_format("arrow").iter(batch_size=BATCH_ROWS)
    yield from tables.batches(path, chunks)


def _no_split(path: str, names: Sequence[str]) -> DataError:
    return DataError(
        f"no split is named; the dataset has {', '.join(names)}",
        where=path,
        hint=f"name one in data.sources: {{path: {path}, split: {names[0]}}}",
    )


@contextmanager
def _faults(path: str) -> Iterator[None]:
    """What `datasets` raises, as a `DataError` with the cure."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        raise DataError(
            "no such dataset on the Hub, nor such a file here",
            where=path,
            hint="check the spelling; a private or gated one needs HF_TOKEN",
        ) from error
    except ConnectionError as error:
        raise DataError(
            "cannot be downloaded, and is not in the cache",
            where=path,
            hint="connect to the network once, or save it to a file and name that",
        ) from error
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"cannot be loaded: {_first_line(error)}",
            where=path,
            hint="name its config, split and revision as its page on the Hub does; one that is "
            "made by a script must be converted to Parquet first",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
