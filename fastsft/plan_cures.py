"""What would have to change for a recipe to fit, found by trying."""

from collections.abc import Iterator
from dataclasses import replace

from fastsft import plan_problem, plan_search
from fastsft.cards import CARDS, Card
from fastsft.plan_problem import NF4, USABLE, Allowed, Problem
from fastsft.shapes import SHIPPED

TOKEN_STEP = 128
"""Rows are told to be shortened to a multiple of this."""


def cures(problem: Problem) -> Iterator[str]:
    """What would let it fit, each by itself, found by trying."""
    if rank := _highest_rank(problem):
        yield f"lora.rank={rank}"
    if tokens := _most_tokens(problem):
        yield f"data.max_tokens={tokens}"
    if card := _smallest_card(problem):
        size = card.vram_bytes / 2**30
        yield f"a card with {size:.0f} GiB ({card.key})"
    if sibling := _largest_sibling(problem):
        yield f"a smaller base ({sibling})"


def _fits(problem: Problem) -> bool:
    """Whether the thriftiest setting does: one row at once, all recomputed."""
    recipe = problem.recipe
    kinds = plan_problem.kinds(recipe)[1:]
    quantizations = NF4 if plan_problem.can_be_4_bit(recipe) else ("none",)
    thrifty = Allowed(quantizations, kinds, (bool(recipe.train.packing),), 1, 0)
    return any(c.fits for c in plan_search.candidates(problem, thrifty))


def _highest_rank(problem: Problem) -> int | None:
    lora = problem.recipe.lora
    lower = (rank for rank in (512, 256, 128, 64, 32, 16, 8, 4) if rank < lora.rank)
    if problem.recipe.train.parameters == "all":
        return None
    for rank in lower:
        changed = problem.recipe.model_copy(update={"lora": lora.model_copy(update={"rank": rank})})
        if _fits(replace(problem, recipe=changed)):
            return rank
    return None


def _most_tokens(problem: Problem) -> int | None:
    """The longest row that fits; no row counts that is longer."""
    data = problem.recipe.data
    low, high = 0, (data.max_tokens - 1) // TOKEN_STEP
    while low < high:
        middle = (low + high + 1) // 2
        cut = data.model_copy(update={"max_tokens": middle * TOKEN_STEP})
        changed = problem.recipe.model_copy(update={"data": cut})
        is_enough = _fits(replace(problem, recipe=changed, rows=None))
        low, high = (middle, high) if is_enough else (low, middle - 1)
    return low * TOKEN_STEP or None


def _smallest_card(problem: Problem) -> Card | None:
    larger = sorted(CARDS.values(), key=lambda card: card.vram_bytes)
    for card in larger:
        usable = int(USABLE * card.vram_bytes)
        if usable > problem.usable_bytes and _fits(replace(problem, usable_bytes=usable)):
            return card
    return None


def _largest_sibling(problem: Problem) -> str | None:
    """The largest smaller base of the family that fits."""
    smaller = [
        shape
        for shape in SHIPPED.values()
        if shape.model_type == problem.shape.model_type and shape.params < problem.shape.params
    ]
    for shape in sorted(smaller, key=lambda shape: -shape.params):
        if _fits(replace(problem, shape=shape, stored={})):
            return shape.name
    return None
