"""The planner: does a recipe fit a card, and what is the fastest setting that does?  No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from numpy.typing import ArrayLike

from fastsft import plan_cures, plan_problem, plan_search
from fastsft.cards import Card
from fastsft.hardware import gib
from fastsft.history import Correction, Entry
from fastsft.host import Host
from fastsft.plan_problem import NF4, STAND_IN, Problem
from fastsft.plan_search import TIE, Candidate
from fastsft.plan_settle import Settled as Settled
from fastsft.plan_settle import opened as opened
from fastsft.plan_settle import settle as settle
from fastsft.plan_settle import settled_thriftily as settled_thriftily
from fastsft.plan_settle import thriftier as thriftier
from fastsft.recipe import Recipe
from fastsft.roofline import EFFICIENCY, threshold_tokens
from fastsft.shapes import Shape

TIGHT = 0.03
"""Share of the memory below which what is left is told to be little."""
MEGA = 1_000_000


@dataclass(frozen=True)
class Plan:
    """What a recipe needs on a card, and what would be fastest there.

    `as_is`: the recipe as it stands, its `auto` settled; `chosen`: the fastest that fits, None
    where nothing does; `cures`: what would have to change then.  `considered`: every candidate with
    why it lost, fastest first.
    """

    recipe: Recipe
    shape: Shape
    card: Card
    usable_bytes: int
    as_is: Candidate
    chosen: Candidate | None
    considered: tuple[Candidate, ...]
    correction: Correction
    speed: Correction
    rows: int | None
    tokens: int | None
    cures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gain(self) -> float | None:
        """How many times as fast as the recipe as it stands the chosen setting is."""
        if self.chosen is None or not self.chosen.token_s or not self.as_is.fits:
            return None
        return self.as_is.token_s / self.chosen.token_s

    def seconds(self, candidate: Candidate) -> tuple[float, float] | None:
        """Seconds of an epoch at the least and the most; of a million tokens without rows."""
        if candidate.time is None:
            return None
        real = MEGA if self.tokens is None else self.tokens
        count, ratio = real / candidate.batches.real, self.speed.ratio
        cost = candidate.token_s * candidate.batches.real
        middle = (candidate.time.low_s + candidate.time.high_s) / 2
        offload = cost / middle if middle else 1.0
        low, high = candidate.time.low_s * offload, candidate.time.high_s * offload
        if self.speed.margin is not None:
            low, high = cost * (1 - self.speed.margin), cost * (1 + self.speed.margin)
        return count * low * ratio, count * high * ratio

    def busy_from(self, candidate: Candidate) -> float | None:
        """Tokens of a micro-batch from which the card, not Python, sets the pace."""
        if candidate.time is None:
            return None
        batches = candidate.batches
        # Rows of one length that attend over as many pairs a token.
        length = max(1, round(2 * batches.pairs / batches.slots - 1))
        share = sum(EFFICIENCY[self.card.kind]) / 2
        return threshold_tokens(
            self.shape, candidate.setting, self.card, length=length, efficiency=share
        )

    def joules(self, candidate: Candidate) -> float | None:
        """Energy of the card for the same work at the most: at its power limit all the time."""
        seconds = self.seconds(candidate)
        if seconds is None or self.card.power_w is None:
            return None
        return seconds[1] * self.card.power_w


def plan(
    recipe: Recipe,
    shape: Shape,
    card: Card,
    *,
    lengths: ArrayLike | None = None,
    trained_share: float = 1.0,
    free_bytes: int | None = None,
    host: Host | None = None,
    corrections: Sequence[Entry] = (),
    stored: Mapping[str, int] | None = None,
) -> Plan:
    """What the recipe needs on this card, and the fastest setting that fits.

    `lengths`: tokens of each row; without them every row is as long as `data.max_tokens` allows.
    `free_bytes`: of the card now; what other programs hold is not ours.  `host`: this machine, if
    the card is in it.  `corrections`: finished runs that correct the estimate.  `stored`: what the
    base's own files say of its weights (`estimate.stored_weights`).
    """
    problem = plan_problem.problem_of(
        recipe, shape, card, lengths, free_bytes, host, corrections, stored or {}
    )
    problem = replace(problem, trained_share=trained_share)
    allowed = plan_problem.everything(problem)
    found = plan_search.candidates(problem, allowed)
    chosen = plan_search.best(found, recipe)
    if recipe.model.quantization == "none" and plan_problem.can_be_4_bit(recipe):
        # 4 bits cost quality: shown, and taken only where 16 do not fit.
        in_4_bits = plan_search.candidates(
            problem, replace(plan_problem.everything(problem), quantizations=NF4)
        )
        chosen = chosen or plan_search.best(in_4_bits, recipe)
        found += in_4_bits
    own = plan_search.candidates(problem, plan_problem.as_it_stands(problem))
    as_is = plan_search.best(own, recipe) or plan_search.thriftiest(own)
    told = chosen or as_is
    return Plan(
        recipe=recipe,
        shape=shape,
        card=card,
        usable_bytes=problem.usable_bytes,
        as_is=as_is,
        chosen=chosen,
        considered=_judged(found, chosen, problem),
        correction=problem.correction(told.setting, "process_bytes"),
        speed=problem.correction(told.setting, "step_s"),
        rows=None if problem.rows is None else len(problem.rows),
        tokens=None if problem.rows is None else problem.rows.tokens,
        cures=() if chosen else tuple(plan_cures.cures(problem)),
        notes=tuple(_notes(problem, told)),
    )


def _judged(
    found: Sequence[Candidate], chosen: Candidate | None, problem: Problem
) -> tuple[Candidate, ...]:
    """Each candidate with why it lost, those that fit first, the fastest of them first."""
    told = [c if c == chosen else replace(c, lost=_lost(c, chosen, problem)) for c in found]
    return tuple(sorted(told, key=lambda c: (c.lost != "", not c.fits, _rank(c))))


def _rank(candidate: Candidate) -> tuple[float, float]:
    """What fits by speed, what does not by how little it needs."""
    need = float(candidate.need_bytes)
    return (candidate.token_s, need) if candidate.fits else (need, 0.0)


def _lost(candidate: Candidate, chosen: Candidate | None, problem: Problem) -> str:
    if candidate.spare_bytes < 0:
        return f"{gib(-candidate.spare_bytes)} over"
    if candidate.is_short_of_host and problem.host is not None:
        free = gib(problem.host.available_bytes)
        return f"pins {gib(candidate.memory.pinned)} of RAM, {free} free"
    if chosen is None:
        return ""
    slower = candidate.token_s / chosen.token_s - 1
    if candidate.setting.quantization == "nf4" and problem.recipe.model.quantization == "none":
        pace = f", {slower:.0%} slower" if slower > TIE else ""
        return f"16 bits fit{pace}"
    if slower > TIE:
        return f"{slower:.0%} slower{': waits for Python' if candidate.waits else ''}"
    if candidate.offloads and not chosen.offloads:
        return "as fast, but takes RAM"
    more = len(candidate.changes(problem.recipe)) - len(chosen.changes(problem.recipe))
    if more > 0:
        return "as fast, changes more"
    return f"as fast, {gib(candidate.need_bytes - chosen.need_bytes)} more"


def _notes(problem: Problem, told: Candidate) -> Iterator[str]:
    """What else to know of the setting."""
    pinned = told.memory.pinned
    if problem.host is not None and problem.host.is_wsl and told.offloads and pinned > 2**30:
        yield (
            f"WSL2 pins 1 to 2 GiB, the hidden states take {gib(pinned)}: moving them will be "
            "slower than told"
        )
    if told.packing and not problem.recipe.train.packing and problem.rows is not None:
        items = told.setting.rows * told.accumulation_steps
        yield (
            f"packed, a step becomes about {items * problem.rows.per_sequence:.1f} rows instead of "
            f"{problem.recipe.train.step_rows}"
        )
    if problem.rows is not None and problem.step_items(packing=True) is None:
        yield (
            f"packing is left out: a sequence of {problem.rows.per_sequence:.0f} rows makes no "
            f"step of {problem.recipe.train.step_rows}"
        )
    if 0 <= told.spare_bytes < TIGHT * problem.usable_bytes:
        yield f"tight: {gib(told.spare_bytes)} to spare, and the formulas err by some 5 %"
    if not problem.is_timed:
        yield f"the speed of {problem.device} is not known: ranked as on an {STAND_IN}, no times"
