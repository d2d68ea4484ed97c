"""Makes the files that stand beside exported weights: config, generation config, tokenizer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsft.errors import ExportError
from fastsft.weights import read_object

CONFIG = "config.json"
GENERATION = "generation_config.json"

# What transformers 5 and its forerunners write for the tokenizers of our families.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_TOKENIZER = (
    *_VOCABULARIES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json"),
)
_MAX_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class Tokens:
    """The ids that end a generation, and the ones that pad and begin it; None keeps the base's."""

    stop_ids: Sequence[int]
    pad_id: int | None = None
    bos_id: int | None = None


def config(base: Path) -> dict[str, Any]:
    """The base's config.

    Raises: ExportError when there is none, or it brings code of its own.
    """
    path = base / CONFIG
    if not path.is_file():
        raise ExportError(f"has no {CONFIG}", where=str(base), hint="pass the base model's folder")
    found = read_object(path)
    if "auto_map" in found:
        raise ExportError(
            "has an auto_map: the model runs code of its own",
            where=str(path),
            hint="use a base of a family that transformers knows",
        )
    return found


def adapted(config: Mapping[str, Any], dtype: str, *, untied: bool) -> dict[str, Any]:
    """The config for weights of `dtype` ("base": as they were), never quantised."""
    dropped = ("quantization_config", "_name_or_path")  # the second is somebody's folder
    found = {key: value for key, value in config.items() if key not in dropped}
    if dtype != "base":
        keys = [key for key in ("dtype", "torch_dtype") if key in found] or ["torch_dtype"]
        found |= dict.fromkeys(keys, dtype)
    if untied:
        found["tie_word_embeddings"] = False
    return found


def generation(base: Path, tokens: Tokens, vocabulary: int | None) -> dict[str, Any]:
    """The base's generation config with the trained stop ids.

    Raises: ExportError when there is no stop id, or an id outside the vocabulary.
    """
    found = read_object(base / GENERATION) if (base / GENERATION).is_file() else {}
    found.pop("_from_model_config", None)  # would let transformers replace what stands here
    if not tokens.stop_ids:
        raise ExportError(
            "no stop id was given", where="export", hint="pass the end-of-turn ids trained on"
        )
    found["eos_token_id"] = [*tokens.stop_ids]
    if tokens.pad_id is not None:
        found["pad_token_id"] = tokens.pad_id
    if tokens.bos_id is not None:
        found["bos_token_id"] = tokens.bos_id
    for value in (*tokens.stop_ids, tokens.pad_id, tokens.bos_id):
        if value is not None and not 0 <= value < (vocabulary or value + 1):
            raise ExportError(
                f"token id {value} is outside the model's {vocabulary} rows",
                where="export",
                hint="pass the ids of this model's own tokenizer",
            )
    return found


def tokenizer(adapter: Path, base: Path) -> Mapping[str, Path]:
    """File name -> file of the tokenizer: all from the adapter's folder, or all from the base's.

    Raises: ExportError when neither has one.
    """
    for folder in (adapter, base):
        if any((folder / name).is_file() for name in _VOCABULARIES):
            found = {name: folder / name for name in _TOKENIZER if (folder / name).is_file()}
            for path in found.values():
                _refuse_huge(path)
            return found
    raise ExportError(
        f"neither {adapter} nor {base} has a tokenizer",
        where="export",
        hint="copy the tokenizer's files into the adapter's folder",
    )


def as_json(value: Mapping[str, Any]) -> bytes:
    """The text that transformers would write: two spaces, sorted, a newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _refuse_huge(path: Path) -> None:
    if path.stat().st_size > _MAX_BYTES:
        raise ExportError(
            f"is larger than {_MAX_BYTES} bytes", where=str(path), hint="download it again"
        )
