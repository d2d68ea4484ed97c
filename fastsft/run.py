"""The run folder: created, locked, described.  Whatever happened in a run is in it."""

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsft import recipe_file
from fastsft.errors import TrainError
from fastsft.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """A run folder and the names of what lies in it."""

    folder: Path

    @property
    def recipe_path(self) -> Path:
        """The effective recipe, complete."""
        return self.folder / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        """Versions, hashes, seeds, hardware, requested-versus-effective settings."""
        return self.folder / "manifest.json"

    @property
    def events_path(self) -> Path:
        """One event a line, append only."""
        return self.folder / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """Everything third parties printed."""
        return self.folder / "train.log"

    @property
    def tokens_path(self) -> Path:
        """The token arrays that are trained."""
        return self.folder / "tokens.safetensors"

    @property
    def template_path(self) -> Path:
        """The chat template that was trained, where it is not the base's own."""
        return self.folder / "chat_template.jinja"

    @property
    def checkpoints(self) -> Path:
        """Folder of the committed checkpoints."""
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The finished adapter; it exists only when the run is finished."""
        return self.folder / "adapter"

    @property
    def exports(self) -> Path:
        """Folder of what was exported."""
        return self.folder / "export"

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete."""
        return self.adapter.is_dir()

    def recipe(self) -> Recipe:
        """The effective recipe."""
        return recipe_file.load(str(self.recipe_path))

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands.

        Raises TrainError when it cannot be read.
        """
        try:
            manifest = json.loads(self.manifest_path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise TrainError(
                f"cannot be read: {error}",
                where=str(self.manifest_path),
                hint="restore the file from a backup, or start a new run",
            ) from error
        if not isinstance(manifest, dict):
            raise TrainError(
                "is not a JSON object", where=str(self.manifest_path), hint="start a new run"
            )
        return manifest

    def update_manifest(self, entries: Mapping[str, Any]) -> None:
        """Set these entries, atomically."""
        current = self.manifest() if self.manifest_path.exists() else {}
        write_atomically(self.manifest_path, json.dumps({**current, **entries}, indent=2) + "\n")


def create(parent: Path, recipe: Recipe, *, name: str) -> Run:
    """A new run folder `parent/<time>-<name>-<4 hex digits>` with its recipe in it."""
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "run"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run = Run((parent / f"{stamp}-{slug}-{secrets.token_hex(2)}").resolve())
    try:
        run.folder.mkdir(parents=True)
        run.checkpoints.mkdir()
        write_atomically(run.recipe_path, recipe_file.dump(recipe))
    except OSError as error:
        raise TrainError(
            f"cannot create the run folder: {error.strerror}",
            where=str(parent),
            hint="pass --runs with a folder you can write to",
        ) from error
    return run


def open_run(folder: Path) -> Run:
    """The run of an existing folder.

    Raises TrainError when it is not a run folder.
    """
    run = Run(folder.resolve())
    if not run.folder.is_dir():
        raise TrainError("no such folder", where=str(folder), hint="name a folder under runs/")
    if not (run.recipe_path.is_file() and run.manifest_path.is_file()):
        raise TrainError(
            "not a run folder: it has no recipe.yaml and manifest.json",
            where=str(folder),
            hint="name a folder that `fastsft train` made",
        )
    return run


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the run for this process; the lock goes with the process, however it ends.

    Raises TrainError naming the holder when another process has it.
    """
    with (run.folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise TrainError(
                f"process {holder} is working on this run",
                where=run.folder.name,
                hint="wait for it, or stop it with Ctrl-C where it runs",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole: written beside, flushed to the disk, renamed."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with staged.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Return once the folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
