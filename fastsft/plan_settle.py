"""What `auto` becomes for the GPU that is here, and why.  No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import ArrayLike

from fastsft import plan_cures, plan_problem, plan_search
from fastsft.cards import of_name
from fastsft.errors import DeviceError
from fastsft.estimate import Memory, memory, setting_of
from fastsft.hardware import Gpu, gib
from fastsft.history import Entry
from fastsft.host import Host
from fastsft.plan_problem import Problem, described
from fastsft.plan_rows import Rows
from fastsft.plan_search import Candidate
from fastsft.recipe import Recipe
from fastsft.shapes import Shape

CPU_TOKENS = 4096
"""Tokens of a micro-batch on a CPU, where more at once are no faster.  Source: published runs are
bound by Python below some thousand tokens on a GPU alone (`roofline.HOST_S`)."""
THRIFTIEST = "what needs least; by the estimate nothing fits"


@dataclass(frozen=True)
class Settled:
    """A recipe whose planner-owned `auto` are values, and why each became what it did.

    `planned` is for the manifest; `warning`: what the user set may not fit.
    """

    recipe: Recipe
    why: dict[str, str]
    predicted: Memory | None
    planned: dict[str, Any]
    warning: str | None = None


def settle(
    recipe: Recipe,
    shape: Shape | None,
    gpu: Gpu | None,
    lengths: ArrayLike,
    *,
    trained_share: float = 1.0,
    host: Host | None = None,
    corrections: Sequence[Entry] = (),
    stored: Mapping[str, int] | None = None,
) -> Settled:
    """The recipe with every planner-owned `auto` as a value, for the GPU that is here.

    What the recipe names is left as it is, with a warning where it may not fit; so is what to
    recompute, which has a thriftiest kind whatever the estimate says.  On a CPU, or without a shape
    to plan by, the thrifty values.
    Raises DeviceError, with cures, where open bits or rows find nothing that fits.
    """
    if gpu is None:
        return _on_cpu(recipe, shape, lengths, stored or {})
    if shape is None:
        return _fallback(recipe, "nf4", "since the base's sizes cannot be read")
    card = of_name(gpu.name, gpu.memory_bytes)
    problem = plan_problem.problem_of(
        recipe, shape, card, lengths, gpu.free_bytes, host, corrections, stored or {}
    )
    problem = replace(problem, trained_share=trained_share)
    found = plan_search.candidates(problem, plan_problem.as_it_stands(problem))
    chosen = plan_search.best(found, recipe)
    warning = None
    if chosen is None:
        chosen = plan_search.thriftiest(found)
        warning = _refusal(problem, chosen)
        if {"model.quantization", "train.micro_batch_rows"} & set(opened(recipe)):
            raise _does_not_fit(problem, warning)
    values = {key: value for key, value in chosen.values.items() if key in opened(recipe)}
    why = {key: _why(key, chosen, found) if chosen.fits else THRIFTIEST for key in values}
    return Settled(
        recipe=_changed(recipe, values),
        why=why,
        predicted=chosen.memory,
        planned=_planned(problem, chosen, why),
        warning=warning,
    )


def settled_thriftily(recipe: Recipe) -> Recipe:
    """The recipe with open micro-batches as numbers, for what needs one and has no GPU to ask."""
    return _fallback(recipe, "nf4", "").recipe


def thriftier(asked: Recipe, settled: Recipe) -> Recipe | None:
    """What was settled but with every layer recomputed, where the planner had chosen otherwise.

    For a plan that ran out of memory before its first step; None where it was not the planner's.
    """
    kind = "unsloth" if asked.engine == "unsloth" else "standard"
    was = settled.train.gradient_checkpointing, settled.train.checkpoint_skip_layers
    if asked.train.gradient_checkpointing != "auto" or was in ((kind, 0), ("auto", 0)):
        return None
    thrifty = {"train.gradient_checkpointing": kind, "train.checkpoint_skip_layers": 0}
    return _changed(settled, thrifty)


def opened(recipe: Recipe) -> tuple[str, ...]:
    """The keys that the recipe leaves to the planner."""
    train, keys = recipe.train, []
    if recipe.model.quantization == "auto":
        keys += ["model.quantization"]
    if train.gradient_checkpointing == "auto":
        keys += ["train.gradient_checkpointing", "train.checkpoint_skip_layers"]
    if train.micro_batch_rows == "auto":
        keys += ["train.micro_batch_rows", "train.accumulation_steps"]
    return tuple(keys)


def _changed(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with these keys changed, proved again as a whole."""
    tree = recipe.model_dump(mode="json")
    for key, value in values.items():
        section, _, leaf = key.partition(".")
        tree[section][leaf] = value
    if "train.micro_batch_rows" in values:
        tree["train"]["rows_per_step"] = None
    return Recipe.model_validate(tree, strict=False)


