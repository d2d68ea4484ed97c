"""Reads the tokenizer files of a model folder into one checked value.  Loads no tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsft.errors import DataError

SLOW_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model")
NAMED_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Source: transformers 5.17 SPECIAL_TOKENS_ATTRIBUTES, the variables a template may read."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says about its tokenizer.

    `tokenizer_json` is the file's text.  `named` maps bos_token, eos_token … to their text.
    `eos_ids` are those of generation_config.json and config.json.  `fingerprint` is the
    SHA-256 over everything that ids, template and stop tokens depend on.
    """

    tokenizer_json: str
    named: Mapping[str, str]
    template: str
    template_where: str
    eos_ids: tuple[int, ...]
    model_config: Mapping[str, Any] | None
    fingerprint: str


def read(folder: Path, template: tuple[str, str] | None = None) -> TokenizerFiles:
    """The folder's tokenizer files; `template` is (source, name) of one to use instead.

    Raises `DataError` for a missing folder, a tokenizer without tokenizer.json, a missing
    chat template and files that do not parse.
    """
    tokenizer_json = _tokenizer_json(folder)
    config = _json(folder / "tokenizer_config.json") or {}
    source, template_where = template or _template(folder, config)
    generation = _json(folder / "generation_config.json")
    model = _json(folder / "config.json")
    eos_ids = _eos_ids(generation, "generation_config.json") or _eos_ids(model, "config.json")
    return TokenizerFiles(
        tokenizer_json=tokenizer_json,
        named=_named(config),
        template=source,
        template_where=template_where,
        eos_ids=eos_ids,
        model_config=model,
        fingerprint=_fingerprint(tokenizer_json, source, json.dumps(config), repr(eos_ids)),
    )


def has_template(folder: Path) -> bool:
    """Whether the folder's tokenizer brings a chat template of its own."""
    config = _json(folder / "tokenizer_config.json") or {}
    return (folder / "chat_template.jinja").is_file() or bool(config.get("chat_template"))


def _tokenizer_json(folder: Path) -> str:
    if not folder.is_dir():
        raise DataError("no such model folder", where=str(folder), hint="check the path")
    file = folder / "tokenizer.json"
    if file.is_file():
        return _text(file)
    slow = [name for name in SLOW_FILES if (folder / name).is_file()]
    if slow:
        raise DataError(
            f"there is no tokenizer.json, only a slow tokenizer ({', '.join(slow)})",
            where=str(folder),
            hint='convert it once: python -c "from transformers import AutoTokenizer as A; '
            f"A.from_pretrained('{folder}').save_pretrained('{folder}')\"",
        )
    raise DataError(
        "there is no tokenizer.json",
        where=str(folder),
        hint="name a folder that holds a whole model, tokenizer included",
    )


def _template(folder: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """chat_template.jinja wins over the config's `chat_template`; of a list, "default"."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _text(file), str(file)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template if _is_named(entry)}
        template = named.get("default")
    if isinstance(template, str):
        return template, str(folder / "tokenizer_config.json")
    raise DataError(
        "the tokenizer has no chat template, so this is a base model",
        where=str(folder),
        hint="fine-tune the Instruct checkpoint of the same model, or set data.template "
        "(alpaca and human-assistant end turns with the base's own end-of-text token)",
    )


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and {"name", "template"} <= set(entry)


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """Old files write a token as an object with its text under "content"."""
    named = {}
    for key in NAMED_TOKENS:
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            named[key] = text
    return named


def _eos_ids(config: Mapping[str, Any] | None, name: str) -> tuple[int, ...]:
    value = (config or {}).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise DataError(
            f"eos_token_id is {value!r}, not a token id or a list of them",
            where=name,
            hint="restore the file of the model's original repository",
        )
    return tuple(ids)


def _json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        value = json.loads(_text(file))
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=str(file), hint="download it again") from error
    if not isinstance(value, dict):
        raise DataError("not a JSON object", where=str(file), hint="download it again")
    return value


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read: {error}", where=str(file), hint="download it again"
        ) from error


def _fingerprint(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
