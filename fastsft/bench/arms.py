"""What a bench runs: recipes made comparable, and every change that this takes told.  Pure."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from pydantic import ValidationError

from fastsft import recipe_file
from fastsft.engine import settings
from fastsft.engine.settings import Device
from fastsft.errors import RecipeError
from fastsft.recipe import Eval, Recipe

ENGINES: tuple[str, ...] = get_args(Recipe.model_fields["engine"].annotation)


@dataclass(frozen=True)
class ArmPlan:
    """One side of a bench: its name, what it runs, and what was changed for it to be comparable."""

    name: str
    recipe: Recipe
    changes: tuple[str, ...] = ()


def plan(
    name: str, recipe: Recipe, against: str | None, *, steps: int, device: Device
) -> list[ArmPlan]:
    """The arms: the recipe, and its peer where one is named; `steps`: of every process.

    Raises RecipeError when the peer is neither an engine nor a recipe, or is the recipe itself.
    """
    if against in ENGINES:
        arms = _engines(recipe, against, device)
    elif against is not None:
        arms = [ArmPlan(name, recipe), _other_recipe(name, recipe, against)]
    else:
        arms = [ArmPlan(recipe.engine, recipe)]
    return [replace(arm, recipe=_short(arm.recipe, steps)) for arm in _alike(arms, device)]


def by_both_engines(recipe: Recipe) -> Recipe:
    """The recipe by the reference, whose settings Unsloth has too: to settle what is open with."""
    shared, _ = _honoured(recipe)
    return _with(shared, {"engine": "reference"})


def pinned(recipe: Recipe, settled: Recipe, keys: Sequence[str]) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with these keys as they are in the other, and a line for each."""
    values = settled.model_dump(mode="json")
    wanted = {key: _at(values, key) for key in keys}
    if "train.micro_batch_rows" in wanted:
        wanted["train.rows_per_step"] = None
    return _changed(recipe, wanted, why="for both engines alike")


def _engines(recipe: Recipe, against: str, device: Device) -> list[ArmPlan]:
    """The recipe by two engines, in the settings that both have."""
    if against == recipe.engine:
        others = " or ".join(engine for engine in ENGINES if engine != against)
        raise RecipeError(
            f"the recipe's engine is {against} already",
            where="--against",
            hint=f"--against {others}, or another recipe",
        )
    shared, told = _honoured(recipe)
    if device.kind == "cuda" and shared.train.gradient_checkpointing == "auto":
        shared = _with(shared, {"train.gradient_checkpointing": "standard"})
    peer = _with(shared, {"engine": against})
    return [ArmPlan(recipe.engine, shared, told), ArmPlan(against, peer, told)]


def _honoured(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe in what both engines can do; kernels are compared at equal settings or not."""
    wanted: dict[str, Any] = {"train.checkpoint_skip_layers": 0, "model.double_quant": True}
    if recipe.train.gradient_checkpointing == "unsloth":
        wanted["train.gradient_checkpointing"] = "standard"
    return _changed(recipe, wanted, why="which both engines have")


def _other_recipe(name: str, recipe: Recipe, against: str) -> ArmPlan:
    """Another recipe, on the first one's base, data and seed."""
    try:
        other = recipe_file.load(against)
    except RecipeError as error:
        if error.what.startswith("no such recipe"):
            raise _nothing(against) from error
        raise
    model = {key: getattr(recipe.model, key) for key in ("base", "revision", "family")}
    wanted = {f"model.{key}": value for key, value in model.items()}
    wanted |= {"data": recipe.data.model_dump(mode="json"), "method": recipe.method}
    wanted["train.seed"] = recipe.train.seed
    changed, told = _changed(other, wanted, why="to be comparable")
    called = recipe_file.find(against).stem
    return ArmPlan(called if called != name else f"{called} (2)", changed, told)


def _nothing(against: str) -> RecipeError:
    known = [*ENGINES, *recipe_file.shipped_names()]
    close = difflib.get_close_matches(against, known, n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return RecipeError(
        f"{against} is neither an engine nor a recipe{guess}",
        where="--against",
        hint=f"{' or '.join(ENGINES)}, a name that `fastsft recipes` lists, or a YAML file",
    )


def _alike(arms: Sequence[ArmPlan], device: Device) -> list[ArmPlan]:
    """The arms with batches made in the same way, where both leave that open."""
    ways = {settings.batching(arm.recipe, device) for arm in arms}
    if len(ways) == 1 or any(arm.recipe.train.packing != "auto" for arm in arms):
        return list(arms)  # a difference that was asked for stays
    why = "one of the engines does not pack here"
    found = []
    for arm in arms:
        changed, told = _changed(arm.recipe, {"train.packing": False}, why=why)
        found.append(replace(arm, recipe=changed, changes=(*arm.changes, *told)))
    return found


def _short(recipe: Recipe, steps: int) -> Recipe:
    """The recipe for so many steps, saved once at the end, never evaluated, tracked nowhere."""
    return _with(
        recipe,
        {
            "train.steps": steps,
            "train.epochs": None,
            "train.save_every_steps": steps,
            "train.report_to": [],
            "eval": Eval().model_dump(mode="json"),
        },
    )


def _changed(
    recipe: Recipe, wanted: Mapping[str, Any], *, why: str
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with these keys, and a line for each that was otherwise."""
    values = recipe.model_dump(mode="json")
    told = []
    for key, value in wanted.items():
        was = _at(values, key)
        if was != value:
            detail = "" if isinstance(value, dict) else f" {was} -> {value}"
            told.append(f"{key}:{detail or ' the first recipe has another'}, {why}")
    return _with(recipe, wanted), tuple(told)


def _with(recipe: Recipe, wanted: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted keys changed, checked as a whole.

    Raises RecipeError when they cannot stand together.
    """
    values = recipe.model_dump(mode="json")
    for key, value in wanted.items():
        section, _, leaf = key.rpartition(".")
        (values[section] if section else values)[leaf] = value
    try:
        return Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ").lstrip("@")
        raise RecipeError(
            f"cannot be benched so: {what}",
            where="--against",
            hint="change the key with --set, or name another peer",
        ) from error


def _at(values: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values