def _on_cpu(
    recipe: Recipe, shape: Shape | None, lengths: ArrayLike, stored: Mapping[str, int]
) -> Settled:
    settled = _fallback(recipe, "none", "which suits a CPU")
    if shape is None:
        return settled
    packing = bool(recipe.train.packing) and recipe.engine == "reference"  # Unsloth's is for CUDA
    every = Rows(lengths, budget=recipe.data.max_tokens, seed=recipe.train.seed)
    rows = settled.recipe.train.micro_rows
    batches = every.batches(rows, packing=packing)
    setting = setting_of(settled.recipe, length=batches.length, rows=rows, device="cpu")
    found = memory(shape, setting, weight_bytes=stored.get(setting.quantization))
    planned = {
        "why": settled.why,
        "setting": described(shape, setting),
        "predicted": {"host_bytes": found.host},
        "rests_on": "formulas, for a CPU",
    }
    return replace(settled, planned=planned)


def _fallback(recipe: Recipe, bits: str, because: str) -> Settled:
    """Thrifty values without planning; checkpointing stays `auto` for the engine to decide."""
    values: dict[str, Any] = {}
    if recipe.model.quantization == "auto":
        only_16 = recipe.train.parameters == "all"
        only_4 = recipe.export.merge_base == "dequantised"
        values["model.quantization"] = "none" if only_16 else "nf4" if only_4 else bits
    if recipe.train.micro_batch_rows == "auto":
        step = recipe.train.step_rows
        fitting = max(1, CPU_TOKENS // recipe.data.max_tokens)
        rows = max(n for n in range(1, min(step, fitting) + 1) if step % n == 0)
        values["train.micro_batch_rows"] = rows
        values["train.accumulation_steps"] = step // rows
    said = dict.fromkeys(values, because)
    return Settled(_changed(recipe, values), said, None, {"why": said})


def _why(key: str, chosen: Candidate, found: Sequence[Candidate]) -> str:
    """Why a key became what it is."""
    setting = chosen.setting
    spare = f"{gib(chosen.spare_bytes)} of the card's memory to spare"
    match key:
        case "model.quantization":
            bits = "4" if setting.quantization == "nf4" else "16"
            return f"{bits} bits are the fastest that fit, {spare}"
        case "train.gradient_checkpointing" | "train.checkpoint_skip_layers":
            if setting.checkpointing == "none":
                return f"every layer's activations fit, {spare}"
            kept = f"{setting.skip_layers} layers keep their activations; " * (
                setting.skip_layers > 0
            )
            where = "hidden states go to the host" if chosen.offloads else "on the card"
            return f"{kept}recomputing all others, {where}, {spare}"
        case _:
            tokens = round(chosen.batches.slots)
            return f"the fastest of {len(found)} settings: {tokens:,} tokens at once, {spare}"


def _refusal(problem: Problem, chosen: Candidate) -> str:
    if chosen.spare_bytes >= 0 and problem.host is not None:
        return (
            f"pins about {gib(chosen.memory.pinned)} of RAM (estimate), "
            f"{gib(problem.host.available_bytes)} are free"
        )
    return (
        f"needs about {gib(chosen.need_bytes)} of {problem.device}'s memory (estimate), "
        f"{gib(problem.usable_bytes)} can be had now"
    )


def _does_not_fit(problem: Problem, what: str) -> DeviceError:
    cures = list(plan_cures.cures(problem))
    named = [key for key in opened(problem.recipe) if key.endswith(("quantization", "_rows"))]
    hint = f"one of: {'; '.join(cures)}; or " if cures else ""
    return DeviceError(
        what,
        where=problem.shape.name,
        hint=f"{hint}name {' and '.join(named)} yourself to try all the same "
        "(`fastsft plan` shows what was considered)",
    )


def _planned(problem: Problem, chosen: Candidate, why: dict[str, str]) -> dict[str, Any]:
    """The manifest's entry: what was predicted, by which setting, resting on what."""
    found, steps = chosen.memory, chosen.accumulation_steps
    time = chosen.time
    step_s = chosen.token_s * chosen.batches.real * steps if time is not None else None
    return {
        "why": why,
        "setting": described(problem.shape, chosen.setting),
        "predicted": {
            "allocated_bytes": found.allocated,
            "reserved_bytes": found.reserved,
            "process_bytes": found.process,
            "host_bytes": found.host,
            "pinned_bytes": found.pinned,
            "step_s": step_s,
        },
        "step_range_s": None if time is None else [time.low_s * steps, time.high_s * steps],
        "need_bytes": chosen.need_bytes,
        "usable_bytes": problem.usable_bytes,
        "rests_on": problem.correction(chosen.setting, "process_bytes").words,
    }
