"""What each verb does: calls the rooms in order, and says what happened."""

import json as jsons
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from fastsft import base as bases
from fastsft import (
    console,
    estimate,
    events,
    hardware,
    history,
    host,
    launch,
    plan,
    plan_words,
    recipe_file,
    report_words,
    request,
    run,
    shapes,
    start,
)
from fastsft.data import sources
from fastsft.data.prepare import Prepared
from fastsft.data.together import MAX_FAULTS
from fastsft.engine import settings
from fastsft.errors import DataError, OutOfMemory, RecipeError, TrainError
from fastsft.plan import Settled
from fastsft.recipe import Recipe
from fastsft.run import Run
from fastsft.sampler import Sampler

WATCH_EVERY_S = 0.25
"""A night needs no finer memory curve; `fastsft bench` looks more often."""


def train(name: str | None, data: Path | None, overrides: Sequence[str], runs: Path) -> None:
    """Train by a recipe, from the first check to the adapter."""
    recipe = request.load(name, data, overrides, verb="train")
    short = request.short_name(name or "")
    made = begin(recipe, runs, name=short)
    try:
        finish(made)
    except OutOfMemory as error:
        second = None if _has_steps(made) else plan.thriftier(recipe, made.recipe())
        if second is None:
            raise
        console.note(f"{error.what}: the plan was too bold; once more with every layer recomputed")
        finish(begin(second, runs, name=short))


def _has_steps(made: Run) -> bool:
    return any(isinstance(event, events.Step) for event, _ in events.read(made.events_path))


def begin(recipe: Recipe, runs: Path, *, name: str) -> Run:
    """A run ready to train; what cannot work is refused before anything is written."""
    device = settings.here()
    settings.resolve(recipe, device, rows=1)
    sources.parts(recipe)
    with console.spinner(f"base {recipe.model.base}"):
        base = bases.resolve(recipe.model)
    with console.row_counter("reading and checking rows") as progress:
        prepared = start.prepare_rows(recipe, base, progress, max_faults=MAX_FAULTS)
    prepared.require()
    settled = settle(recipe, base, prepared)
    recipe = settled.recipe
    items = settings.items(recipe, device, prepared.train.lengths)
    made = start.start(recipe, base, prepared, runs=runs, name=name)
    if settled.planned:
        made.update_manifest({"planned": settled.planned})
    _tell(settled, prepared, made, settings.total_steps(recipe, items))
    return made


def settle(recipe: Recipe, base: bases.Base, prepared: Prepared) -> Settled:
    """The recipe with every planner-owned `auto` settled for the GPU that is here.

    Raises DeviceError, with cures, where an `auto` finds nothing that fits.
    """
    try:
        shape = shapes.of(bases.check_config(base.folder))
    except DataError:
        shape = None  # a base that the planner cannot read may train all the same
    report = prepared.report
    return plan.settle(
        recipe,
        shape,
        hardware.gpu(),
        prepared.train.lengths,
        trained_share=report.trained_tokens / max(report.tokens, 1),
        host=host.here(),
        corrections=history.learnt(),
        stored=estimate.stored_weights(base.folder, recipe),
    )


def _tell(settled: Settled, prepared: Prepared, made: Run, steps: int) -> None:
    """What will be trained, before it is."""
    recipe, gpu = settled.recipe, hardware.gpu()
    if settled.warning is not None:
        console.note(f"{settled.warning}; the preflight will tell before step 1")
    if gpu is not None and gpu.memory_bytes < 0.95 * recipe.model.min_vram_gib * 2**30:
        console.note(
            f"this recipe is meant for {recipe.model.min_vram_gib:g} GiB, {gpu.name} has "
            f"{hardware.gib(gpu.memory_bytes)}; the preflight will tell before step 1"
        )
    report = prepared.report
    share = report.trained_tokens / max(report.tokens, 1)
    for text in report.notes:
        console.note(f"note: {text}")
    for finding in report.findings:
        console.note(f"{finding.action}: {finding.what}")
    for sample in report.samples[:1]:
        console.sample(sample.segments, where=sample.where)
    console.facts(
        {
            "run": str(made.folder),
            "engine": recipe.engine,
            "rows": report_words.adds_up(report),
            "tokens": f"{report.tokens:,} an epoch, {share:.0%} trained",
            "steps": f"{steps} of {recipe.train.micro_batch_rows} x "
            f"{recipe.train.accumulation_steps} rows",
            **plan_words.settled(settled),
        }
    )


