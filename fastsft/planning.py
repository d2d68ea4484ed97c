"""The verb `plan`: whether a recipe fits a card, and what would be fastest.  Trains nothing."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastsft import base as bases
from fastsft import cards, console, estimate, hardware, host, plan_words, request, shapes, start
from fastsft import history as past
from fastsft import plan as planner
from fastsft.cards import Card
from fastsft.data import sources
from fastsft.data.together import MAX_FAULTS
from fastsft.errors import DeviceError, RecipeError
from fastsft.hardware import gib
from fastsft.history import Entry
from fastsft.plan import Plan
from fastsft.recipe import Recipe
from fastsft.shapes import Shape

HISTORY = ("run", "device", "what", "predicted", "measured", "error")
UNITS = {
    "allocated_bytes": "allocated",
    "reserved_bytes": "reserved",
    "process_bytes": "process",
    "host_bytes": "host RAM",
    "step_s": "s a step",
}


def plan(
    name: str | None,
    data: Path | None,
    overrides: Sequence[str],
    *,
    gpu: str | None,
    vram_gib: float | None,
    json: bool,
) -> None:
    """Say whether a recipe fits a card and what is fastest; the answer is the `--set` words.

    Raises SystemExit(3) once it has said why nothing fits, and what would have to change.
    """
    recipe = request.load(name, data, overrides, verb="plan")
    here = hardware.gpu() if gpu is None and vram_gib is None else None
    card = _card(gpu, vram_gib, here)
    has_rows = bool(recipe.data.path or recipe.data.sources)
    lengths, share, folder = _rows(recipe) if has_rows else (None, 1.0, None)
    shape = shape_of(recipe) if folder is None else shape_in(folder)
    local = Path(recipe.model.base).expanduser()
    if folder is None and local.is_dir():
        folder = local
    made = planner.plan(
        recipe,
        shape,
        card,
        lengths=lengths,
        trained_share=share,
        free_bytes=here.free_bytes if here else None,
        host=host.here() if here else None,
        corrections=past.learnt(),
        stored=estimate.stored_weights(folder, recipe) if folder is not None else None,
    )
    if json:
        console.as_json(plan_words.as_dict(made))
    else:
        _show(made, name=request.short_name(name or ""))
    if made.chosen is None:
        raise SystemExit(DeviceError.exit_code)


def _card(gpu: str | None, vram_gib: float | None, here: hardware.Gpu | None) -> Card:
    if gpu is not None and vram_gib is not None:
        raise RecipeError("give --gpu or --vram, not both", where="plan", hint="leave one out")
    if gpu is not None:
        return cards.find(gpu)
    if vram_gib is not None:
        return cards.of_size(vram_gib)
    if here is None:
        raise DeviceError(
            "no GPU is here to plan for",
            where="plan",
            hint=f"name one: --gpu {', '.join(cards.CARDS)}; or --vram GIB for any other",
        )
    return cards.of_name(here.name, here.memory_bytes)


def shape_of(recipe: Recipe) -> Shape:
    """The sizes of the recipe's base: from its folder, else known here, else its config.

    Raises RecipeError when the base cannot be had, DataError when its config tells no sizes.
    """
    known = shapes.of_base(recipe.model.base)
    is_here = Path(recipe.model.base).expanduser().is_dir()
    if known is not None and not is_here:
        return known
    return shape_in(bases.resolve(recipe.model, needs_weights=False).folder)


def shape_in(folder: Path) -> Shape:
    """The sizes that a model folder's config tells."""
    return shapes.of(bases.check_config(folder))


def _rows(recipe: Recipe) -> tuple[Any, float, Path]:
    """Lengths of the rows, the share of their tokens that is trained, the base's folder."""
    sources.parts(recipe)
    with console.spinner(f"tokenizer of {recipe.model.base}"):
        base = bases.resolve(recipe.model, needs_weights=False)
    with console.row_counter("reading and checking rows") as progress:
        prepared = start.prepare_rows(recipe, base, progress, max_faults=MAX_FAULTS)
    prepared.require()
    report = prepared.report
    share = report.trained_tokens / max(report.tokens, 1)
    return prepared.train.lengths, share, base.folder


def _show(made: Plan, *, name: str) -> None:
    console.note(f"{name} on {made.card.name}; every figure is an estimate")
    console.explained(plan_words.facts(made))
    console.aside(plan_words.COLUMNS, plan_words.table(made), first=plan_words.CHOSEN)
    for text in made.notes:
        console.note(f"note: {text}")
    if made.chosen is None:
        for text in plan_words.refusal(made):
            console.note(text)
        return
    words = plan_words.words(made)
    if words:
        console.answer(words)


def history(*, json: bool) -> None:
    """Predicted against measured, for each finished run that this machine remembers."""
    known = past.entries()
    if json:
        console.as_json([{**asdict(e), "ratio": _ratios(e)} for e in known])
        return
    if not known:
        console.note(f"no finished run yet; `fastsft train` writes each one into {past.path()}")
        return
    console.table(HISTORY, [row for entry in known for row in _compared(entry)])


def _ratios(entry: Entry) -> dict[str, float | None]:
    return {key: entry.ratio(key) for key in UNITS}


def _compared(entry: Entry) -> list[tuple[str, ...]]:
    """A line for each figure that was predicted and measured; the error is signed.

    Above zero is more predicted than measured.
    """
    found = []
    for key, unit in UNITS.items():
        ratio = entry.ratio(key)
        if ratio is None:
            continue
        shown = [_figure(part[key], key) for part in (entry.predicted, entry.measured)]
        found.append((entry.run, _short(entry.device), unit, *shown, f"{1 / ratio - 1:+.1%}"))
    return found


def _figure(value: float, key: str) -> str:
    return gib(value) if key.endswith("_bytes") else f"{value:.3g} s"


def _short(device: str) -> str:
    return device.removeprefix("NVIDIA ").removeprefix("GeForce ")
