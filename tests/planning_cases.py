"""Recipes, shapes and GPUs that the tests of the planner share."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from fastsft import recipe_file, shapes
from fastsft.cards import Card, of_size
from fastsft.estimate import Setting
from fastsft.hardware import Gpu
from fastsft.recipe import Recipe
from fastsft.shapes import Shape

GIB = 2**30
SHIPPED = [name for name in recipe_file.shipped_names() if not name.startswith("tiny-")]


@cache
def shipped(name: str, *overrides: str) -> tuple[Recipe, Shape]:
    """A shipped recipe with its base's shape."""
    recipe = recipe_file.load(name, overrides)
    shape = shapes.of_base(recipe.model.base)
    assert shape is not None
    return recipe, shape


def llama_70b(**train: Any) -> tuple[Recipe, Shape]:
    """Four bits, rank 16, of a base that no consumer card holds."""
    recipe = Recipe.model_validate(
        {
            "model": {"base": "meta-llama/Llama-3.3-70B-Instruct", "family": "llama"},
            "train": {"epochs": 1.0, **train},
        }
    )
    return recipe, shapes.SHIPPED["llama-3.3-70b"]


def gpu(
    name: str = "NVIDIA GeForce RTX 4090", *, gib: float = 24, free: float | None = None
) -> Gpu:
    """A GPU as nvidia-smi tells it; all of it free unless told."""
    return Gpu(name, int(gib * GIB), int((gib if free is None else free) * GIB), "580.1", "8.9")


def card(gib: float) -> Card:
    """A card of which only the size is known."""
    return of_size(gib)


def most_tokens(setting: Setting, usable_bytes: int, need: Callable[[Setting], int]) -> int:
    """Tokens of the longest row that fits, one at once; 0 where none does."""
    low, high = 0, 2**22
    while low < high:
        middle = (low + high + 1) // 2
        fits = need(replace(setting, rows=1, length=middle)) <= usable_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
