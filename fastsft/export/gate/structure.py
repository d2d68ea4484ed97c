"""The gate's first part: files as they were written, every weight as base and adapter give it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastsft.errors import ExportError
from fastsft.export import record
from fastsft.export.blas import one_blas_thread
from fastsft.export.gate import folder_weights, gguf_weights, lora_weights
from fastsft.export.gate.expected import Expected
from fastsft.export.gate.gguf_file import GgufFile, UnknownType, open_gguf
from fastsft.export.gate.verdict import Checks, judged
from fastsft.export.record import Record
from fastsft.weights import Reader

Progress = Callable[[int, int], None]

_AGAIN = "export again with --overwrite; if it repeats, check the disk"


@dataclass
class _Bar:
    """Counts bytes: each file is read once to hash it, once to compare it."""

    total: int
    progress: Progress | None
    done: int = 0

    def step(self, nbytes: int) -> None:
        self.done = min(self.total, self.done + nbytes)
        if self.progress:
            self.progress(self.done, self.total)


def check(
    folder: Path, made: Record, base: Path, trained: Path, *, progress: Progress | None = None
) -> tuple[Checks, frozenset[str]]:
    """The checks of an export's files, and the names of those that are as they were written.

    `base` holds the weights that were merged onto, `trained` the adapter or the whole model.
    """
    checks = Checks("structure")
    bar = _Bar(2 * sum(file.nbytes for file in made.files.values()), progress)
    whole = _whole_files(folder, made, checks, bar.step)
    with Reader() as reader, one_blas_thread():
        try:
            expected = Expected(base, trained, reader)
        except ExportError as error:
            checks.failed("base and adapter", "", error.what, "can be read", cure=error.hint)
            return checks, whole
        if made.kind in ("gguf", "gguf-lora"):
            for name in sorted(whole):
                with judged(checks, "weights", name):
                    _gguf(folder / name, made, expected, reader, checks, bar.step)
        elif whole == made.files.keys():
            with judged(checks, "weights", ""):
                _folder(folder, made, expected, checks, bar.step)
    return checks, whole


def _whole_files(
    folder: Path, made: Record, checks: Checks, step: Callable[[int], None]
) -> frozenset[str]:
    """The files whose bytes are those that were written."""
    whole = set()
    for name, wanted in made.files.items():
        path, threshold = folder / name, f"SHA-256 {wanted.sha256[:12]}…"
        if not path.is_file():
            checks.failed("bytes", name, "the file is missing", threshold, cure=_AGAIN)
            continue
        found = record.file_of(path, wanted.type, step)
        if found == wanted:
            whole.add(name)
            checks.passed("bytes", name, f"{found.nbytes:,} bytes", threshold)
        else:
            why = (
                f"{found.nbytes:,} bytes, not {wanted.nbytes:,}"
                if found.nbytes != wanted.nbytes
                else f"changed since it was written: SHA-256 {found.sha256[:12]}…"
            )
            checks.failed("bytes", name, why, threshold, cure=_AGAIN)
    _refuse_strangers(folder, made, checks)
    if not made.files:
        checks.failed("bytes", record.NAME, "it names no file", "one or more", cure=_AGAIN)
    return frozenset(whole)


def _refuse_strangers(folder: Path, made: Record, checks: Checks) -> None:
    """Weights that nobody vouches for must not lie beside those that were checked."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".gguf", ".safetensors", ".bin") and path.name not in made.files:
            checks.failed(
                "bytes",
                path.name,
                f"{record.NAME} does not know it",
                "written by this export",
                cure="move the file elsewhere, or export again with --overwrite",
            )


def _gguf(
    path: Path,
    made: Record,
    expected: Expected,
    reader: Reader,
    checks: Checks,
    step: Callable[[int], None],
) -> None:
    try:
        file: GgufFile = open_gguf(path)
    except UnknownType as error:
        checks.not_run("weights", path.name, error.what, cure=error.hint)
        return
    if made.kind == "gguf-lora":
        lora_weights.check(file, expected, reader, checks, step)
    else:
        gguf_weights.check(file, made.files[path.name].type, expected, checks, step)


def _folder(
    folder: Path, made: Record, expected: Expected, checks: Checks, step: Callable[[int], None]
) -> None:
    if made.kind == "merged-4bit":
        folder_weights.four_bit(folder, expected, checks)
    else:
        kinds = {file.type for file in made.files.values()}
        folder_weights.merged(folder, kinds.pop(), expected, checks, step)
