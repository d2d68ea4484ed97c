"""What a planner is asked: a recipe's model on a card, and which values it may take."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from numpy.typing import ArrayLike

from fastsft import history
from fastsft.cards import CARDS, Card
from fastsft.estimate import Memory, Setting, cautious, memory, stack_of
from fastsft.history import Correction, Entry
from fastsft.host import Host
from fastsft.plan_rows import Batches, Rows
from fastsft.recipe import Recipe
from fastsft.roofline import EFFICIENCY
from fastsft.shapes import Shape

Checkpointing = Literal["unsloth", "standard", "none"]
Quantization = Literal["nf4", "none"]

NF4: tuple[Quantization, ...] = ("nf4",)
USABLE = 0.97
"""Share of a card's memory that can be had: the driver and the display keep the rest.

Source: nvidia-smi shows 24,564 MiB of a 4090's 24,576, of which a few hundred are in use with no
program running; the published estimates that tests/test_plan.py reproduces take 97 % too."""
STAND_IN = "rtx-4090"
"""Ranks settings for a card of unknown speed; its times are not told."""
STEP_TOLERANCE = 0.1
"""How far packed sequences may be from the rows of a step that the recipe asks for."""


@dataclass(frozen=True)
class Allowed:
    """Which values the search may take."""

    quantizations: tuple[Quantization, ...]
    checkpointings: tuple[Checkpointing, ...]
    packings: tuple[bool, ...]
    rows: int | None = None
    """Of a micro-batch; None is any that divides the step's."""
    skip_layers: int | None = None
    """None is any."""


@dataclass(frozen=True)
class Problem:
    """What is searched: a recipe's model on a card.

    `rows` None: every row is taken to be as long as can be.  `host` None: not this machine.
    `rated`: the card whose peaks rank the speeds; `is_timed`: it is the card itself.  `stored`:
    bytes of the base's weights by quantization, where its files are here.
    """

    recipe: Recipe
    shape: Shape
    usable_bytes: int
    rated: Card
    is_timed: bool
    device: str
    rows: Rows | None = None
    trained_share: float = 1.0
    host: Host | None = None
    known: Sequence[Entry] = ()
    stored: Mapping[str, int] = field(default_factory=dict)

    def batches(self, rows: int, *, packing: bool) -> Batches:
        """The micro-batches of so many rows."""
        if self.rows is None:
            return Batches.full(rows, self.recipe.data.max_tokens)
        return self.rows.batches(rows, packing=packing)

    def step_items(self, *, packing: bool) -> int | None:
        """Rows, or packed sequences, of one optimizer step; None where packing would change it."""
        asked = self.recipe.train.step_rows
        if not packing or self.recipe.train.packing or self.rows is None:
            return asked
        each = self.rows.per_sequence
        items = max(1, round(asked / each))
        return items if abs(items * each / asked - 1) <= STEP_TOLERANCE else None

    def correction(self, setting: Setting, key: str) -> Correction:
        """What this machine's runs say of such a setting."""
        if not self.known or setting.is_dora:  # DoRA is not modelled: what it takes tells nothing
            return Correction()
        is_speed = key == "step_s"
        return history.correction(
            self.known,
            key,
            device=self.device,
            engine=setting.engine,
            same=described(self.shape, setting),
            predicted=None if is_speed else self.memory(setting).process,
        )

    def memory(self, setting: Setting, *, is_cautious: bool = False) -> Memory:
        """What the setting is estimated to take; with reserves where `is_cautious`."""
        own = stack_of(setting)
        return memory(
            self.shape,
            setting,
            stack=cautious(own) if is_cautious else own,
            weight_bytes=self.stored.get(setting.quantization),
        )

    def need(self, setting: Setting) -> int:
        """Bytes of the card that the setting needs, what is not known for sure included."""
        own, most = self.memory(setting).process, self.memory(setting, is_cautious=True).process
        found = self.correction(setting, "process_bytes")
        if found.margin is not None:
            # Runs that disagree make no one more careful than no runs at all.
            reserve = min(own * found.ratio * found.margin, most - own)
            most = int(own * found.ratio + reserve)
        failed = history.proved_too_little(
            self.known, device=self.device, same=described(self.shape, setting), predicted=own
        )
        return max(most, failed)


def described(shape: Shape, setting: Setting) -> dict[str, Any]:
    """The setting as the history keeps it."""
    sizes = {"shape": shape.name, "params": shape.params}
    return {**sizes, **asdict(setting), "targets": list(setting.targets)}


def problem_of(
    recipe: Recipe,
    shape: Shape,
    card: Card,
    lengths: ArrayLike | None,
    free_bytes: int | None,
    host: Host | None,
    known: Sequence[Entry],
    stored: Mapping[str, int],
) -> Problem:
    usable = int(USABLE * card.vram_bytes)
    is_timed = card.peak_flops is not None and card.kind in EFFICIENCY
    return Problem(
        recipe=recipe,
        shape=shape,
        usable_bytes=usable if free_bytes is None else min(usable, free_bytes),
        rated=card if is_timed else CARDS[STAND_IN],
        is_timed=is_timed,
        device=card.name,
        rows=None
        if lengths is None
        else Rows(lengths, budget=recipe.data.max_tokens, seed=recipe.train.seed),
        host=host,
        known=[entry for entry in known if entry.device == card.name],
        stored=stored,
    )


def can_be_4_bit(recipe: Recipe) -> bool:
    return recipe.train.parameters == "lora"


def quantizations(recipe: Recipe) -> tuple[Quantization, ...]:
    """What loses no quality: more bits than asked, never fewer."""
    asked = recipe.model.quantization
    if asked == "none" or not can_be_4_bit(recipe):
        return ("none",)
    if recipe.export.merge_base == "dequantised":
        return NF4
    return ("nf4", "none")


def kinds(recipe: Recipe) -> tuple[Checkpointing, ...]:
    """Those that the engine has; where the adapter is not modelled, those that recompute."""
    thrifty: tuple[Checkpointing, ...] = ("standard",)
    if recipe.engine == "unsloth":
        thrifty = ("standard", "unsloth")
    return thrifty if _is_dora(recipe) else ("none", *thrifty)


def _is_dora(recipe: Recipe) -> bool:
    return recipe.lora.dora and recipe.train.parameters == "lora"


def everything(problem: Problem) -> Allowed:
    """Everything that leaves the training's result as it is; packing nearly so, by the rows of a
    step that `STEP_TOLERANCE` allows."""
    recipe = problem.recipe
    packs = bool(recipe.train.packing)
    is_open = problem.rows is not None and not packs
    return Allowed(
        quantizations=quantizations(recipe),
        checkpointings=kinds(recipe),
        packings=(False, True) if is_open else (packs,),
        skip_layers=0 if _is_dora(recipe) else None,
    )


def as_it_stands(problem: Problem) -> Allowed:
    """What the recipe leaves to the planner: its `auto`, and nothing else."""
    recipe, train = problem.recipe, problem.recipe.train
    asked, kind = recipe.model.quantization, train.gradient_checkpointing
    return Allowed(
        quantizations=quantizations(recipe) if asked == "auto" else (asked,),
        checkpointings=kinds(recipe) if kind == "auto" else (kind,),
        packings=(bool(train.packing),),
        rows=None if train.micro_batch_rows == "auto" else train.micro_batch_rows,
        skip_layers=None
        if kind == "auto" and not _is_dora(recipe)
        else train.checkpoint_skip_layers,
    )
