"""Checkpoints by a commit protocol: stage, fsync, manifest, rename, then rotate.  No torch.

After a kill at any instant, what is under its final name is whole; what is not is never used.
"""

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastsft.errors import TrainError
from fastsft.run import sync_folder

MANIFEST = "manifest.json"
SEAL = "sha256"
STAGED = ".tmp-"
NAME = "step-"
DISK_WORDS = (
    "No space left",
    "os error 28",
    "os error 5)",
    "file write failed",
    "unexpected pos",  # torch.save, of a zip file that it could not write to its end;
    "iostream error",  # or not flush
)
DISK_HINT = "free some space, then `fastsft train --resume RUN` goes on from the last checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose every file was checked against its manifest."""

    folder: Path
    meta: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.meta["step"])


@contextmanager
def staged(final: Path, meta: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to fill; on leaving, it is committed under its final name or not at all.

    The manifest names every file with its size and SHA-256, beside `meta`.
    A failed write or fsync fails the save.
    """
    staging = final.parent / f"{STAGED}{final.name}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        _commit(staging, final, meta)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _commit(staging: Path, final: Path, meta: Mapping[str, Any]) -> None:
    files = {str(path.relative_to(staging)): _sealed(path) for path in _files(staging)}
    manifest = staging / MANIFEST
    entries = {**meta, "files": files}
    manifest.write_text(json.dumps({**entries, SEAL: _seal(entries)}, indent=2), "utf-8")
    _sync(manifest)
    sync_folder(staging)
    if final.exists():  # the same step again, after a fall back to an older checkpoint
        remove(final)
    staging.rename(final)
    sync_folder(final.parent)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sealed(path: Path) -> dict[str, Any]:
    """Size and hash of a file, once it is on the disk."""
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": _hash(path)}


def _seal(entries: Mapping[str, Any]) -> str:
    """Hash of the manifest's own entries: what it says of the run is guarded as the files are."""
    return sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check(folder: Path) -> Checkpoint:
    """The checkpoint of a folder, every byte verified.

    Raises ValueError saying what is not whole.
    """
    try:
        meta = json.loads((folder / MANIFEST).read_text("utf-8"))
        seal, files, step = meta.pop(SEAL), dict(meta["files"]), int(meta["step"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({type(error).__name__})") from error
    if seal != _seal(meta):
        raise ValueError(f"{MANIFEST} is damaged")
    if folder.name.startswith(NAME) and folder.name != name(step):
        raise ValueError(f"{MANIFEST} is of step {step}")
    for relative, sealed in files.items():
        _check_file(folder / relative, sealed)
    return Checkpoint(folder, meta)


def _check_file(path: Path, sealed: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if path.stat().st_size != sealed["bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} of {sealed['bytes']} bytes")
    if _hash(path) != sealed["sha256"]:
        raise ValueError(f"{path.name} is damaged")


def name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"{NAME}{step:06d}"


def candidates(parent: Path) -> list[Path]:
    """Committed checkpoints, newest first, unchecked."""
    found = [path for path in parent.glob(f"{NAME}*") if path.is_dir()]
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)


def newest(parent: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint, and why each newer one was passed over.

    None when there never was one.  Raises TrainError when there are some and none is valid:
    starting from nothing would throw the run away.
    """
    passed_over: list[str] = []
    for folder in candidates(parent):
        try:
            return check(folder), passed_over
        except ValueError as error:
            passed_over.append(f"{folder.name}: {error}")
    if passed_over:
        raise TrainError(
            "no checkpoint is whole: " + "; ".join(passed_over),
            where=str(parent),
            hint="restore one from a backup, or start a new run; nothing was overwritten",
        )
    return None, []


def sweep(parent: Path) -> None:
    """Remove what dead saves left behind."""
    for path in parent.glob(f"{STAGED}*"):
        shutil.rmtree(path)


def rotate(parent: Path, *, keep: int, protect: Collection[str | None]) -> None:
    """Remove all but the `keep` newest checkpoints and the protected ones."""
    for folder in candidates(parent)[keep:]:
        if folder.name not in protect:
            remove(folder)


def remove(folder: Path) -> None:
    """Take a checkpoint away: its name first, so that half of one is never found."""
    doomed = folder.with_name(f"{STAGED}old-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def is_disk_error(error: Exception) -> bool:
    """Whether a write failed for the disk's sake; safetensors and torch have their own words."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
    is_plain = isinstance(error, OSError) and error.errno in numbers
    told = str(error)
    return is_plain or any(mark in told for mark in DISK_WORDS)
