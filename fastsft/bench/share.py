"""A bench for strangers: what it takes to check the rows, nothing of the person or the data.

Only what is named here goes in.  The data is its hash and its counts; bases and recipes keep
their names where everybody knows them; gates are judged again, so that no text of a run is
copied.
"""

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastsft import base, errors, families, recipe_file, shapes
from fastsft.bench import gates, row, statistics
from fastsft.bench.arms import ENGINES, ArmPlan
from fastsft.bench.row import Row
from fastsft.errors import DataError, RecipeError
from fastsft.recipe import Recipe
from fastsft.run import write_atomically

KIND = "fastsft bench"
DATA_KEYS = {"max_tokens", "overlength", "train_on"}
SECTIONS = ("engine", "method", "model", "lora", "train")
OWN = "own"
"""In place of a name that only its owner knows."""
AN_ERROR = "an error"
"""In place of an error that is none of ours."""
PUBLIC = re.compile(
    r"(engine|model\.(quantization|double_quant|dtype)|data\.max_tokens|lora\.\w+|train\.\w+)"
    r"=[\w.,\[\] -]{0,80}"
)
KERNEL = re.compile(r"^(\w+ \d+\.\d+)(?:.*(microsoft))?", re.IGNORECASE)


def check(path: Path) -> None:
    """Raises RecipeError when the file could not be written in the end."""
    folder, what = path.absolute().parent, ""
    if path.is_dir() or not folder.is_dir():
        what = "is a folder" if path.is_dir() else "its folder does not exist"
    else:
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            what = f"its folder cannot be written to: {error.strerror or error}"
    if what:
        raise RecipeError(what, where=f"--share {path}", hint="name a file in a folder of yours")


def write(path: Path, rows: Sequence[Row], plans: Sequence[ArmPlan]) -> None:
    """Write what strangers need of these rows, one or more.

    Raises DataError when the file cannot be written, whatever `check` said.
    """
    text = json.dumps(document(rows, plans), indent=1, allow_nan=False) + "\n"
    try:
        write_atomically(path.absolute(), text)
    except OSError as error:
        raise DataError(
            f"cannot be written: {error.strerror or error}",
            where=f"--share {path}",
            hint="the results are kept; only the file to share is missing",
        ) from error


def document(rows: Sequence[Row], plans: Sequence[ArmPlan]) -> dict[str, Any]:
    """Rows, summary and recipes, as JSON values."""
    names = _public_names([plan.name for plan in plans])
    recipes = {names[plan.name]: public_recipe(plan.recipe) for plan in plans}
    hashes = {name: _digest(recipe) for name, recipe in recipes.items()}
    cleaned = gates.judged([_row(row, names, hashes) for row in rows])
    return {
        "schema": row.SCHEMA,
        "kind": KIND,
        "rows": [row.as_dict(one) for one in cleaned],
        "summary": row.as_dict(statistics.summarise(cleaned)),
        "recipes": recipes,
    }


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides speed, memory and loss; no path, no text, no data."""
    values = recipe.model_dump(mode="json")
    kept = {key: values[key] for key in SECTIONS}
    kept["model"] = {**values["model"], "base": base_name(recipe.model.base), "revision": None}
    kept["train"] = {key: value for key, value in values["train"].items() if key != "report_to"}
    kept["data"] = {key: values["data"][key] for key in sorted(DATA_KEYS)}
    return kept


def base_name(name: str) -> str:
    """A base's name where it is one that fastsft ships a recipe for, random or real."""
    is_tiny = name in {f"{base.TINY}{family.name}" for family in families.SUPPORTED}
    is_random = name.startswith("synthetic:") and name.partition(":")[2] in shapes.SHIPPED
    return name if is_tiny or is_random or shapes.of_base(name) is not None else OWN


def _public_names(arms: Sequence[str]) -> dict[str, str]:
    """Each arm's name, where everybody knows it; else its place."""
    known = {*ENGINES, *recipe_file.shipped_names()}
    return {
        name: name if name.removesuffix(" (2)") in known else f"{OWN} {place}"
        for place, name in enumerate(arms, 1)
    }


def _digest(recipe: Mapping[str, Any]) -> str:
    return sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _row(private: Row, names: Mapping[str, str], hashes: Mapping[str, str]) -> Row:
    identity = private.identity
    arm = names[identity.arm]
    recipe = identity.recipe if identity.recipe in recipe_file.shipped_names() else OWN
    day = int(identity.time_s // 86400) * 86400
    return replace(
        private,
        identity=replace(
            identity,
            bench=f"{time.strftime('%Y%m%d', time.gmtime(day))}-{recipe}",
            arm=arm,
            recipe=recipe,
            recipe_hash=hashes[arm],
            base=replace(identity.base, name=base_name(identity.base.name)),
            versions={name: _version(found) for name, found in identity.versions.items()},
            os=_system(identity.os),
            time_s=float(day),
            overrides=[text for text in identity.overrides if is_public(text)],
        ),
        error=_error(private.error),
        notes=[],
        validity=row.Validity(is_valid=False, gates=[]),
    )


def is_public(override: str) -> bool:
    """Whether an override may be shared: numbers and choices, and no tracker of one's own."""
    key = override.partition("=")[0]
    return PUBLIC.fullmatch(override) is not None and key != "train.report_to"


def _error(told: str | None) -> str | None:
    """The class of an error, whose text may name files."""
    name = told.partition(":")[0] if told else ""
    return (name if hasattr(errors, name) else AN_ERROR) if told else None


def _version(found: str) -> str:
    """A version without what a private build adds, other than CUDA's."""
    public, _, local = found.partition("+")
    return found if re.fullmatch(r"cu\d+|cpu", local) else public


def _system(name: str) -> str:
    """`Linux 6.8`, and whether it is WSL; a kernel's own name may be anybody's."""
    found = KERNEL.match(name)
    if not found:
        return OWN
    return f"{found[1]} (WSL)" if found[2] else found[1]