def finish(made: Run, *, answer: bool = True) -> None:
    """Train a run that is ready, or go on with one that was stopped."""
    try:
        sampler = Sampler(every_s=WATCH_EVERY_S)
        with console.TrainView(sampler) as view:
            last = launch.train(made, view, sampler=sampler)
    except KeyboardInterrupt:
        raise _interrupted(made, "ended before it could save") from None
    except OutOfMemory:
        history.record(made)
        raise
    if isinstance(last, events.Stopped):
        raise _interrupted(made, f"stopped at step {last.step} of {last.total_steps}, saved")
    if isinstance(last, events.Finished):
        history.record(made)
        best = f", best at step {last.best_step}" if last.best_step is not None else ""
        console.note(f"finished: {last.step} steps{best}, {last.seconds:.0f} s, {last.result}")
    if answer:
        console.answer(str(made.folder))


def _interrupted(made: Run, what: str) -> SystemExit:
    """Say how to go on; the exit code of Ctrl-C."""
    console.note(what)
    console.note(f"go on with: fastsft train --resume {made.folder}")
    return SystemExit(128 + signal.SIGINT)


def resume(folder: Path, allowed: Sequence[str], *, given: Sequence[object]) -> None:
    """Go on with a stopped run; a finished one is left as it is."""
    if any(given):
        raise RecipeError(
            "takes no recipe, --data or --set: the run has its own",
            where="--resume",
            hint="start a new run to train something else",
        )
    parts = ("recipe", "data", "base", "tokens", "stack")
    for part in allowed:
        if part not in parts:
            raise RecipeError(
                f"{part} is nothing that can change",
                where="--allow-change",
                hint=f"one of {', '.join(parts)}",
            )
    made = run.open_run(folder)
    if made.is_finished:
        console.note("finished already; nothing to do")
        console.answer(str(made.folder))
        return
    for part in start.check_unchanged(made, allowed=allowed):
        console.note(f"{part} changed since the run began; allowed")
    finish(made)


def _finished(folder: Path) -> Run:
    made = run.open_run(folder)
    if not made.is_finished:
        raise TrainError(
            "the run is not finished",
            where=str(folder),
            hint=f"fastsft train --resume {folder}",
        )
    return made


def chat(
    folder: Path, *, base: bool, system: str | None, max_tokens: int, temperature: float
) -> None:
    """Talk to a run's model, one message a line, until the input ends."""
    from fastsft.sampling import model

    made = _finished(folder)
    opening = [{"role": "system", "content": system}] if system is not None else []
    messages = list(opening)
    with ExitStack() as stack:
        with console.spinner("loading the model"):
            sampler = stack.enter_context(model(made, base=base))
        console.note("one message a line; /new forgets what was said, Ctrl-D ends")
        for asked in console.questions():
            if asked == "/new":
                messages = list(opening)
                continue
            messages.append({"role": "user", "content": asked})
            pieces = sampler.stream(messages, max_tokens=max_tokens, temperature=temperature)
            messages.append({"role": "assistant", "content": console.stream(pieces)})


def recipes(*, schema: bool, show: str | None, json: bool) -> None:
    """The shipped recipes, one of them, or the schema."""
    from fastsft import reference

    if schema and json:
        console.as_json(Recipe.model_json_schema())
    elif schema:
        console.table(("key", "type", "default", "meaning"), reference.plain())
    elif show is not None:
        console.answer(recipe_file.dump(recipe_file.load(show)).rstrip())
    else:
        _list(json=json)


BITS = {"nf4": "4-bit", "none": "16-bit", "auto": "4- or 16-bit"}


def _list(*, json: bool) -> None:
    found = {name: recipe_file.load(name) for name in recipe_file.shipped_names()}
    if json:
        console.as_json({name: jsons.loads(r.model_dump_json()) for name, r in found.items()})
        return
    rows = sorted(found.items(), key=lambda item: item[1].model.min_vram_gib)
    console.table(("recipe", "card", "base", "what"), [_row(*item) for item in rows])


def _row(name: str, recipe: Recipe) -> tuple[str, str, str, str]:
    card = f"{recipe.model.min_vram_gib:g} GiB" if recipe.model.min_vram_gib else "CPU"
    kind = BITS[recipe.model.quantization]
    return name, card, f"{recipe.model.base} ({kind})", recipe.description


def doctor(*, json: bool) -> None:
    """What the machine has, what it lacks and the cure."""
    from fastsft.doctor import LICENCES, examine

    found = examine()
    if json:
        console.as_json({"findings": [asdict(f) for f in found], "licences": LICENCES})
    else:
        console.table(
            ("", "what", "found", "cure"), [(f.state, f.name, f.what, f.cure) for f in found]
        )
        for line in LICENCES.values():
            console.note(line)
    if any(finding.state == "bad" for finding in found):
        raise SystemExit(3)
