"""The grid as cells: which bench each is, and the command that runs it.  Runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fastsft import estimate, recipe_file, setting, shapes
from fastsft.errors import RecipeError

FILE = Path(__file__).with_name("matrix.yaml")
Section = Literal["gpu", "cpu"]
Recompute = Literal["full", "partial", "none", "offload"]
CHECKPOINTING = {"full": "standard", "partial": "standard", "none": "none", "offload": "unsloth"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One bench of the grid.  `tokens`: of a micro-batch; `length`: of a row; memory in GiB."""

    group: str
    question: str
    recipe: str
    engine: str
    against: str | None
    base: str
    tokens: int
    length: int
    recompute: Recompute
    is_synthetic: bool
    vram_cap_gib: float | None
    steps: int
    warmup: int
    repeats: int
    process_s: float

    @property
    def id(self) -> str:
        """A name for the cell, and for its file: what is measured, not how often."""
        parts = [self.recipe, self.engine, self.base, f"t{self.tokens}"]
        parts += [f"l{self.length}"] if self.length != self.tokens else []
        parts += [self.recompute]
        parts += [f"vs-{self.against}"] if self.against else []
        parts += [f"cap{self.vram_cap_gib:g}"] if self.vram_cap_gib else []
        return "_".join(re.sub(r"[^\w.-]", "-", part) for part in parts)

    @property
    def processes(self) -> int:
        """Fresh processes that the cell starts."""
        return self.repeats * (2 if self.against else 1)

    def overrides(self) -> list[str]:
        """The recipe's keys that make the cell, as `key=value`."""
        return [
            f"engine={self.engine}",
            f"model.quantization={self.base}",
            f"data.max_tokens={self.length}",
            f"train.micro_batch_rows={max(self.tokens // self.length, 1)}",
            "train.accumulation_steps=1",
            f"train.gradient_checkpointing={CHECKPOINTING[self.recompute]}",
            f"train.checkpoint_skip_layers={self._kept_layers()}",
        ]

    def words(self, out: Path) -> list[str]:
        """The command line after `fastsft`."""
        found = ["bench", self.recipe, "--json", "--out", str(out)]
        for override in self.overrides():
            found += ["--set", override]
        found += ["--against", self.against] if self.against else []
        found += ["--synthetic"] if self.is_synthetic else []
        found += ["--vram-cap", f"{self.vram_cap_gib:g}"] if self.vram_cap_gib else []
        found += ["--steps", str(self.steps), "--warmup", str(self.warmup)]
        return [*found, "--repeats", str(self.repeats)]

    def predicted_bytes(self) -> int | None:
        """The process's VRAM by the estimator; None for a base whose shape is not known."""
        recipe = recipe_file.load(self.recipe, self.overrides())
        shape = shapes.of_base(recipe.model.base)
        if shape is None:
            return None
        return estimate.memory(shape, setting.setting_of(recipe, length=self.length)).process

    def _kept_layers(self) -> int:
        if self.recompute != "partial":
            return 0
        base = recipe_file.load(self.recipe).model.base
        shape = shapes.of_base(base)
        if shape is None:
            raise RecipeError(
                f"{self.recipe}: recompute partial needs a base whose layers are known",
                where="matrix.yaml",
                hint="use full or none for this recipe",
            )
        return shape.layers // 2


class _Defaults(BaseModel):
    """What a set may leave out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    is_synthetic: bool
    vram_cap_gib: float | None
    steps: int = Field(ge=3)
    warmup: int = Field(ge=1)
    repeats: int = Field(ge=1)
    process_s: float = Field(gt=0)
    against: str | None = None
    length: int | None = Field(None, ge=8)
    recompute: list[Recompute] = Field(min_length=1)


class _Set(_Defaults):
    name: str
    question: str
    recipes: list[str] = Field(min_length=1)
    base: list[Literal["nf4", "none"]] = Field(min_length=1)
    tokens: list[int] = Field(min_length=1)


def read(section: Section, path: Path = FILE) -> list[Cell]:
    """The section's cells in the order in which they run, none twice.

    Raises RecipeError when the file is no grid.
    """
    try:
        part = YAML(typ="safe", pure=True).load(path.read_text("utf-8"))[section]
        sets = [_Set.model_validate({**part["defaults"], **entry}) for entry in part["sets"]]
    except (OSError, YAMLError, ValidationError, KeyError, TypeError) as error:
        raise RecipeError(
            f"not a grid of benches: {error}", where=path.name, hint="see the head of matrix.yaml"
        ) from error
    found: dict[str, Cell] = {}
    for cell in (cell for entry in sets for cell in _cells(entry)):
        found.setdefault(cell.id, cell)
    return list(found.values())


def _cells(entry: _Set) -> Iterator[Cell]:
    """Every combination, recipes outermost."""
    rest: dict[str, Any] = entry.model_dump(
        include={"engine", "against", "is_synthetic", "vram_cap_gib"}
        | {"steps", "warmup", "repeats", "process_s", "question"}
    )
    lists = (entry.recipes, entry.base, entry.tokens, entry.recompute)
    for recipe, base, tokens, recompute in product(*lists):
        length = min(entry.length or tokens, tokens)
        yield Cell(
            group=entry.name,
            recipe=recipe,
            base=base,
            tokens=tokens,
            length=length,
            recompute=recompute,
            **rest,
        )


def only(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """The cells whose group is the pattern, or whose id matches it: `peer`, `*7b*none*`.

    Raises RecipeError when there is none.
    """
    if pattern is None:
        return list(cells)
    found = [cell for cell in cells if cell.group == pattern or fnmatch(cell.id, f"*{pattern}*")]
    if not found:
        groups = ", ".join(dict.fromkeys(cell.group for cell in cells))
        raise RecipeError(
            f"no cell is called so: {pattern}",
            where="--only",
            hint=f"a set ({groups}) or part of a cell's name, which --list shows",
        )
    return found
