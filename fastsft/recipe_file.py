"""Reads and writes recipe files.  All faults of a file are reported together, each at its key."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from fastsft.errors import RecipeError
from fastsft.recipe import Recipe

MAX_BYTES = 256 * 1024
MAX_DEPTH = 8
MAX_FAULTS = 20
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
    if name in shipped_names():
        return shipped_folder() / f"{name}.yaml"
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if path.is_file():
            return path
        what = "is a folder, not a recipe file" if path.is_dir() else "no such file"
        raise RecipeError(what, where=name, hint="`fastsft recipes` lists the shipped ones")
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
    """SHA-256 over the values that training depends on (not the file's layout, not `export`)."""
    values = recipe.model_dump(mode="json", exclude={"export"})
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class _Constructor(SafeConstructor):
    """Builds YAML 1.2's core types; what looks like a date stays the text that it is."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """Escapes the line breaks that only YAML 1.1 knows, which plain quotes would fold away."""

    def text(self, value: str) -> ScalarNode:
        style = '"' if re.search("[\x85\u2028\u2029]", value) else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Representer.add_representer(str, _Representer.text)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return yaml


def _parse(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise RecipeError(f"{size} bytes", where=path.name, hint="a recipe has at most 256 KiB")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            "not UTF-8 text", where=path.name, hint="save the recipe as UTF-8"
        ) from error
    tree = _value(text, path.name, hint=HINT)
    if not isinstance(tree, dict):
        raise RecipeError("not a mapping of keys to values", where=path.name, hint=HINT)
    return tree


def _value(text: str, where: str, *, hint: str) -> Any:
    """What the YAML says: strings, numbers, booleans, nulls, lists and mappings of them."""
    try:
        _refuse_extras(text, where)
        return _yaml().load(text)
    except DuplicateKeyError as error:
        what = _first_line(error).partition(" with value")[0]
        raise RecipeError(what, where=where, hint="keep one of the two") from error
    except (YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise RecipeError(f"not YAML: {_first_line(error)}", where=where, hint=hint) from error


def _refuse_extras(text: str, where: str) -> None:
    """Refuse what a recipe never needs and a stranger's file may abuse, before it is built."""
    depth = 0
    for event in _yaml().parse(StringIO(text)):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecipeError("nested too deep", where=where, hint=HINT)
        if isinstance(event, AliasEvent):
            raise RecipeError(
                "YAML aliases (*name) are refused", where=where, hint="write the value out"
            )
        if isinstance(event, DocumentStartEvent) and (event.version or event.tags):
            raise RecipeError("YAML directives (%) are refused", where=where, hint="remove it")
        if isinstance(event, NodeEvent) and getattr(event, "tag", None) is not None:
            raise RecipeError("YAML tags (!name) are refused", where=where, hint="remove the tag")


def _first_line(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {str(error.problem).splitlines()[0]}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _apply(tree: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not all(key.split(".")):
        raise RecipeError(
            "wants key=value", where=f"--set {override}", hint="--set train.learning_rate=1e-4"
        )
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{section} is not a section", where=f"--set {override}", hint=HINT)
    tree[leaf] = _value(text, f"--set {override}", hint="quote it")


def _validate(tree: Mapping[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate_json(json.dumps(tree, ensure_ascii=False).encode())
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise RecipeError(
                str(error), where=where, hint="use strings, numbers, true, false, null"
            ) from error
        details = [_plain(detail) for detail in error.errors() if not _is_branch(detail)]
        faults = [_fault(detail) for detail in details[:MAX_FAULTS]]
        if len(details) > MAX_FAULTS:
            faults.append(f"and {len(details) - MAX_FAULTS} more faults")
        what = "\n".join(faults).replace("\n", f"\n{where}: ")
        raise RecipeError(what, where=where, hint=HINT) from error


def _is_branch(detail: ErrorDetails) -> bool:
    """Whether this is another way of saying that neither `auto` nor its other kind was given."""
    return str(detail["loc"][-1]).startswith("literal[") if detail["loc"] else False


def _plain(detail: ErrorDetails) -> ErrorDetails:
    """The finding at the key itself, where pydantic adds the branch of a choice."""
    branch = detail["loc"][-1] if detail["loc"] else None
    if branch in ("bool", "constrained-int"):
        detail["loc"] = detail["loc"][:-1]
        choices = "true, false" if branch == "bool" else "an integer from 1 to 4096"
        detail["msg"] = f"should be {choices} or auto"
    return detail


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
    message = message.partition(" after validation")[0]
    return message[0].lower() + message[1:]


def _nearest(key: str) -> str:
    """`; did you mean …?` for the same name elsewhere, or a similar one, in its section first."""
    section, _, leaf = key.rpartition(".")
    known = {k.rpartition(".")[2]: k for k in keys()}
    siblings = {k.rpartition(".")[2]: k for k in keys() if k.rpartition(".")[0] == section}
    for names, cutoff in ((known, 1.0), (siblings, 0.6), (known, 0.8)):
        close = difflib.get_close_matches(leaf, names, n=1, cutoff=cutoff)
        if close:
            return f"; did you mean {names[close[0]]}?"
    return ""


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every key of the schema, dotted, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from keys(inner, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field may hold: itself, or within a list or beside null."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
