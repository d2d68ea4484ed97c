"""Lays out a GGUF file: keys and tensor list by the `gguf` package, room for the weights behind.

Writes no weights; never overwrites a file.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGUFWriter

from fastsft.errors import ExportError
from fastsft.export.ggml import Encoding, Stored

Value = str | int | list[str]


class Part(Protocol):
    """Something that has keys of its own to write, such as a vocabulary."""

    def add_to(self, writer: GGUFWriter) -> None:
        """Adds the keys."""


@dataclass(frozen=True)
class Layout:
    """A file with its head written: where each tensor's bytes go, by llama.cpp's name."""

    path: Path
    file: int
    encodings: Mapping[str, Encoding]
    starts: Mapping[str, int]


def padded(nbytes: int) -> int:
    """The bytes that a tensor takes with what keeps the next one aligned."""
    return -(-nbytes // GGUF_DEFAULT_ALIGNMENT) * GGUF_DEFAULT_ALIGNMENT


def writer_of(path: Path, architecture: str, general: Mapping[str, Value]) -> GGUFWriter:
    """A writer for `path` that has its first keys."""
    writer = GGUFWriter(path, architecture)
    for key, value in general.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    return writer


@contextmanager
def laid_out(
    writers: Sequence[GGUFWriter], tensors: Sequence[Sequence[Stored]]
) -> Iterator[list[Layout]]:
    """The files of `writers`, each with its tensors' room; removed again if the block fails.

    Raises: ExportError when one of the files exists.
    """
    made: list[Path] = []
    try:
        with ExitStack() as stack:
            yield [
                stack.enter_context(_opened(writer, tuple(stored), made))
                for writer, stored in zip(writers, tensors, strict=True)
            ]
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _opened(writer: GGUFWriter, tensors: tuple[Stored, ...], made: list[Path]) -> Iterator[Layout]:
    path = writer.path
    assert path is not None
    _create(path)
    made.append(path)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            np.dtype(np.float32),
            tensor.nbytes,
            raw_dtype=tensor.ggml_type,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        starts, end = _places(tensors, padded(path.stat().st_size))
        os.truncate(file, end)
        yield Layout(path, file, {tensor.name: tensor.encoding for tensor in tensors}, starts)
    finally:
        os.close(file)


def _places(tensors: Sequence[Stored], start: int) -> tuple[dict[str, int], int]:
    """Where each tensor starts, and where the last one's padding ends."""
    starts = {}
    for tensor in tensors:
        starts[tensor.name] = start
        start += padded(tensor.nbytes)
    return starts, start


def _create(path: Path) -> None:
    try:
        path.open("xb").close()
    except FileExistsError as error:
        raise ExportError(
            "exists already", where=str(path), hint="pass --overwrite, or --out with a new folder"
        ) from error
