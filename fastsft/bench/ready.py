"""Makes a bench ready to run: recipes, base, tokens, machine.  What cannot work is refused here."""

import json
import platform
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from fastsft import base as bases
from fastsft import console, demo, hardware, plan, request, shapes, start, synthetic
from fastsft.base import Base
from fastsft.bench import arms, machine
from fastsft.bench import order as orders
from fastsft.bench.arms import ArmPlan
from fastsft.bench.measured import Subject
from fastsft.bench.order import Layout
from fastsft.bench.running import Arm, Bench
from fastsft.data import arrays, prepare, sources
from fastsft.data.arrays import Writer
from fastsft.data.ledger import Ledger
from fastsft.data.prepare import Prepared
from fastsft.data.report import Report
from fastsft.data.together import MAX_FAULTS
from fastsft.engine import settings
from fastsft.engine.settings import Device
from fastsft.errors import DataError, RecipeError
from fastsft.hardware import Gpu
from fastsft.recipe import Recipe
from fastsft.shapes import Shape

DEMO_ROWS = Path(demo.__file__).parent / "train.jsonl"
"""What a tiny base is trained on where no data is named."""


@dataclass(frozen=True)
class Order:
    """What is to be benched."""

    recipe: str
    data: Path | None
    overrides: Sequence[str]
    against: str | None
    steps: int
    warmup: int
    repeats: int
    is_synthetic: bool = False
    vram_cap_gib: float | None = None
    with_export: bool = False

    @property
    def all_steps(self) -> int:
        """Of each process."""
        return self.steps + self.warmup


def recipe_of(order: Order) -> Recipe:
    """The recipe with its data: what was named, the demo's for a tiny base, or random tokens'.

    Raises RecipeError where there is no data, or both random tokens and data.
    """
    if order.is_synthetic and order.data is not None:
        raise RecipeError(
            "random tokens are trained on a synthetic base, no data",
            where="--data",
            hint="leave out --data, or --synthetic",
        )
    recipe = request.load(order.recipe, order.data, order.overrides, verb="bench")
    if order.is_synthetic:
        data = recipe.data.model_copy(update={"path": "synthetic", "sources": (), "replay": None})
        return recipe.model_copy(update={"data": data})
    if recipe.data.path or recipe.data.sources:
        return recipe
    if not recipe.model.base.startswith(bases.TINY):
        raise RecipeError(
            "no data is named",
            where="bench",
            hint="pass --data rows.jsonl, or --synthetic for random weights and tokens",
        )
    return request.load(order.recipe, DEMO_ROWS, order.overrides, verb="bench")


def plans_of(order: Order, recipe: Recipe, device: Device) -> list[ArmPlan]:
    """The arms; what this machine cannot honour is refused."""
    name = request.short_name(order.recipe)
    found = arms.plan(name, recipe, order.against, steps=order.all_steps, device=device)
    for arm in found:
        settings.resolve(arm.recipe, device, rows=1)
    if order.vram_cap_gib is not None and device.kind == "cpu":
        raise RecipeError(
            "there is no GPU here whose memory could be capped",
            where="--vram-cap",
            hint="leave it out on a CPU",
        )
    return found


@contextmanager
def ready(order: Order, *, bench: str) -> Iterator[Bench]:
    """The bench, with everything that its processes need.

    Raises RecipeError and DataError for what cannot be benched, before any process runs.
    """
    device, recipe = settings.here(), recipe_of(order)
    plans = plans_of(order, recipe, device)
    with tempfile.TemporaryDirectory(prefix="fastsft-bench-tokens-") as folder:
        if order.is_synthetic:
            base = _random_base(order, plans)
            lengths = np.full(order.all_steps, recipe.data.max_tokens)
        else:
            base, prepared = _real(plans[0].recipe)
            lengths = prepared.train.lengths
        plans = _settled(order, recipe, base, lengths, device)
        if order.is_synthetic:
            prepared = _random_rows(plans, base, Path(folder), order.all_steps)
        yield Bench(
            subject=_subject(order, recipe, base, bench),
            arms=[_arm(arm, base, prepared, device, order.all_steps) for arm in plans],
            prepared=prepared,
            repeats=order.repeats,
            with_export=order.with_export,
        )


