"""Takes in a file of `fastsft bench --share`: everything that its own figures can prove or disprove
is reckoned again, and the rest must at least be possible.  Trusts no word of it."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench import results
from fastsft import cards, errors, flops
from fastsft.bench import gates, page, plots, ready, row, share, statistics
from fastsft.bench.row import Row, Summary
from fastsft.errors import DataError
from fastsft.hardware import gib

MAX_BYTES = 32 * 2**20
EXACT, NEAR = 1e-6, 0.02
"""Relative: what is the same arithmetic, and what two clocks or two counts may differ by."""
FLOPS_BAND = (0.9, 1.1)
PEAK = 1.10
"""Of a card's dense peak: GeForce cards boost above the clock that their peak is reckoned with.
Source: 224 TFLOP/s measured in bfloat16 on an RTX 5090, whose sheet says 209.5: 1.07 of it."""
A_DAY_S = 86400
PLAIN = re.compile(r"[\w .,:()@+/#-]{0,120}")
"""What a name or a version may be made of: it ends up in tables and in file names."""


@dataclass(frozen=True)
class Shared:
    """A shared file, read and of the right shape; nothing in it is believed yet."""

    rows: list[Row]
    summary: Summary
    recipes: Mapping[str, Any]


def add(path: Path, results: Path) -> Path:
    """File the bench under RESULTS/<device>/; its folder.

    Raises DataError naming everything that is wrong with it.
    """
    shared = read(path)
    found = list(faults(shared))
    if found:
        raise DataError(
            f"{len(found)} things do not hold:\n  - " + "\n  - ".join(found),
            where=path.name,
            hint="send the file as `fastsft bench --share` wrote it, or measure again",
        )
    return _filed(shared, results)


def read(path: Path) -> Shared:
    """The file's rows, summary and recipes.  Raises DataError when it is no shared bench."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {gib(MAX_BYTES)}")
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict) or record.get("kind") != share.KIND:
            raise ValueError(f"its kind is not {share.KIND!r}")
        if record.get("schema") != row.SCHEMA:
            raise ValueError(f"schema {record.get('schema')}, not {row.SCHEMA}")
        rows = [row.row(one) for one in record["rows"]]
        summary, recipes = row.summary(record["summary"]), record["recipes"]
        if not rows or not isinstance(recipes, dict):
            raise ValueError("no rows, or no recipes")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"not a file of `fastsft bench --share`: {what}",
            where=path.name,
            hint="fastsft bench RECIPE --share FILE writes one",
        ) from error
    return Shared(rows, summary, recipes)


def faults(shared: Shared) -> Iterator[str]:
    """Everything that is wrong, each as a line."""
    for check in (_personal, _one_bench, _recipes, _judged, _summed):
        yield from _checked(check, shared)
    for one in shared.rows:
        for check_row in (_counts, _times, _rates, _flops, _peaks, _memory):
            yield from (f"{_name(one)}: {fault}" for fault in _checked(check_row, one))


def _checked(check: Callable[[Any], Iterator[str]], of: object) -> list[str]:
    """A check's faults; figures that it cannot reckon with are one."""
    try:
        return list(check(of))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        told = f"{type(error).__name__}: {error}"[:80]
        return [f"its figures cannot be reckoned with ({told})"]


def _personal(shared: Shared) -> Iterator[str]:
    """Nothing of a person: no notes, no error text, and only plain names."""
    for one in shared.rows:
        if one.notes:
            yield f"{_name(one)}: has notes, which a shared row never has"
        if one.error not in (None, share.AN_ERROR) and not hasattr(errors, str(one.error)):
            yield f"{_name(one)}: its error has a text, where a shared row has a name"
        for text in one.identity.overrides:
            if not share.is_public(text):
                yield f"{_name(one)}: an override that is not shared: {text[:60]!r}"
    for text in _texts([_names(one) for one in shared.rows]):
        if not PLAIN.fullmatch(text) or text.startswith(("/", "~")):
            yield f"not a plain name: {text[:60]!r}"


