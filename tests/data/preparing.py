"""Prepares rows of a test: writes them, makes the recipe, runs the real thing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastsft.data.prepare import Prepared, prepare
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.recipe import Recipe


def row(question: str = "hi", answer: str = "yes", **extra: Any) -> dict[str, Any]:
    return {"prompt": question, "response": answer, **extra}


def write(folder: Path, *values: Mapping[str, Any], name: str = "train.jsonl") -> Path:
    path = folder / name
    lines = (json.dumps(value, ensure_ascii=False) for value in values)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def recipe(
    data: Mapping[str, Any], *, eval: Mapping[str, Any] | None = None, method: str = "sft"
) -> Recipe:
    return Recipe.model_validate_json(
        json.dumps(
            {
                "method": method,
                "model": {"base": "x", "family": "qwen2.5"},
                "data": {"max_tokens": 99, **data},
                "train": {"steps": 1},
                "eval": eval or {},
            }
        )
    )


def prepared(
    folder: Path,
    tokenizer: ChatTokenizer,
    data: Mapping[str, Any],
    *,
    eval: Mapping[str, Any] | None = None,
    method: str = "sft",
    workers: int = 0,
    **options: Any,
) -> Prepared:
    """What `data` gives; the token file goes into a folder of its own beside the rows."""
    out = folder / f"out-{len(list(folder.iterdir()))}"
    out.mkdir()
    made = recipe(data, eval=eval, method=method)
    return prepare(made, tokenizer, folder=out, workers=workers, **options)


def ids_of(found: Prepared) -> list[list[int]]:
    return [ids.tolist() for ids, _ in found.train]


def reasons(found: Prepared) -> Sequence[tuple[int, str]]:
    return [(entry.line, entry.reason) for entry in found.ledger.entries]
