"""Reads a Modelfile as far as fastsft writes one.  Runs no Ollama, renders nothing."""

import re
from dataclasses import dataclass

from fastsft.errors import ExportError

# A command at the start of a line; its text in three quotes, or to the end of the line.
# Source: docs.ollama.com/modelfile, "Format".
_COMMAND = re.compile(
    r'^(?P<name>[A-Z]+) +(?:"""(?P<long>.*?)"""|(?P<short>[^\n]*))[ ]*(?:\n|\Z)', re.DOTALL | re.M
)


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says of texts; `model` is the file that it is FROM."""

    model: str
    template: str
    system: str | None
    stops: tuple[str, ...]


def read(text: str) -> Modelfile:
    """The Modelfile of this text.

    Raises: ExportError when it names no model, or not exactly one template.
    """
    found: dict[str, list[str]] = {}
    at = 0
    while at < len(text):
        command = _COMMAND.match(text, at)
        if command is None:  # a comment or an empty line
            at = text.find("\n", at) + 1 or len(text)
            continue
        long, short = command["long"], command["short"]
        found.setdefault(command["name"], []).append(short if long is None else long)
        at = command.end()
    if len(found.get("FROM", [])) != 1 or len(found.get("TEMPLATE", [])) != 1:
        raise ExportError(
            "has not exactly one FROM and one TEMPLATE",
            where="Modelfile",
            hint="export again with --overwrite",
        )
    stops = [re.fullmatch(r'stop +"?(.*?)"?', one) for one in found.get("PARAMETER", [])]
    return Modelfile(
        model=found["FROM"][0].strip().removeprefix("./"),
        template=found["TEMPLATE"][0],
        system=next(iter(found.get("SYSTEM", [])), None),
        stops=tuple(stop[1] for stop in stops if stop),
    )