def _names(one: Row) -> dict[str, Any]:
    return {key: text for key, text in row.as_dict(one)["identity"].items() if key != "overrides"}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _one_bench(shared: Shared) -> Iterator[str]:
    """All rows are of one bench on one machine, on the same tokens."""
    same: dict[str, Callable[[Row], object]] = {
        "bench": lambda one: one.identity.bench,
        "recipe": lambda one: one.identity.recipe,
        "GPU": lambda one: one.identity.gpu,
        "processor": lambda one: one.identity.cpu,
        "base": lambda one: one.identity.base,
        "tokens": lambda one: one.identity.tokens_sha256,
        "memory cap": lambda one: one.identity.vram_cap_gib,
        "number of steps": lambda one: (one.work.steps, one.work.warmup_steps),
    }
    for name, of in same.items():
        if any(of(one) != of(shared.rows[0]) for one in shared.rows):
            yield f"the rows have more than one {name}"
    places = [(one.identity.arm, one.identity.repeat) for one in shared.rows]
    if len(set(places)) < len(places):
        yield "a repeat of an arm is there twice"
    orders = [one.identity.order for one in shared.rows]
    if orders != sorted(set(orders)):
        yield "the rows are not in the order in which they ran"
    if not 1.6e9 < shared.rows[0].identity.time_s < time.time() + A_DAY_S:
        yield "measured at no possible time"


def _recipes(shared: Shared) -> Iterator[str]:
    """Each arm has its recipe, and the rows' hashes are of it."""
    for one in shared.rows:
        recipe = shared.recipes.get(one.identity.arm)
        if recipe is None:
            yield f"{_name(one)}: its arm's recipe is not there"
        elif _digest(recipe) != one.identity.recipe_hash:
            yield f"{_name(one)}: its recipe is not the one that was hashed"


def _digest(recipe: object) -> str:
    return sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _judged(shared: Shared) -> Iterator[str]:
    """The gates, reckoned again from the rows, say what the file says."""
    for one, judged in zip(shared.rows, gates.judged(shared.rows), strict=True):
        ours = {gate.name: gate.result for gate in judged.validity.gates}
        theirs = {gate.name: gate.result for gate in one.validity.gates}
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                here, there = ours.get(name, "no gate"), theirs.get(name, "no gate")
                yield f"{_name(one)}: gate {name}: the file says {there}, its figures {here}"
        if one.validity.is_valid != judged.validity.is_valid:
            yield f"{_name(one)}: is called {'' if one.validity.is_valid else 'not '}valid"
    if not any(one.validity.is_valid for one in shared.rows):
        yield "no row is valid, so nothing is measured"


def _summed(shared: Shared) -> Iterator[str]:
    """The summary follows from the rows."""
    ours = row.as_dict(statistics.summarise(shared.rows))
    theirs = row.as_dict(shared.summary)
    yield from (
        f"summary: {key} does not follow from the rows"
        for key in ours
        if key not in ("statement", "schema") and not _alike(ours[key], theirs[key])
    )


def _alike(one: object, other: object) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=EXACT) or (one != one and other != other)
    return one == other


def _counts(one: Row) -> Iterator[str]:
    """trained <= real <= slots, and as many losses, norms and times as steps."""
    work, steps = one.work, one.work.steps + one.work.warmup_steps
    if not 0 <= work.trained_tokens <= work.real_tokens <= work.slots:
        yield "trained, real and slots are not in that order"
    if not (len(one.losses) == len(one.grad_norms) == steps) and one.error is None:
        yield f"{len(one.losses)} losses and {len(one.grad_norms)} norms for {steps} steps"
    if len(one.time.steps_s) != work.steps and one.error is None:
        yield f"{len(one.time.steps_s)} times for {work.steps} measured steps"


def _times(one: Row) -> Iterator[str]:
    """The median is of the steps, and the steps fit into the process's life."""
    steps = one.time.steps_s
    if any(seconds <= 0 or not math.isfinite(seconds) for seconds in steps):
        yield "a step took no time, or none that is a number"
    elif steps and not _near(one.time.step_median_s, median(steps), EXACT):
        yield "the median step is not the steps' median"
    end = one.memory.marks.get("end")
    if end is not None and sum(steps) > end * (1 + NEAR):
        yield "the steps took longer than the process lived"


def _rates(one: Row) -> Iterator[str]:
    """Tokens over seconds are the rates."""
    seconds = sum(one.time.steps_s)
    pairs = {
        "trained tokens/s": (one.rates.trained_tokens_per_s, one.work.trained_tokens),
        "real tokens/s": (one.rates.real_tokens_per_s, one.work.real_tokens),
        "slots/s": (one.rates.slots_per_s, one.work.slots),
    }
    for name, (told, tokens) in pairs.items():
        if seconds > 0 and not _near(told, tokens / seconds, EXACT):
            yield f"{name} is not the tokens over the seconds"


