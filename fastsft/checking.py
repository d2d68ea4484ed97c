"""The verb `check`: proves what a recipe would train, and shows it.  Trains nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastsft import base as bases
from fastsft import console, plan, report_html, report_view, request, run, start
from fastsft.data import one_row, pack, sources
from fastsft.data.prepare import Prepared
from fastsft.data.report import Batching, Report
from fastsft.engine import settings
from fastsft.errors import RecipeError
from fastsft.recipe import Recipe

HOPELESS = 100_000
"""Faulty rows after which reading on would tell nothing new."""
ONE_EPOCH = {"steps": None, "epochs": 1}
Lengths = NDArray[np.int64]


def check(
    name: str | None,
    data: Path | None,
    overrides: Sequence[str],
    *,
    json: bool,
    html: Path | None,
    row: str | None,
) -> None:
    """Prove what a recipe would train, without training it.

    Raises SystemExit(2) once it has shown what refuses the data.
    """
    recipe = request.load(name, data, overrides, verb="check")
    sources.parts(recipe)
    with console.spinner(f"tokenizer of {recipe.model.base}"):
        base = bases.resolve(recipe.model, needs_weights=False)
    if row is not None:
        _show_row(recipe, base, row, json=json)
        return
    with console.row_counter("reading and checking rows") as progress:
        prepared = start.prepare_rows(recipe, base, progress, max_faults=HOPELESS)
    recipe = plan.settled_thriftily(recipe)
    report = _with_steps(recipe, prepared, name=request.short_name(name or ""))
    if html is not None:
        _write_page(report, html)
    if json:
        console.as_json(report.as_dict())
    else:
        report_view.show(report)
    if report.refused:
        raise SystemExit(2)


def _show_row(recipe: Recipe, base: bases.Base, place: str, *, json: bool) -> None:
    """One row in full, as the model will see it."""
    sample, facts = one_row.show_row(recipe, start.tokenizer(recipe, base), place)
    if json:
        console.as_json({"where": sample.where, "segments": sample.segments, **facts})
    else:
        report_view.row(sample, facts)


def _with_steps(recipe: Recipe, prepared: Prepared, *, name: str) -> Report:
    """The report with what depends on the device."""
    device, lengths = settings.here(), prepared.train.lengths
    items = settings.items(recipe, device, lengths)
    epoch = recipe.model_copy(update={"train": recipe.train.model_copy(update=ONE_EPOCH)})
    return replace(
        prepared.report,
        recipe=name,
        steps_per_epoch=settings.total_steps(epoch, items),
        total_steps=settings.total_steps(recipe, items),
        batching=_batching(recipe, device, lengths) if len(lengths) else None,
    )


def _batching(recipe: Recipe, device: settings.Device, lengths: Lengths) -> Batching:
    budget, train = recipe.data.max_tokens, recipe.train
    shares = pack.efficiency(lengths, budget=budget, batch_rows=train.micro_rows, seed=train.seed)
    return Batching(
        padded=shares.padded,
        grouped=shares.grouped,
        packed=shares.packed,
        sequences=len(pack.pack(lengths, budget)),
        chosen=settings.batching(recipe, device),
    )


def _write_page(report: Report, path: Path) -> None:
    try:
        run.write_atomically(path, report_html.page(report))
    except OSError as error:
        raise RecipeError(
            f"cannot be written: {error.strerror}", where=f"--html {path}", hint="name another file"
        ) from error
    console.note(f"page: {path}")