def _settled(
    order: Order, recipe: Recipe, base: Base, lengths: ArrayLike, device: Device
) -> list[ArmPlan]:
    """The arms with each `auto` of the planner's as a value: the first recipe's, for its peer too.

    Two engines get values that both have, or the better equipped one would be compared at its own.
    The base is the random one where that is trained.
    """
    gpu, shape = _card(order), shape_of(base)
    told: tuple[str, ...] = ()
    if order.against in arms.ENGINES:
        by_both = plan.settle(arms.by_both_engines(recipe), shape, gpu, lengths).recipe
        settled, told = arms.pinned(recipe, by_both, plan.opened(recipe))
    else:
        settled = plan.settle(recipe, shape, gpu, lengths).recipe
    found = []
    for arm in plans_of(order, settled, device):
        arm = replace(arm, changes=(*told, *arm.changes))
        arm = replace(arm, recipe=plan.settle(arm.recipe, shape, gpu, lengths).recipe)
        found.append(_on(arm, base) if order.is_synthetic else arm)
    return found


def _card(order: Order) -> Gpu | None:
    """The GPU that is here, as small as it is to stand for."""
    gpu = hardware.gpu()
    if gpu is None or order.vram_cap_gib is None:
        return gpu
    cap = int(order.vram_cap_gib * 2**30)
    return replace(
        gpu, memory_bytes=min(gpu.memory_bytes, cap), free_bytes=min(gpu.free_bytes, cap)
    )


def _real(recipe: Recipe) -> tuple[Base, Prepared]:
    sources.parts(recipe)
    with console.spinner(f"base {recipe.model.base}"):
        base = bases.resolve(recipe.model)
    with console.row_counter("reading and checking rows") as progress:
        prepared = start.prepare_rows(recipe, base, progress, max_faults=MAX_FAULTS)
    prepared.require()
    return base, prepared


