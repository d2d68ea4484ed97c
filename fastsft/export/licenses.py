"""Finds the licence of a base in its own files.  Guesses none."""

import re
from dataclasses import dataclass
from pathlib import Path

_MOST_BYTES = 256 * 1024
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
_ID = re.compile(r"^license:\s*[\"']?([a-z0-9][a-z0-9.-]{0,40})[\"']?\s*$", re.MULTILINE)
_KNOWN = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"\AMIT License", "mit"),
    (r"LLAMA 3\.3 COMMUNITY LICENSE", "llama3.3"),
    (r"LLAMA 3\.2 COMMUNITY LICENSE", "llama3.2"),
    (r"LLAMA 3\.1 COMMUNITY LICENSE", "llama3.1"),
    (r"META LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
)
"""The first words of licences and the Hub's names for them.
Source: https://huggingface.co/docs/hub/repositories-licenses."""


@dataclass(frozen=True)
class License:
    """What a base is licensed under: the Hub's name for it, and the words for people."""

    identifier: str
    told: str

    @property
    def fields(self) -> dict[str, str]:
        """The front matter's entries."""
        return {"license": self.identifier}


def of(folder: Path) -> License | None:
    """The licence that the base's card names, or whose text lies beside its weights."""
    named = _named(_start(folder / "README.md"))
    if named:
        return License(named, named)
    said = text(folder)
    for pattern, identifier in _KNOWN:
        if re.search(pattern, said[:2000], re.IGNORECASE):
            return License(identifier, identifier)
    return License("other", "other, see the base's own text") if said.strip() else None


def text(folder: Path) -> str:
    """The licence's own text that lies beside the base's weights; empty where there is none."""
    return next(filter(str.strip, (_start(folder / name) for name in _FILES)), "")


def _named(card: str) -> str | None:
    if not card.startswith("---\n"):
        return None
    found = _ID.search(card[4:].partition("\n---")[0])
    return found[1] if found else None


def _start(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(_MOST_BYTES).decode("utf-8", "replace")
