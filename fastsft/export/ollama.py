"""Writes Ollama's Modelfile from the chat template that was trained.  Runs no Ollama.

The Go template is derived from the trained one and then checked against it; one that cannot be
said in Go is refused.  Source: https://docs.ollama.com/modelfile and ollama's parser/parser.go,
which drops what Go does not print and ends a text at a line that ends in three quotes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastsft.data.template import pin_date
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError, ExportError
from fastsft.export import go_template, go_writer, licenses, wrapping
from fastsft.export.trained import Trained
from fastsft.export.wrapping import SYSTEM, Chats, Wrapping
from fastsft.weights import read_object

NAME = "Modelfile"
RAW = "{{ .Prompt }}"
"""The template of a model that was trained on raw text."""
CONTEXT = 4096
"""Ollama's own default context.  Source: docs.ollama.com/context-length, the smallest."""


@dataclass(frozen=True)
class Modelfile:
    """The file's text, and what of it matters to a check.

    `system` is what it sets as SYSTEM, `notes` what its template does not say as the trained
    one does.
    """

    text: str
    template: str
    stops: tuple[str, ...]
    system: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A Go template that gives what the trained one gives, and where it does not."""

    text: str
    notes: tuple[str, ...]


def modelfile(trained: Trained, *, gguf_name: str, adapter_name: str | None = None) -> Modelfile:
    """The Modelfile of an export.

    `gguf_name` and `adapter_name` are files beside it: a whole model, or the base and the
    adapter that goes onto it.

    Raises: ExportError when the trained template cannot be said as a Go template.
    """
    data = trained.recipe.data
    told = data.system if data.system and go_writer.is_quotable(data.system) else None
    if trained.recipe.method == "pretrain":
        made = Template(RAW, ("trained on raw text: the prompt is given to the model as it is",))
    else:
        baked = None if told else data.system
        made = template(trained.tokenizer, date=data.date, system=baked)
    stops = tuple(stop for stop in trained.tokenizer.stop_tokens if go_writer.is_quotable(stop))
    lines = [
        *(f"# {line}" for line in _heading(trained, made.notes)),
        f"FROM ./{gguf_name}",
        *([f"ADAPTER ./{adapter_name}"] if adapter_name else []),
        f"TEMPLATE {_quoted(made.text)}",
        *([f"SYSTEM {_quoted(told)}"] if told else []),
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        f"PARAMETER num_ctx {_context(trained)}",
        *(f"PARAMETER {key} {value:g}" for key, value in _sampling(trained.base.folder).items()),
        *_license(trained.base.folder),
    ]
    return Modelfile("\n".join(lines) + "\n", made.text, stops, told, made.notes)


def template(
    tokenizer: ChatTokenizer, *, date: str | None = None, system: str | None = None
) -> Template:
    """The Go template that gives what the tokenizer's chat template gives.

    `date` is the day that training pinned, `system` the message that chats without one get;
    both are written into the template.

    Raises: ExportError naming a conversation on which the two differ.
    """
    chats = Chats(tokenizer, pin_date(date), system=system)
    found = wrapping.find(chats)
    text = go_writer.written(found)
    for chat in _trials(found):
        wanted, given = chats.prompt(chat), go_template.render(text, chat)
        if wanted != given:
            raise ExportError(
                f"the chat template writes {wanted!r:.200}, and as a Go template {given!r:.200}",
                where=NAME,
                hint="serve the GGUF with llama.cpp, which runs the template itself",
            )
    return Template(text, tuple(_notes(tokenizer, chats, found, date)))


def prompt(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, str]],
    *,
    date: str | None = None,
    system: str | None = None,
) -> str:
    """What a Modelfile's template has to give for a chat: see `wrapping.Chats.prompt`."""
    return Chats(tokenizer, pin_date(date), system=system).prompt(messages)


def _heading(trained: Trained, notes: Sequence[str]) -> list[str]:
    lines = [f"Written by fastsft from {trained.run.folder.name}.  To use it:"]
    lines += ["  ollama create NAME -f Modelfile", *notes]
    return [line.replace("\n", " ") for line in lines]


