"""What of a run may leave this machine: names, never the paths that lead to them."""

import re
from collections.abc import Mapping
from typing import Any

from fastsft.data.hub import is_dataset_id
from fastsft.recipe import Recipe

_PLACES = ("base", "path", "template")
_TEMPLATES = re.compile(r"\.(jinja2?|j2)$")


def place(value: str) -> str:
    """A Hub repository's id as it stands; of a path, and of anything like one, the last name."""
    if is_dataset_id(value) and not _TEMPLATES.search(value):
        return value
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or "local"


def recipe(private: Recipe) -> Recipe:
    """The recipe with names in place of paths."""
    return Recipe.model_validate_json(
        private.model_copy(update=_clean(dict(private))).model_dump_json()
    )


def _clean(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _cleaned(key, value) for key, value in values.items()}


def _cleaned(key: str, value: Any) -> Any:
    if isinstance(value, str) and key in _PLACES:
        return place(value)
    if isinstance(value, tuple):
        return tuple(_cleaned("", item) for item in value)
    if hasattr(value, "model_copy"):
        return value.model_copy(update=_clean(dict(value)))
    return value
