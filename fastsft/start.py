"""Makes a run ready to train: base checked, rows encoded and proved, everything written down."""

import importlib.metadata
import platform
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastsft import __version__, hardware, recipe_file
from fastsft import base as bases
from fastsft.data import arrays
from fastsft.data.prepare import Prepared, prepare
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import RecipeError, TrainError
from fastsft.recipe import Recipe
from fastsft.run import Run, create

STACK = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "unsloth",
    "unsloth_zoo",
    "xformers",
    "tokenizers",
)


def prepare_rows(recipe: Recipe, base: bases.Base, progress: Any = None) -> Prepared:
    """The recipe's rows for this base, encoded and proved.

    Raises RecipeError without a data file, DataError for what is in it.
    """
    data = recipe.data
    if data.path is None:
        raise RecipeError("data.path: missing", where="recipe", hint="pass --data rows.jsonl")
    return prepare(
        Path(data.path),
        ChatTokenizer.load(base.folder, family=base.family),
        max_tokens=data.max_tokens,
        overlength=data.overlength,
        train_on=data.train_on,
        system=data.system,
        date=data.date,
        eval_path=Path(recipe.eval.path) if recipe.eval.path else None,
        eval_share=recipe.eval.share,
        progress=progress,
    )


def start(recipe: Recipe, base: bases.Base, prepared: Prepared, *, runs: Path, name: str) -> Run:
    """A run folder with recipe, tokens, ledger and manifest; nothing is trained yet."""
    run = create(runs, recipe, name=name)
    arrays.save(run.tokens_path, prepared.train, prepared.eval)
    prepared.ledger.write(run.folder)
    gpu = hardware.gpu()
    run.update_manifest(
        {
            "fastsft": __version__,
            "python": platform.python_version(),
            "gpu": gpu.as_dict() if gpu else None,
            "base": {"name": recipe.model.base, "commit": base.commit},
            "rows": {"trained": len(prepared.train), "held_out": len(prepared.eval)},
            "seed": recipe.train.seed,
            "identity": identity(recipe, base, prepared.train.sha256()),
        }
    )
    return run


def identity(recipe: Recipe, base: bases.Base, tokens: str) -> dict[str, Any]:
    """What a checkpoint depends on; a resume compares it."""
    return {
        "recipe": recipe_file.digest(recipe),
        "data": {path: _file_hash(path) for path in (recipe.data.path, recipe.eval.path) if path},
        "tokens": tokens,
        "base": base.fingerprint,
        "stack": {name: _version(name) for name in STACK},
    }


def _file_hash(path: str) -> str:
    file = Path(path)
    return sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_unchanged(run: Run, *, allowed: Collection[str]) -> list[str]:
    """What changed since the run began, where that is allowed.

    Raises TrainError naming a change that is not: recipe, data, base, tokens or stack.
    """
    recipe = run.recipe()
    before = run.manifest()["identity"]
    train, _ = arrays.load(run.tokens_path)
    now = identity(recipe, bases.resolve(recipe.model), train.sha256())
    changed = [key for key in now if now[key] != before.get(key)]
    for key in changed:
        if key not in allowed:
            raise TrainError(
                f"{key} changed since the run began{_detail(before.get(key), now[key])}",
                where=run.folder.name,
                hint=f"put it back, start a new run, or pass --allow-change {key}"
                + (" (the run goes on with the tokens it has)" if key == "data" else ""),
            )
    if changed:
        run.update_manifest({"identity": now, "allowed_changes": changed})
    return changed


def _detail(before: object, now: object) -> str:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ""
    parts = [
        f"{key} {str(before.get(key))[:12]} -> {str(value)[:12]}"
        for key, value in now.items()
        if value != before.get(key)
    ]
    return f" ({', '.join(parts)})"
