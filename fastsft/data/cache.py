"""Keeps prepared data by content, so that the same rows are prepared once.  Checked when read."""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from pydantic import TypeAdapter

from fastsft.data import arrays, places
from fastsft.data.ledger import LINES, TOTALS, Ledger
from fastsft.data.prepare import TOKENS, Prepared
from fastsft.data.report import Report
from fastsft.errors import DataError

STAGED = ".staging-"
STALE_S = 24 * 3600
REPORT, SEAL = "report.json", "seal.json"
KEPT = 8
"""Preparations kept; the least recently used go first."""
BLOCK_BYTES = 8 * 2**20
LIBRARIES = ("tokenizers", "tiktoken", "jinja2", "numpy", "pyarrow")


def folder() -> Path:
    """Where preparations are kept: fastsft/data in the user's cache folder."""
    return places.cache() / "data"


def key(parts: Sequence[str], files: Sequence[Path]) -> str:
    """A name for what these texts and the bytes of these files make, by this code."""
    digest = sha256()
    for text in (*parts, _code(), *map(_version, LIBRARIES)):
        digest.update(f"{len(text)} {text}".encode())
    for file in files:
        digest.update(file_digest(file))
    return digest.hexdigest()[:32]


def load(name: str) -> Prepared | None:
    """What is kept under a name; None where there is nothing, or it is not what was written."""
    place = folder() / name
    try:
        seal = json.loads((place / SEAL).read_text("utf-8"))
        if any(file_digest(place / file).hex() != seal[file] for file in (LINES, TOTALS, REPORT)):
            return None
        report = TypeAdapter(Report).validate_json((place / REPORT).read_bytes())
        train, evaluation = arrays.load(place / TOKENS)
        ledger = Ledger.read(place)
        os.utime(place)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None
    return Prepared(place, train, evaluation, ledger, replace(report, from_cache=True))


def staging() -> Path:
    """A folder to prepare in, on the cache's disk where that can be written.

    It goes with this process, unless `keep` gives it a name.
    """
    try:
        folder().mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=STAGED, dir=folder()))
    except OSError:
        made = Path(tempfile.mkdtemp(prefix="fastsft-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def keep(name: str, prepared: Prepared) -> Prepared:
    """Seal what was prepared in a staging folder and give it its name; rotate older ones.

    Where the disk does not allow it, what was prepared stays in its folder.
    """
    place = folder() / name
    staged = prepared.folder
    prepared.ledger.write(staged)
    (staged / REPORT).write_text(json.dumps(asdict(prepared.report), ensure_ascii=False), "utf-8")
    seal = {file: file_digest(staged / file).hex() for file in (LINES, TOTALS, REPORT)}
    (staged / SEAL).write_text(json.dumps(seal), "utf-8")
    if staged.parent != place.parent:
        return prepared
    shutil.rmtree(place, ignore_errors=True)
    staged.rename(place)
    _rotate()
    return replace(prepared, folder=place)


def _rotate() -> None:
    """Sweep preparations beyond those that are kept, and what killed processes left."""
    found = [path for path in folder().iterdir() if path.is_dir()]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    staged = [path for path in found if path.name.startswith(STAGED)]
    old = [path for path in staged if time.time() - path.stat().st_mtime > STALE_S]
    sealed = [path for path in found if path not in staged]
    for path in (*old, *sealed[KEPT:]):
        shutil.rmtree(path, ignore_errors=True)


def _code() -> str:
    """A hash of the code that prepares: this package's own files."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".jinja"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's bytes, read block by block."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.digest()
