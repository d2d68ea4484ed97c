"""The sources that a recipe names, and what each is for.  Reads none of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastsft.data import files, hub
from fastsft.data.mixture import Use
from fastsft.errors import RecipeError
from fastsft.recipe import Recipe, Source


@dataclass(frozen=True)
class Part:
    """One source of the recipe and what it is for."""

    source: Source
    name: str
    use: Use
    is_evaluation: bool = False


def parts(recipe: Recipe) -> list[Part]:
    """Every source that the recipe names: training, replay, evaluation.

    Raises RecipeError where it names none.
    """
    data, found = recipe.data, []
    sources = data.sources or ((Source(path=data.path),) if data.path else ())
    if not sources:
        raise RecipeError("data.path: missing", where="recipe", hint="pass --data rows.jsonl")
    for source in sources:
        use = Use(weight=1 if source.weight is None else source.weight, share=source.share)
        found.append(Part(source, _name(source), use))
    if data.replay is not None:
        replay = Source(**data.replay.model_dump(exclude={"share"}))
        found.append(Part(replay, f"{_name(replay)} (replay)", Use(share=data.replay.share)))
    if recipe.eval.path is not None:
        held = Source(path=recipe.eval.path)
        found.append(Part(held, f"{_name(held)} (evaluation)", Use(), is_evaluation=True))
    return found


def _name(source: Source) -> str:
    """A source as people call it: a dataset's id, or the name of the file or folder."""
    return source.path if hub.is_dataset_id(source.path) else Path(source.path).name


def input_files(recipe: Recipe) -> list[Path] | None:
    """Every file that the sources consist of; None where one of them is not a file here."""
    found: list[Path] = []
    for part in parts(recipe):
        if hub.is_dataset_id(part.source.path):
            return None
        found += [f.path for f in files.find(part.source.path).files if f.path is not None]
    return found