def shape_of(base: Base) -> Shape | None:
    """The base's sizes; None where they cannot be told."""
    try:
        return shapes.of(json.loads((base.folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, DataError):
        return None


def stored_in(folder: Path) -> str | None:
    """How a base's files hold its weights, `nf4` or a dtype; None where the config does not say."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if "quantization_config" in config:
        return "nf4"  # `base.check_config` takes no other
    named = config.get("dtype") or config.get("torch_dtype")
    return named if named in ("bfloat16", "float16", "float32") else None


def _random_base(order: Order, plans: Sequence[ArmPlan]) -> Base:
    """The base's shape with random weights: in 4 bits where every arm trains in those."""
    model = plans[0].recipe.model
    shape = shapes.of_base(model.base)
    if shape is None:
        found = bases.resolve(model, needs_weights=False)
        shape = shapes.of(bases.check_config(found.folder))
    held = {(arm.recipe.model.quantization, arm.recipe.model.double_quant) for arm in plans}
    is_nf4 = len(held) == 1 and model.quantization == "nf4" and not order.with_export
    with console.byte_bar(f"random weights of {shape.name}") as progress:
        folder = synthetic.folder_for(
            shape, nf4=is_nf4, double_quant=model.double_quant, progress=progress
        )
    return bases.resolve(model.model_copy(update={"base": str(folder), "revision": None}))


def _on(arm: ArmPlan, base: Base) -> ArmPlan:
    model = arm.recipe.model.model_copy(update={"base": str(base.folder), "revision": None})
    return replace(arm, recipe=arm.recipe.model_copy(update={"model": model}))


def _random_rows(plans: Sequence[ArmPlan], base: Base, folder: Path, steps: int) -> Prepared:
    """Random rows as long as the recipe allows, as many as the steps take."""
    recipe, shape = plans[0].recipe, shape_of(base)
    count = steps * max(arm.recipe.train.step_rows for arm in plans)
    rows = synthetic.token_rows(
        shape.vocab if shape else 2,
        rows=count,
        length=recipe.data.max_tokens,
        seed=recipe.train.seed,
    )
    writer = Writer(folder / prepare.TOKENS)
    writer.append(rows.input_ids, rows.trained)
    writer.finish(rows.index, rows.index.take(np.zeros(0, dtype=np.int64)))
    kept, held_out = arrays.load(folder / prepare.TOKENS)
    ledger = Ledger(rows_in=count, train=count, entries=(), notes=("random tokens",))
    return Prepared(folder, kept, held_out, ledger, _no_report(recipe, count, rows.tokens))


def _no_report(recipe: Recipe, rows: int, tokens: int) -> Report:
    """Random tokens have nothing to report."""
    return Report(
        recipe="",
        method=recipe.method,
        template=None,
        max_tokens=recipe.data.max_tokens,
        sources=(),
        totals={"rows_in": rows},
        samples=(),
        tokens=tokens,
        trained_tokens=tokens // 2,
        stop_share=0.0,
        lengths=None,
        scripts={},
        steps_per_epoch=0,
        total_steps=0,
        batching=None,
        findings=(),
        notes=(),
        faults=(),
        refused=(),
        seconds=0.0,
        from_cache=False,
    )


def _arm(arm: ArmPlan, base: Base, prepared: Prepared, device: Device, steps: int) -> Arm:
    recipe, rows = arm.recipe, prepared.train
    items = settings.items(recipe, device, rows.lengths)
    resolved = settings.resolve(recipe, device, rows=items)
    layout = Layout(
        micro_batch_rows=recipe.train.micro_rows,
        accumulation_steps=recipe.train.accumulation_steps,
        batching=resolved.batching,
        max_tokens=recipe.data.max_tokens,
        seed=recipe.train.seed,
        pad_id=start.tokenizer(recipe, base).pad_id,
    )
    return Arm(arm, resolved, orders.expected(rows, layout, steps=steps))


def _subject(
    asked: Order,
    recipe: Recipe,
    base: Base,
    bench: str,
) -> Subject:
    name = request.short_name(asked.recipe)
    shape = shape_of(base)
    return Subject(
        bench=bench,
        recipe=name,
        base=base,
        base_name=f"synthetic:{shape.name if shape else name}"
        if base.is_synthetic
        else recipe.model.base,
        base_stored=stored_in(base.folder),
        is_synthetic=base.is_synthetic,
        shape=shape,
        overrides=tuple(asked.overrides),
        has_data=asked.data is not None,
        vram_cap_gib=asked.vram_cap_gib,
        warmup=asked.warmup,
        steps=asked.steps,
        gpu=machine.gpu(),
        cpu=machine.cpu(),
        system=machine.system(),
        python=platform.python_version(),
        versions=machine.versions(),
        commit=machine.commit(),
    )


def folder_for(out: Path, recipe: str) -> Path:
    """A new folder for the results: OUT/results/<device>/<time>-<recipe>.

    Raises DataError when it cannot be made.
    """
    gpu = hardware.gpu()
    device = slug(gpu.name if gpu else f"cpu {machine.cpu().name}")
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(request.short_name(recipe))}"
    parent = (out / "results" / device).absolute()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for name in (stamp, *(f"{stamp}-{number}" for number in range(2, 100))):
            if not (parent / name).exists():
                (parent / name).mkdir()
                return parent / name
    except OSError as error:
        raise DataError(
            f"results cannot be kept there: {error.strerror or error}",
            where=str(out),
            hint="pass --out with a folder you can write to",
        ) from error
    raise DataError("too many results of this second", where=str(parent), hint="try again")


def slug(name: str) -> str:
    """A name as part of a path: small letters, digits, dots and dashes."""
    plain = re.sub(r"\((r|tm)\)|@.*", "", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.") or "unknown"
