"""Reads and writes recipe files.  All faults of a file are reported together, each at its key."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent

from fastsft.errors import RecipeError
from fastsft.recipe import Recipe

MAX_BYTES = 256 * 1024
HINT = "`fastsft recipes --schema` lists every key with its meaning"


def shipped_folder() -> Path:
    """Where the shipped recipes lie: in the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "_recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def shipped_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def find(name: str) -> Path:
    """The file that a shipped name or a path means.

    Raises RecipeError when it is neither.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if path.is_file():
            return path
        what = "is a folder, not a recipe file" if path.is_dir() else "no such file"
        raise RecipeError(what, where=name, hint="`fastsft recipes` lists the shipped ones")
    if name in shipped_names():
        return shipped_folder() / f"{name}.yaml"
    close = difflib.get_close_matches(name, shipped_names(), n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    raise RecipeError(
        f"no such recipe{guess}", where=name, hint="`fastsft recipes` lists the shipped ones"
    )


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or file, with `key=value` overrides, checked as a whole.

    Raises RecipeError naming every fault of the file.
    """
    path = find(name)
    tree = _parse(path)
    for override in overrides:
        _apply(tree, override)
    return _validate(tree, path.name)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, complete; loads back to an equal value."""
    out = StringIO()
    _yaml().dump(recipe.model_dump(mode="json"), out)
    return out.getvalue()


def digest(recipe: Recipe) -> str:
    """SHA-256 over the recipe's values (not its file's layout)."""
    return sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return yaml


def _parse(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{len(raw)} bytes", where=path.name, hint="a recipe has at most 256 KiB")
    try:
        return _tree(raw.decode("utf-8-sig"), path.name)
    except UnicodeDecodeError as error:
        raise RecipeError(
            "not UTF-8 text", where=path.name, hint="save the recipe as UTF-8"
        ) from error
    except DuplicateKeyError as error:
        raise RecipeError(
            _first_line(error), where=path.name, hint="keep one of the two"
        ) from error
    except (YAMLError, RecursionError) as error:
        raise RecipeError(f"not YAML: {_first_line(error)}", where=path.name, hint=HINT) from error


def _tree(text: str, where: str) -> dict[str, Any]:
    if any(isinstance(event, AliasEvent) for event in _yaml().parse(StringIO(text))):
        raise RecipeError(
            "YAML aliases (*name) are refused", where=where, hint="write the value out"
        )
    tree = _yaml().load(text)
    if not isinstance(tree, dict):
        raise RecipeError("not a mapping of keys to values", where=where, hint=HINT)
    return tree


def _first_line(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {str(error.problem).splitlines()[0]}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _apply(tree: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise RecipeError(
            "wants key=value", where=f"--set {override}", hint="--set train.learning_rate=1e-4"
        )
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{section} is not a section", where=f"--set {override}", hint=HINT)
    try:
        tree[leaf] = _yaml().load(text) if text else None
    except YAMLError as error:
        raise RecipeError(
            f"not YAML: {_first_line(error)}", where=f"--set {override}", hint="quote it"
        ) from error


def _validate(tree: Mapping[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate_json(json.dumps(tree))
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise RecipeError(
                str(error), where=where, hint="use strings, numbers, true, false, null"
            ) from error
        faults = [_fault(detail) for detail in error.errors()]
        raise RecipeError(f"\n{where}: ".join(faults), where=where, hint=HINT) from error


def _fault(detail: ErrorDetails) -> str:
    """`key: problem` for one of pydantic's findings."""
    key = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"]
    if message.startswith("Value error, @"):
        return message.removeprefix("Value error, @")
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(key)}"
    if detail["type"] == "missing":
        return f"{key}: missing"
    shown = json.dumps(detail["input"], ensure_ascii=False)
    return f"{key}: {_lower(message)}, not {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _lower(message: str) -> str:
    message = message.removeprefix("Input ").removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _nearest(key: str) -> str:
    """`; did you mean …?` for the known key that is nearest, by path or by last name."""
    known = list(keys())
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    leaf = key.rsplit(".", 1)[-1]
    close = close or [k for k in known if k.rsplit(".", 1)[-1] == leaf]
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every key of the schema, dotted, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
