"""Every setting that a card could train a recipe with: what it needs, how long it takes.  Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastsft.estimate import Memory, Setting, setting_of
from fastsft.plan_problem import Allowed, Problem
from fastsft.plan_rows import Batches
from fastsft.recipe import Recipe
from fastsft.roofline import Time, micro_batch_time
from fastsft.shapes import Shape

OFFLOAD_COST = 0.019
"""Time that moving hidden states to the host adds.  Source: Unsloth's long-context post (Apr 2024):
+1.9 %, Mistral-7B, all layers."""
TIE = 0.02
"""Times this near are alike: the formulas do not tell them apart, other merits do."""


MOST = 4096
"""Rows of a micro-batch, and micro-batches of a step, that a recipe may have."""


@dataclass(frozen=True)
class Candidate:
    """One setting on one card: the memory it needs, its time, and why it was not chosen.

    `need_bytes`: of the card, with the margin for what was not measured here yet; `spare_bytes`:
    what is left of the usable memory, negative where it does not fit.  `token_s`: seconds of a real
    token, the middle of the range; `waits`: the card waits for Python.  `lost` is empty for the
    chosen one.
    """

    setting: Setting
    accumulation_steps: int
    packing: bool
    memory: Memory
    need_bytes: int
    spare_bytes: int
    batches: Batches
    time: Time | None
    token_s: float
    is_short_of_host: bool = False
    waits: bool = False
    lost: str = ""

    @property
    def fits(self) -> bool:
        """Whether card and host have the memory for it."""
        return self.spare_bytes >= 0 and not self.is_short_of_host

    @property
    def offloads(self) -> bool:
        """Whether hidden states go to the host."""
        return _offloads(self.setting, self.memory)

    def changes(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe's keys with the values of this setting, where they differ."""
        train, own = recipe.train, self.values
        now = {
            "model.quantization": recipe.model.quantization,
            "train.gradient_checkpointing": train.gradient_checkpointing,
            "train.checkpoint_skip_layers": train.checkpoint_skip_layers,
            "train.micro_batch_rows": train.micro_batch_rows,
            "train.accumulation_steps": train.accumulation_steps,
            "train.packing": train.packing,
        }
        differing = {key: value for key, value in own.items() if now[key] != value}
        if train.packing == "auto" and self.packing:
            differing.pop("train.packing", None)
        if train.rows_per_step is not None:
            differing["train.rows_per_step"] = None
        return differing

    @property
    def values(self) -> dict[str, Any]:
        """Every planner-owned key and its value in this setting."""
        return {
            "model.quantization": self.setting.quantization,
            "train.gradient_checkpointing": self.setting.checkpointing,
            "train.checkpoint_skip_layers": self.setting.skip_layers,
            "train.micro_batch_rows": self.setting.rows,
            "train.accumulation_steps": self.accumulation_steps,
            "train.packing": self.packing,
        }


def candidates(problem: Problem, allowed: Allowed) -> list[Candidate]:
    """Every setting that is allowed, with the most layers that fit where some may be skipped."""
    return [
        _candidate(problem, setting, packing=packing, items=items)
        for packing in allowed.packings
        if (items := problem.step_items(packing=packing)) is not None
        for rows in _divisors(items, allowed.rows)
        for setting in _settings(problem, allowed, rows, packing=packing)
    ]


def _divisors(items: int, asked: int | None) -> list[int]:
    if asked is not None:
        return [asked]
    allowed = range(-(-items // MOST), min(items, MOST) + 1)
    return [rows for rows in allowed if items % rows == 0]


def _settings(problem: Problem, allowed: Allowed, rows: int, *, packing: bool) -> Iterator[Setting]:
    length = problem.batches(rows, packing=packing).length
    start = replace(setting_of(problem.recipe, length=length, rows=rows), skip_layers=0)
    for quantization in allowed.quantizations:
        whole = replace(start, quantization=quantization, checkpointing="none")
        has_room = "none" in allowed.checkpointings and problem.need(whole) <= problem.usable_bytes
        for kind in allowed.checkpointings:
            base = replace(whole, checkpointing=kind)
            for layers in _skips(problem, allowed, base, has_room=has_room):
                yield replace(base, skip_layers=layers)


def _skips(problem: Problem, allowed: Allowed, base: Setting, *, has_room: bool) -> list[int]:
    """No layer, and as many as fit where all together do not."""
    if base.checkpointing == "none" or has_room:
        return [0]
    if allowed.skip_layers is not None:
        return [allowed.skip_layers]
    if base.engine != "unsloth":
        return [0]
    most = most_layers(problem.shape, base, problem.usable_bytes, problem.need)
    return [0, most] if most > 0 else [0]


def most_layers(
    shape: Shape, setting: Setting, usable_bytes: int, need: Callable[[Setting], int]
) -> int:
    """Layers that can keep their activations while the setting still fits; never all of them.

    By halves: what finished runs say of near settings may make a step between two of them.
    """
    low, high = 0, shape.layers - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = need(replace(setting, skip_layers=middle)) <= usable_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _candidate(problem: Problem, setting: Setting, *, packing: bool, items: int) -> Candidate:
    batches = problem.batches(setting.rows, packing=packing)
    found, need = problem.memory(setting), problem.need(setting)
    time = micro_batch_time(
        problem.shape,
        setting,
        problem.rated,
        tokens=round(batches.slots),
        pairs=round(batches.pairs),
        head_rows=round(batches.real * problem.trained_share),
    )
    host = problem.host
    return Candidate(
        setting=setting,
        accumulation_steps=max(1, items // setting.rows),
        packing=packing,
        memory=found,
        need_bytes=need,
        spare_bytes=problem.usable_bytes - need,
        batches=batches,
        time=time if problem.is_timed else None,
        token_s=_token_s(time, found, setting, problem.shape) / batches.real,
        is_short_of_host=host is not None and found.pinned > host.available_bytes,
        waits=time is not None and time.is_host_bound,
    )


def _offloads(setting: Setting, found: Memory) -> bool:
    """Pinned memory alone does not tell: a paged optimizer has some too."""
    return setting.checkpointing == "unsloth" and found.pinned > 0 and not found.hidden_states


def _token_s(time: Time | None, found: Memory, setting: Setting, shape: Shape) -> float:
    """Middle of the range of a micro-batch's seconds, with what offloading costs."""
    if time is None:
        return 0.0
    share = setting.recomputed_layers(shape) / shape.layers if _offloads(setting, found) else 0.0
    return (time.low_s + time.high_s) / 2 * (1 + OFFLOAD_COST * share)


def best(found: Sequence[Candidate], recipe: Recipe) -> Candidate | None:
    """The fastest that fits; of those about as fast the one without offloading, then the one
    nearest to the recipe, then the one that leaves most memory."""
    fitting = [c for c in found if c.fits]
    if not fitting:
        return None
    fastest = min(c.token_s for c in fitting)
    alike = [c for c in fitting if c.token_s <= fastest * (1 + TIE)]
    return min(alike, key=lambda c: (c.offloads, len(c.changes(recipe)), c.need_bytes))


def thriftiest(found: Sequence[Candidate]) -> Candidate:
    """The one that needs least of the card."""
    return min(found, key=lambda c: (c.need_bytes, c.memory.host))
