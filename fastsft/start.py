"""Makes a run ready to train: base checked, rows encoded and proved, everything written down."""

import importlib.metadata
import platform
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastsft import __version__, hardware, recipe_file, untrained
from fastsft import base as bases
from fastsft.data import arrays, cache, documents, prepare, sources, templates
from fastsft.data import folder as model_folder
from fastsft.data.prepare import Prepared
from fastsft.data.templates import NamedTemplate
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError, TrainError
from fastsft.recipe import Recipe
from fastsft.run import Run, create, write_atomically

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

SYNTHETIC = "the base is synthetic: its weights are random, to measure speed and memory on"


def prepare_rows(
    recipe: Recipe, base: bases.Base, progress: Any = None, *, max_faults: int | None = None
) -> Prepared:
    """The recipe's rows for this base, encoded and proved; from the cache where they lie there.

    Reading ends early at `max_faults` bad rows.  Raises RecipeError without a source, DataError
    for files that cannot be read; what is wrong with rows is in the report.
    """
    files = sources.input_files(recipe)
    template = named_template(recipe, base)
    before = [_stamp(file) for file in files or ()]
    name = None if files is None else cache.key(_depends(recipe, base, template), files)
    kept = cache.load(name) if name is not None else None
    if kept is not None:
        return _warned(kept, base)
    prepared = prepare.prepare(
        recipe,
        tokenizer(recipe, base),
        folder=cache.staging(),
        progress=progress,
        max_faults=max_faults,
    )
    for file, stamp in zip(files or (), before, strict=True):
        if _stamp(file) != stamp:
            raise DataError(
                "changed while it was read", where=str(file), hint="try again once it is still"
            )
    return _warned(prepared if name is None else cache.keep(name, prepared), base)


def _warned(prepared: Prepared, base: bases.Base) -> Prepared:
    """With a note where the base has learnt nothing, or not the tokens that the template writes."""
    used, warning = prepared.report.template, None
    if base.is_synthetic:
        warning = SYNTHETIC
    elif used is not None:
        warning = untrained.find(base.folder, used.written, used.stop_id, used.base_stop_ids)
    if warning is None:
        return prepared
    notes = (*prepared.report.notes, warning)
    return replace(prepared, report=replace(prepared.report, notes=notes))


def _depends(recipe: Recipe, base: bases.Base, template: NamedTemplate | None) -> list[str]:
    """What the prepared rows depend on, beside the files and the code."""
    given = None if template is None else (template.source, template.name)
    return [
        recipe.data.model_dump_json(),
        recipe.eval.model_dump_json(include={"path", "share"}),
        recipe.method,
        model_folder.read(base.folder, given).fingerprint,
        base.family.name,
    ]


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def named_template(recipe: Recipe, base: bases.Base) -> NamedTemplate | None:
    """The template that the recipe names; for raw text on a base without one, a plain one."""
    if recipe.data.template is not None:
        return templates.load(recipe.data.template)
    if recipe.method == "pretrain" and not model_folder.has_template(base.folder):
        return documents.PLAIN
    return None


def tokenizer(recipe: Recipe, base: bases.Base, run: Run | None = None) -> ChatTokenizer:
    """The base's tokenizer with the template that is trained, or was trained by a run."""
    template = named_template(recipe, base) if run is None else None
    if run is not None and run.template_path.is_file():
        source = run.template_path.read_text("utf-8")
        template = NamedTemplate(recipe.data.template or "template", source, None)
    return ChatTokenizer.load(base.folder, family=base.family, template=template)


def start(recipe: Recipe, base: bases.Base, prepared: Prepared, *, runs: Path, name: str) -> Run:
    """A run folder with recipe, tokens, ledger and manifest; nothing is trained yet."""
    run = create(runs, recipe, name=name)
    arrays.link(prepared.folder / prepare.TOKENS, run.tokens_path)
    prepared.ledger.write(run.folder)
    template = named_template(recipe, base)
    if template is not None:
        write_atomically(run.template_path, template.source)
    gpu = hardware.gpu()
    run.update_manifest(
        {
            "fastsft": __version__,
            "python": platform.python_version(),
            "gpu": gpu.as_dict() if gpu else None,
            "base": {
                "name": recipe.model.base,
                "commit": base.commit,
                "is_synthetic": base.is_synthetic,
            },
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
        "data": _data(recipe),
        "tokens": tokens,
        "base": base.fingerprint,
        "stack": {name: _version(name) for name in STACK},
    }


def _data(recipe: Recipe) -> dict[str, str]:
    """A hash of every file that the sources consist of; what is gone is "missing"."""
    try:
        files = sources.input_files(recipe) or []
    except DataError as error:
        return {error.where or "data": "missing"}
    return {str(file): _file_hash(file) for file in files}


def _file_hash(file: Path) -> str:
    return cache.file_digest(file).hex() if file.is_file() else "missing"


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