def _quoted(text: str) -> str:
    return f'"""{text}"""'


def _trials(found: Wrapping) -> Iterator[list[dict[str, str]]]:
    """Conversations that were not probed, longer ones among them."""
    words = (
        "{{ .System }} {% x %}",
        'He said "no"\n\nand left.',
        "<b>&amp;</b> \\n 漢字 👩‍🚀",
        "0",
    )
    for count in range(1, wrapping.LONGEST + 4):
        turns = [
            {"role": ("user", "assistant")[i % 2], "content": words[(i + count) % len(words)]}
            for i in range(count)
        ]
        yield turns
        if found.system_is_read:
            yield [{"role": "system", "content": words[count % len(words)]}, *turns]


def _notes(
    tokenizer: ChatTokenizer, chats: Chats, found: Wrapping, date: str | None
) -> Iterator[str]:
    if "tools" in tokenizer.template.source:
        yield (
            "this template has no tools, the chat template inside the GGUF has: Ollama 0.30 and "
            "later may take that one instead (OLLAMA_GO_TEMPLATE=true makes it take this one)"
        )
    if not found.system_is_read:
        yield "the chat template takes no system message: Ollama's SYSTEM is left out"
    trimmed = [role for role in ("system", "user", "assistant") if _trims(chats, found, role)]
    if trimmed:
        yield (
            f"the chat template trims the messages of {', '.join(trimmed)}, Ollama cannot: send "
            "them without white space at either end"
        )
    if found.system_is_read and _minds_empty_system(chats):
        yield "an empty system message counts as none"
    if _tells_date(tokenizer):
        day = date or ("the day it was written" if tokenizer.template.reads_clock else "fixed")
        yield f"the date that this template tells the model stays as it is: {day}"


def _tells_date(tokenizer: ChatTokenizer) -> bool:
    chat = [{"role": "user", "content": "0"}]
    texts = {Chats(tokenizer, pin_date(day)).text(chat) for day in ("2001-02-03", "1999-12-31")}
    return len(texts) > 1


def _trims(chats: Chats, found: Wrapping, role: str) -> bool:
    if role == "system" and not found.system_is_read:
        return False
    padded = f" \n{SYSTEM}\n "
    chat = [{"role": name, "content": "0"} for name in ("user", "assistant", "user")]
    if role == "system":
        chat.insert(0, {"role": role, "content": padded})
    else:
        chat[("user", "assistant").index(role)]["content"] = padded
    return padded not in chats.prompt(chat)


def _minds_empty_system(chats: Chats) -> bool:
    chat = [{"role": "user", "content": "0"}]
    try:
        return chats.prompt([{"role": "system", "content": ""}, *chat]) != chats.prompt(chat)
    except DataError:
        return True


def _context(trained: Trained) -> int:
    """As long as what was trained on, or Ollama's default where that was shorter."""
    config = read_object(trained.base.folder / "config.json")
    most = config.get("max_position_embeddings")
    wanted = max(trained.recipe.data.max_tokens, CONTEXT)
    return min(wanted, most) if isinstance(most, int) and most > 0 else wanted


def _sampling(base: Path) -> dict[str, float]:
    """The base's own sampling, in Ollama's words; nothing is penalised unless the base says so.

    Ollama's default `repeat_penalty` is 1.1, which the model was not trained for.
    """
    path = base / "generation_config.json"
    found = read_object(path) if path.is_file() else {}
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
    names["repetition_penalty"] = "repeat_penalty"
    given = {names[key]: found[key] for key in names if _is_number(found.get(key))}
    return {"repeat_penalty": 1, **given}


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _license(base: Path) -> list[str]:
    """The licence's text, where the base has one that Ollama reads as it stands.

    A form feed, which Ollama would drop, becomes a line break.
    """
    text = licenses.text(base).replace("\f", "\n")
    return [f"LICENSE {_quoted(text)}"] if text and go_writer.is_quotable(text) else []
