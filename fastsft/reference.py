"""The recipe reference, rendered from the schema: for the README and the terminal.

`python -m fastsft.reference --write README.md` renews the block between the markers.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsft.errors import RecipeError
from fastsft.recipe import Recipe

BEGIN, END = "<!-- recipe-reference -->", "<!-- /recipe-reference -->"
COMMAND = "python -m fastsft.reference --write"
WORDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One key of the recipe, in words."""

    key: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class Part:
    """The keys of one section; the first part has no name, its keys stand at the top."""

    name: str
    description: str
    entries: tuple[Entry, ...]


def plain() -> list[tuple[str, str, str, str]]:
    """Key, type, default and description of every key, in the schema's order."""
    entries = (entry for part in parts() for entry in part.entries)
    return [(entry.key, entry.type, entry.default, entry.description) for entry in entries]


def markdown() -> str:
    """A table for the top level and one for each section."""
    return "\n\n".join(_table(part) for part in parts()) + "\n"


def parts() -> list[Part]:
    """The top level and each section, those within sections after them, with their keys."""
    schema = Recipe.model_json_schema()
    return list(_parts(schema, "", schema["$defs"]))


def _parts(schema: Schema, prefix: str, known: Mapping[str, Schema]) -> Iterator[Part]:
    """A section as a part; a list of sections is written `name[]`."""
    fields = schema["properties"]
    inner = {name: found for name, field in fields.items() if (found := _section(field))}
    entries = tuple(
        Entry(prefix + name, _type(field), _default(field), field["description"])
        for name, field in fields.items()
        if name not in inner
    )
    yield Part(prefix.removesuffix("."), schema["description"], entries)
    for name, (section, mark) in inner.items():
        yield from _parts(known[section], f"{prefix}{name}{mark}.", known)


def _section(field: Schema) -> tuple[str, str] | None:
    """The section that a field holds and "[]" where it holds a list of them, if any."""
    if "items" in field and "$ref" in field["items"]:
        return field["items"]["$ref"].rsplit("/", 1)[-1], "[]"
    for branch in (field, *field.get("anyOf", ())):
        if "$ref" in branch:
            return branch["$ref"].rsplit("/", 1)[-1], ""
    return None


def _type(field: Schema) -> str:
    """The type in words: choices, or a kind with its bounds."""
    if "anyOf" in field:
        return " or ".join(_type(branch) for branch in field["anyOf"])
    if field.get("type") == "null":
        return "null"
    choices = field.get("enum") or ([field["const"]] if "const" in field else [])
    if choices:
        return " or ".join(", ".join(choices).rsplit(", ", 1))
    if field["type"] == "object":
        return "mapping of text to text"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    return ", ".join((WORDS[field["type"]], *_bounds(field)))


def _bounds(field: Schema) -> Iterator[str]:
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        yield f"{low:.12g} to {high:.12g}"
        return
    for word, bound in (
        ("at least", low),
        ("above", field.get("exclusiveMinimum")),
        ("at most", high),
        ("below", field.get("exclusiveMaximum")),
    ):
        if bound is not None:
            yield f"{word} {bound:.12g}"


def _default(field: Schema) -> str:
    if "default" not in field:
        return "required"
    default = field["default"]
    if isinstance(default, list):
        is_all = default and default == field["items"].get("enum")
        return "all of them" if is_all else f"[{', '.join(default)}]"
    if isinstance(default, float):
        return f"{default:.12g}"
    return default if isinstance(default, str) and default else json.dumps(default)


def _table(part: Part) -> str:
    lines = [f"**`{part.name}`** {part.description}\n"] if part.name else []
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for entry in part.entries:
        cells = (f"`{entry.key}`", entry.type, entry.default, entry.description)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def block(text: str, where: str) -> str:
    """What stands between the markers of a file's text.

    Raises RecipeError when they are not there, in order, once each.
    """
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in inside + after or END in before + after:
        raise RecipeError(
            "the markers of the recipe reference are not there once each",
            where=where,
            hint=f"put a line {BEGIN} and a line {END} where it belongs",
        )
    return inside


def renewed(text: str, where: str) -> str:
    """The text with the block between the markers rendered anew."""
    old = block(text, where)
    return text.replace(f"{BEGIN}{old}{END}", f"{BEGIN}\n{markdown()}{END}")


def main() -> None:
    """Print the reference, or write it into a file."""
    parser = argparse.ArgumentParser(prog="python -m fastsft.reference", description=__doc__)
    parser.add_argument("--write", metavar="FILE", type=Path, help="renew FILE's block")
    path = parser.parse_args().write
    if path is None:
        sys.stdout.write(markdown())
        return
    try:
        path.write_text(renewed(path.read_text("utf-8"), path.name), "utf-8")
    except RecipeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