def _flops(one: Row) -> Iterator[str]:
    """The arithmetic claimed is that of the model, between no recomputation and all of it."""
    told, seconds = one.rates.hardware_flops_per_s, sum(one.time.steps_s)
    shape = results.shape_of(one)
    if told is None or shape is None or seconds <= 0:
        return
    lora = shape.lora_params(one.settings.rank, one.settings.targets)
    least = flops.of_work(
        shape,
        lora_params=lora,
        tokens=one.work.real_tokens,
        head_rows=one.work.trained_tokens,
        pairs=one.work.attention_pairs,
        recomputed_layers=0,
    )
    most = flops.of_work(
        shape,
        lora_params=lora,
        tokens=one.work.slots,
        head_rows=one.work.slots,
        pairs=max(one.work.attention_pairs, one.work.slots * (one.settings.max_tokens + 1) // 2),
        recomputed_layers=shape.layers,
        trains_base=one.settings.parameters == "all",
    )
    low, high = FLOPS_BAND[0] * least.hardware, FLOPS_BAND[1] * (most.hardware + most.attention)
    if not low <= told * seconds <= high:
        yield f"{told * seconds:.3g} FLOP claimed; the model's are {low:.3g} to {high:.3g}"


def _peaks(one: Row) -> Iterator[str]:
    """Not faster than the card, nor than a matmul on it."""
    gpu, rates = one.identity.gpu, one.rates
    peak = cards.of_name(gpu.name, gpu.memory_bytes).peak_flops if gpu else None
    for name, told in (
        ("the work", rates.hardware_flops_per_s),
        ("the matmul", rates.matmul_flops_per_s),
    ):
        if peak and told and told > PEAK * peak:
            yield f"{name} at {told / 1e12:.0f} TFLOP/s, on a card of {peak / 1e12:.0f}"


def _memory(one: Row) -> Iterator[str]:
    """allocated <= reserved <= process <= the card, and the base's weights are in it."""
    memory, gpu = one.memory, one.identity.gpu
    names = ("allocated", "reserved", "process", "card")
    held = [memory.allocated_bytes, memory.reserved_bytes, memory.process_bytes]
    known = [
        (name, value)
        for name, value in zip(names, [*held, gpu.memory_bytes if gpu else None], strict=True)
        if value is not None
    ]
    for (name, less), (other, more) in pairwise(known):
        if less > more:
            yield f"more memory {name} ({gib(less)}) than {other} ({gib(more)})"
    params, bits = one.identity.base.params, 4 if one.settings.quantization == "nf4" else 16
    if params and memory.allocated_bytes is not None and memory.allocated_bytes < params * bits / 8:
        yield f"{gib(memory.allocated_bytes)} allocated: less than the weights alone"
    if gpu is None and any(value is not None for value in held):
        yield "memory of a GPU, and no GPU"


def _near(told: float | None, reckoned: float, tolerance: float) -> bool:
    return told is not None and math.isclose(told, reckoned, rel_tol=tolerance)


def _name(one: Row) -> str:
    return f"{one.identity.arm} {one.identity.repeat}"


def _filed(shared: Shared, results: Path) -> Path:
    """Rows, summary, pictures and page in a folder of their own, whole or not at all."""
    rows = gates.judged(shared.rows)
    summary = statistics.summarise(rows)
    print_of = sha256("".join(row.text(one) for one in rows).encode()).hexdigest()[:8]
    who = rows[0].identity
    device = who.gpu.name if who.gpu else f"cpu {who.cpu.name}"
    folder = results / ready.slug(device) / f"{ready.slug(summary.bench)}-{print_of}"
    if folder.exists():
        raise DataError("is filed already", where=str(folder), hint="add another bench")
    draft = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for one in rows:
        row.write(draft / f"{ready.slug(one.identity.arm)}-{one.identity.repeat}.json", one)
    row.write(draft / row.SUMMARY, summary)
    plots.draw(draft, rows, summary)
    page.write(draft, rows, summary)
    draft.rename(folder)
    return folder
