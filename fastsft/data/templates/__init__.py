"""The chat templates for bases that ship none, by name, or from a file.  Renders nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastsft.errors import RecipeError

SUFFIXES = (".jinja", ".jinja2", ".j2")
MAX_BYTES = 1024 * 1024

_STOP_TOKENS: Mapping[str, str | None] = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama2": None,
    "mistral-v1": None,
    "mistral-v3": None,
    "mistral-tekken": None,
    "alpaca": None,
    "human-assistant": None,
}
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class NamedTemplate:
    """A chat template's name (or file) and Jinja source.

    `stop_token` ends every answer: a token by its text, or None for the tokenizer's
    `eos_token` and for a file of the user's, whose stop token is found by rendering it.
    """

    name: str
    source: str
    stop_token: str | None


LIBRARY: Mapping[str, NamedTemplate] = {
    name: NamedTemplate(name, (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), stop)
    for name, stop in _STOP_TOKENS.items()
}
"""The shipped templates by name, each with its format's source in its first comment."""


def load(name_or_path: str) -> NamedTemplate:
    """The template of that name, or the one in that file.

    Raises `RecipeError` when there is neither.
    """
    shipped = LIBRARY.get(name_or_path)
    if shipped is not None:
        return shipped
    path = Path(name_or_path).expanduser()
    if path.suffix not in SUFFIXES:
        raise _unknown(name_or_path)
    return NamedTemplate(name_or_path, _text(path), None)


def _unknown(name: str) -> RecipeError:
    close = difflib.get_close_matches(name.lower(), LIBRARY, n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return RecipeError(
        f"there is no template {name!r}{guess}",
        where="data.template",
        hint=f"use one of {', '.join(LIBRARY)}, or name a .jinja file",
    )


def _text(path: Path) -> str:
    if not path.is_file():
        raise RecipeError(
            "no such template file",
            where=f"data.template: {path}",
            hint=f"check the path, or use one of {', '.join(LIBRARY)}",
        )
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError(
            f"the template file has more than {MAX_BYTES} bytes",
            where=f"data.template: {path}",
            hint="name the file of a Jinja chat template",
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the template file cannot be read: {error}",
            where=f"data.template: {path}",
            hint="save it as UTF-8 text that you may read",
        ) from error
