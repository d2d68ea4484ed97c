"""What an export says of itself, `export.json`: from what it was made, and each file's hash."""

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast, get_args

from fastsft import __version__
from fastsft.errors import ExportError
from fastsft.export.staging import write_file
from fastsft.weights import read_object

NAME = "export.json"
UNVERIFIED = "UNVERIFIED"
VERDICT = "verify.json"

Kind = Literal["merged", "merged-4bit", "gguf", "gguf-lora"]
MergeBase = Literal["stored", "dequantised"]

_CHUNK = 8 * 1024**2
_PACKAGES = ("gguf", "llama-cpp-python", "numpy", "transformers", "peft", "bitsandbytes", "torch")


@dataclass(frozen=True)
class File:
    """One file with weights: its type (`q8_0`, `bfloat16`), size in bytes and SHA-256."""

    type: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """From what an export was made.  `run` is the run folder's name, never a path.

    `is_synthetic`: the base's weights are random, so this is no model.
    """

    kind: Kind
    run: str
    base: str
    base_fingerprint: str
    adapter_sha256: str
    merge_base: MergeBase
    stop_ids: tuple[int, ...]
    files: Mapping[str, File]
    versions: Mapping[str, str]
    is_synthetic: bool = False


def write(folder: Path, record: Record) -> None:
    """Writes the record into a staged export."""
    (folder / NAME).unlink(missing_ok=True)
    write_file(folder / NAME, (json.dumps(asdict(record), indent=2) + "\n").encode())


def read(folder: Path) -> Record:
    """The record of an export.

    Raises: ExportError when the folder has none, or it is not one.
    """
    path = folder / NAME
    if not path.is_file():
        raise ExportError(
            f"is not an export: it has no {NAME}",
            where=str(folder),
            hint="name a folder that `fastsft export` wrote, such as RUN/export/gguf",
        )
    found = read_object(path)
    try:
        return _record(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"is damaged: {error!r}", where=str(path), hint="export again with --overwrite"
        ) from error


def _record(found: Mapping[str, Any]) -> Record:
    if found["kind"] not in get_args(Kind) or found["merge_base"] not in get_args(MergeBase):
        raise ValueError(f"{found['kind']}, {found['merge_base']}")
    for name in found["files"]:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is no plain file name")
    return Record(
        kind=cast(Kind, found["kind"]),
        run=str(found["run"]),
        base=str(found["base"]),
        base_fingerprint=str(found["base_fingerprint"]),
        adapter_sha256=str(found["adapter_sha256"]),
        merge_base=cast(MergeBase, found["merge_base"]),
        stop_ids=tuple(int(number) for number in found["stop_ids"]),
        files={name: File(**entry) for name, entry in found["files"].items()},
        versions={str(key): str(value) for key, value in found["versions"].items()},
        is_synthetic=found.get("is_synthetic") is True,
    )


def file_of(path: Path, kind: str, progress: Callable[[int], None] | None = None) -> File:
    """The record of a file as it lies on the disk; `progress` hears the bytes of each piece."""
    digest = sha256()
    with path.open("rb") as opened:
        while piece := opened.read(_CHUNK):
            digest.update(piece)
            if progress:
                progress(len(piece))
    return File(kind, path.stat().st_size, digest.hexdigest())


def folder_sha256(paths: Iterable[Path]) -> str:
    """One hash over some files' names and contents, in the order of their names."""
    digest = sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(file_of(path, "").sha256))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions that an export depends on; what is not installed is left out."""
    found = {"fastsft": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
