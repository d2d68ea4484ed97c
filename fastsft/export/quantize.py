"""Quantises a GGUF by llama.cpp's own quantizer, in a child process.  Never changes its source."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastsft.child import died
from fastsft.errors import ExportError
from fastsft.export import gguf_index, imatrix, llamacpp
from fastsft.export.gguf_index import Index
from fastsft.export.quant_types import TYPES, estimate, named
from fastsft.launch import environment, scratch_folder
from fastsft.run import sync_folder

__all__ = [
    "RAM_BYTES",
    "TYPES",
    "Quantizer",
    "available",
    "check",
    "estimate",
    "find",
    "ram_bytes",
    "run",
]

Progress = Callable[[int, int], None]

PROGRAM = "llama-quantize"
RAM_BYTES = 400 * 1024**2  # measured: 205 MiB beside the mapped source, for any size of tensor
_RAM_PER_WEIGHT = 5  # float32 and the result: the program takes a whole tensor at a time

_POLL_S = 0.1
_FULL = 16 * 1024**2
_FALLBACK = re.compile(r"\(required for type +(\S+)\).*falling back to +(\S+)")


@dataclass(frozen=True)
class Quantizer:
    """Who quantises: llama-cpp-python in a child, or a program."""

    name: str
    program: Path | None


def available() -> Quantizer | None:
    """llama-cpp-python where it is installed, else `llama-quantize` on PATH, else None."""
    if version := llamacpp.installed():
        return Quantizer(f"{llamacpp.PACKAGE} {version}", None)
    if found := shutil.which(PROGRAM):
        return Quantizer(PROGRAM, Path(found).resolve())
    return None


def find() -> Quantizer:
    """The quantizer at hand.

    Raises: ExportError with what to type, when there is none.
    """
    if found := available():
        return found
    raise ExportError(
        f"K-quants are made by llama.cpp: neither {llamacpp.PACKAGE} nor {PROGRAM} is here",
        where="export",
        hint=f"{llamacpp.INSTALL}; or put a {PROGRAM} on PATH; or --quant q8_0, which needs "
        "neither",
    )


def ram_bytes(largest: int) -> int:
    """Memory that `run` takes for a model whose largest tensor has so many weights.

    Its source is mapped: what the system keeps of that in memory it gives back when asked.
    """
    found = available()
    is_program = found is not None and found.program is not None
    return max(RAM_BYTES, _RAM_PER_WEIGHT * largest) if is_program else RAM_BYTES


def check(names: Sequence[str], *, imatrix: Path | None) -> None:
    """Refuse what `run` could not do, before anything is written.

    Raises: ExportError when a type is unknown, a quantizer is missing, an importance matrix is
    missing where llama.cpp needs one, or it is none.
    """
    if not names:
        return
    for name in names:
        _require_imatrix(name, imatrix)
    find()
    if imatrix:
        _read_imatrix(imatrix)


def run(
    source: Path,
    out: Path,
    name: str,
    *,
    imatrix: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write `source` (f32, f16 or bf16) as `out` in another type; what the user should know of it.

    `out` appears whole, on the disk, or not at all; a killed run leaves `out.partial`, which the
    next replaces.  `progress` hears bytes written and the estimate of all, in the end twice the
    file's size.  By default every core works.

    Raises: ExportError when `out` exists, the type needs an importance matrix, the matrix is of
    another model, or llama.cpp fails, with its own words.
    """
    _require_imatrix(name, imatrix)
    quantizer = find()
    if out.exists():
        raise ExportError("exists already", where=str(out), hint="name a new file")
    index = gguf_index.read(source)
    if imatrix:
        _require_fit(imatrix, index)
    partial = out.with_name(f"{out.name}.partial")
    partial.unlink(missing_ok=True)
    job = _Job(quantizer, source, partial, name, imatrix, threads or _cores())
    try:
        notes = _quantized(job, _total(index, name), progress)
        _publish(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    if progress:
        progress(out.stat().st_size, out.stat().st_size)
    return notes


@dataclass(frozen=True)
class _Job:
    quantizer: Quantizer
    source: Path
    out: Path
    name: str
    imatrix: Path | None
    threads: int

    def command(self) -> list[str]:
        files = [str(self.source.resolve()), str(self.out.resolve())]
        rest = [str(TYPES[self.name].number), str(self.threads), "--parent", str(os.getpid())]
        rest += ["--imatrix", str(self.imatrix.resolve())] if self.imatrix else []
        rest += ["--program", str(self.quantizer.program)] if self.quantizer.program else []
        return [sys.executable, "-m", "fastsft.export.quantize_child", *files, *rest]


def _quantized(job: _Job, total: int, progress: Progress | None) -> tuple[str, ...]:
    """Run the child to its end; the notes that its log gives."""
    with scratch_folder() as scratch:
        log = scratch / "log"
        with _child(job, scratch, log) as child:
            while child.poll() is None:
                time.sleep(_POLL_S)
                if progress:
                    progress(min(_size(job.out), total), total)
        if child.returncode:
            raise _failed(job, child, log)
        return _notes(log.read_text("utf-8", errors="replace"))


@contextmanager
def _child(job: _Job, scratch: Path, log: Path) -> "Iterator[subprocess.Popen[str]]":
    """The running child, gone when the block ends."""
    with log.open("w") as opened:
        child = subprocess.Popen(
            job.command(),
            stdin=subprocess.DEVNULL,
            stdout=opened,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment(scratch), **llamacpp.SETTINGS},
            start_new_session=True,
        )
    with child:
        try:
            yield child
        finally:
            child.kill()


def _publish(partial: Path, out: Path) -> None:
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.rename(out)
    sync_folder(out.parent)


def _failed(job: _Job, child: "subprocess.Popen[str]", log: Path) -> ExportError:
    if shutil.disk_usage(job.out.parent).free < _FULL:
        return ExportError(
            f"the disk of {job.out.parent}/ is full; nothing was kept",
            where="export",
            hint="free space there, or pass --out on another disk",
        )
    return ExportError(
        f"quantising to {job.name} with {job.quantizer.name} {died(child, log)}",
        where=job.source.name,
        hint="if it ran out of memory, close other programs; q8_0 needs no llama.cpp",
    )


def _notes(log: str) -> tuple[str, ...]:
    """Which types llama.cpp gave to rows that do not divide into the asked type's blocks."""
    swaps: dict[tuple[str, str], int] = {}
    for found in _FALLBACK.finditer(log):
        swap = (found[1], found[2])
        swaps[swap] = swaps.get(swap, 0) + 1
    return tuple(
        f"rows that do not divide into blocks of {wanted} are {got}, in {count} of the tensors"
        for (wanted, got), count in swaps.items()
    )


def _require_imatrix(name: str, given: Path | None) -> None:
    if named(name).needs_imatrix and given is None:
        raise ExportError(
            f"llama.cpp makes {name} only with an importance matrix",
            where="--quant",
            hint="pass --imatrix FILE, as llama-imatrix writes it; q2_k, q3_k_m and q4_k_m need "
            "none",
        )


def _read_imatrix(path: Path) -> None:
    imatrix.read(path)


def _require_fit(path: Path, index: Index) -> None:
    imatrix.require_fit(imatrix.read(path), index.tensors, where=str(path))


def _total(index: Index, name: str) -> int:
    shapes = {key: tensor.shape for key, tensor in index.tensors.items()}
    return index.data_offset + estimate(shapes, name)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0))
