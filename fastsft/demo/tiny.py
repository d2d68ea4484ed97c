"""Writes the tiny base as a Qwen2.5, Llama or Mistral model folder, from the bytes.  No torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from fastsft.demo.layout import write_files
from fastsft.demo.markup import Family
from fastsft.demo.vocabulary import Json
from fastsft.errors import DataError

_DEMO: Final = Path(__file__).parent
BASE: Final = _DEMO / "base"
_WEIGHTS: Final = "model.safetensors"
_CARD: Final = "README.md"


def write(family: Family, folder: Path) -> Path:
    """Writes the family's tiny model into `folder`, whole or not at all; the same bytes each time.

    Raises DataError if `folder` has anything in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(
            "the folder is not empty", hint="name a folder that is new", where=str(folder)
        )
    _build(folder, lambda draft: _fill(family, draft))
    return folder


def folder(family: Family) -> Path:
    """A folder with the family's tiny model, written to the cache on first use."""
    if family == "qwen2.5":
        return BASE
    cached = _cache() / f"tiny-{family}-{_fingerprint()}"
    if not cached.exists():
        try:
            write(family, cached)
        except (OSError, DataError):
            # Another process may have been faster; what it wrote is the same.
            if not cached.exists():
                raise
    return cached


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastsft"


def _fingerprint() -> str:
    code = (_DEMO / f"{name}.py" for name in ("layout", "tiny", "vocabulary"))
    digest = hashlib.sha256()
    for path in sorted((*code, *BASE.iterdir(), *(_DEMO / "templates").iterdir())):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _build(target: Path, fill: Callable[[Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        draft.chmod(0o755)
        fill(draft)
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _fill(family: Family, draft: Path) -> None:
    if family == "qwen2.5":
        shutil.copytree(BASE, draft, dirs_exist_ok=True)
        return
    tokenizer = json.loads((BASE / "tokenizer.json").read_text(encoding="utf-8"))
    write_files(draft, family, tokenizer["model"])
    (draft / _WEIGHTS).write_bytes(without_biases((BASE / _WEIGHTS).read_bytes()))
    shutil.copyfile(BASE / _CARD, draft / _CARD)


def without_biases(raw: bytes) -> bytes:
    """The safetensors file `raw` less its bias tensors, the rest bit for bit.

    Source: github.com/huggingface/safetensors README, "Format": the header's length as eight
    little-endian bytes, the header as JSON, the tensors without holes between them.
    """
    start = 8 + int.from_bytes(raw[:8], "little")
    header: Json = json.loads(raw[8:start])
    metadata = header.pop("__metadata__", {})
    kept = [name for name in _by_offset(header) if not name.endswith(".bias")]
    new: Json = {"__metadata__": metadata}
    pieces, end = [], 0
    for name in kept:
        first, last = header[name]["data_offsets"]
        new[name] = header[name] | {"data_offsets": [end, end + last - first]}
        pieces.append(raw[start + first : start + last])
        end += last - first
    return _header(new) + b"".join(pieces)


def _by_offset(header: Json) -> Iterable[str]:
    return sorted(header, key=lambda name: int(header[name]["data_offsets"][0]))


def _header(content: Json) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
