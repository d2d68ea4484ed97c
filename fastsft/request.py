"""The recipe that a command line means: its name, files named in full, keys changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from fastsft import recipe_file
from fastsft.data import hub, templates
from fastsft.errors import RecipeError
from fastsft.recipe import Recipe, Replay, Source

SourceLike = TypeVar("SourceLike", Source, Replay)


def load(name: str | None, data: Path | None, overrides: Sequence[str], *, verb: str) -> Recipe:
    """The recipe of a shipped name or file with `key=value` overrides; `data` replaces its sources.

    Raises RecipeError where none is named, and for every fault of it.
    """
    if name is None:
        raise RecipeError(
            "name a recipe", where=verb, hint="`fastsft recipes` lists the shipped ones"
        )
    return _with_files(recipe_file.load(name, overrides), data)


def short_name(name: str) -> str:
    """What a recipe is called: its shipped name, or its file's without the suffix."""
    return Path(name).name.removesuffix(".yaml").removesuffix(".yml")


def _with_files(recipe: Recipe, data: Path | None) -> Recipe:
    """The recipe with its files named in full, so that it means the same from any folder."""
    given = recipe.data.model_copy(
        update={"path": str(data), "sources": ()} if data is not None else {}
    )
    replay, template = given.replay, given.template
    return recipe.model_copy(
        update={
            "data": given.model_copy(
                update={
                    "path": _in_full(given.path),
                    "sources": tuple(_source_in_full(source) for source in given.sources),
                    "replay": replay and _source_in_full(replay),
                    "template": _in_full(template) if _is_file_name(template) else template,
                }
            ),
            "eval": recipe.eval.model_copy(update={"path": _in_full(recipe.eval.path)}),
        }
    )


def _in_full(path: str | None) -> str | None:
    """A path as it is seen from anywhere; a dataset id stays as it is."""
    if path is None or hub.is_dataset_id(path):
        return path
    return str(Path(path).expanduser().resolve())


def _is_file_name(template: str | None) -> bool:
    return template is not None and Path(template).suffix in templates.SUFFIXES


def _source_in_full(source: SourceLike) -> SourceLike:
    return source.model_copy(update={"path": _in_full(source.path)})
