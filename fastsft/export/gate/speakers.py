"""Opens an export as a model that can be asked, or says why it cannot be.  Judges nothing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastsft import scoring
from fastsft.errors import ExportError
from fastsft.export import general, gguf, llamacpp, vocabulary
from fastsft.export.gate.behaviour import ANSWER_TOKENS, PATIENCE, PROMPT_TOKENS, Speaker
from fastsft.export.record import Record
from fastsft.export.staging import require_space
from fastsft.export.trained import Trained
from fastsft.hardware import gib

CONTEXT = PROMPT_TOKENS + PATIENCE * ANSWER_TOKENS + 64
_LLAMA_BYTES = 2**29
"""What llama.cpp takes beside the weights: cache and buffers of a short sequence, generously."""


class Unavailable(ExportError):
    """The export cannot be asked on this machine; that is no fault of it."""


@dataclass(frozen=True)
class Side:
    """Who is asked: an export beside its run; `dtype` is what folders of weights are held in."""

    folder: Path
    made: Record
    trained: Trained
    process: scoring.Process
    dtype: scoring.Dtype


@contextmanager
def opened(side: Side, name: str) -> Iterator[Speaker]:
    """One export, ready to be asked; `name` is its file, empty for a whole folder.

    Raises: Unavailable where llama-cpp-python or memory is missing, ExportError when it does
    not load.
    """
    folder, made = side.folder, side.made
    if made.kind in ("merged", "merged-4bit"):
        _require_memory(scoring.bytes_needed(folder, side.dtype), name, on_gpu=True)
        with side.process.opened(folder, dtype=side.dtype) as scorer:
            yield scorer
        return
    if llamacpp.installed() is None:
        raise Unavailable("llama-cpp-python is not installed", where=name, hint=llamacpp.INSTALL)
    if made.kind == "gguf":
        _require_memory((folder / name).stat().st_size + _LLAMA_BYTES, name, on_gpu=False)
        with llamacpp.opened(folder / name, context=CONTEXT) as model:
            yield model
        return
    with _base_gguf(folder, side.trained) as base, _adapted(base, folder / name) as model:
        yield model


@contextmanager
def _adapted(base: Path, adapter: Path) -> Iterator[Speaker]:
    _require_memory(base.stat().st_size + _LLAMA_BYTES, adapter.name, on_gpu=False)
    with llamacpp.opened(base, lora=adapter, context=CONTEXT) as model:
        yield model


@contextmanager
def _base_gguf(folder: Path, trained: Trained) -> Iterator[Path]:
    """The base alone as a passing f16 GGUF beside the export, for an adapter to be put on."""
    place = folder.parent / f".tmp-{folder.name}-base"
    base = trained.base.folder
    shutil.rmtree(place, ignore_errors=True)
    try:
        require_space(folder.parent, sum(gguf.sizes(base, base, ("f16",)).values()))
    except ExportError as error:
        raise Unavailable(error.what, where=folder.name, hint=error.hint) from error
    place.mkdir()
    try:
        target = place / "base.gguf"
        gguf.write(
            base,
            base,
            {"f16": target},
            vocabulary=vocabulary.of(trained),
            general=general.fields(trained, kind="model"),
        )
        yield target
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _require_memory(needed: int, name: str, *, on_gpu: bool) -> None:
    fits = scoring.place(needed) is not None if on_gpu else needed <= scoring.memory_free()
    if not fits:
        raise Unavailable(
            f"needs {gib(needed)} of memory, {gib(scoring.memory_free())} is free",
            where=name,
            hint="close other programs, or verify on a machine with more memory",
        )
