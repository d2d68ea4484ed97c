"""A finished run with its base and tokenizer: what an export is made from.  Reads no weights."""

from dataclasses import dataclass
from pathlib import Path

from fastsft import base as bases
from fastsft import start
from fastsft.base import Base
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import ExportError, TrainError
from fastsft.export import sidecars
from fastsft.recipe import Recipe
from fastsft.run import Run


@dataclass(frozen=True)
class Trained:
    """What was trained, and what an export of it must behave like."""

    run: Run
    recipe: Recipe
    base: Base
    tokenizer: ChatTokenizer

    @property
    def adapter(self) -> Path:
        """A PEFT folder; a whole model where every weight was trained."""
        return self.run.adapter

    @property
    def is_whole(self) -> bool:
        """Whether every weight was trained, not an adapter."""
        return self.recipe.train.parameters == "all"

    @property
    def is_nf4(self) -> bool:
        """Whether the base was held in 4 bits in training."""
        return self.recipe.model.quantization == "nf4"

    @property
    def tokenizer_folder(self) -> Path:
        """The folder whose tokenizer files an export takes."""
        files = sidecars.tokenizer(self.adapter, self.base.folder)
        return next(iter(files.values())).parent


def opened(run: Run) -> Trained:
    """A finished run, its base found and seen to be the one that was trained.

    Raises: TrainError when the run is not finished, ExportError when its base changed, and
    what `base.resolve` raises when it cannot be had.
    """
    if not run.is_finished:
        raise TrainError(
            "the run is not finished",
            where=str(run.folder),
            hint=f"fastsft train --resume {run.folder}",
        )
    recipe = run.recipe()
    base = bases.resolve(recipe.model)
    if run.manifest()["identity"]["base"] != base.fingerprint:
        raise ExportError(
            "the base is not the one that was trained",
            where=recipe.model.base,
            hint="put the base's files back as they were; model.revision pins a repository",
        )
    return Trained(run, recipe, base, start.tokenizer(recipe, base, run))
