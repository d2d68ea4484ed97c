"""What merging cost: the loss of the model as trained beside that of the merged one.

An adapter that was trained on a base in 4 bits fits the base as those 4 bits say it is.  Merged
onto the 16-bit base it stands on other weights, and by how much that matters is measured here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastsft import scoring
from fastsft.data import arrays
from fastsft.data.arrays import TokenRows
from fastsft.data.encode import UNTRAINED
from fastsft.errors import ExportError
from fastsft.export.trained import Trained
from fastsft.hardware import gib
from fastsft.scoring import Dtype, Loss, Nf4, Process

What = Literal["adapter on NF4", "adapter on 16 bits", "merged", "merged on dequantised"]
_FLAG = "--merge-base dequantised"
Rows = Sequence[tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Difference:
    """How much more one model loses than another, in nats a token, over the same rows.

    `error` is its standard error as the rows differ; NaN for a single row.
    """

    nats: float
    error: float

    @property
    def is_visible(self) -> bool:
        """Whether it is more than twice its error, so that it is not the choice of rows."""
        return abs(self.nats) > 2 * self.error

    def __str__(self) -> str:
        share = math.expm1(min(self.nats, 50.0))
        found = f"{self.nats:+.4f} nats a token (perplexity {share:+.2%})"
        return found if self.is_visible else f"{found}, no more than the choice of rows explains"


@dataclass(frozen=True)
class Honesty:
    """Each model's loss on the same rows, one `Loss` a row; `notes` say what is missing, and why.

    All are held in `dtype`, the type that the run trained in.
    """

    rows: int
    tokens: int
    is_held_out: bool
    dtype: Dtype
    as_trained: What
    losses: Mapping[What, tuple[Loss, ...]]
    notes: tuple[str, ...]

    def mean(self, what: What) -> float | None:
        """Nats per trained token; None where it was not measured."""
        found = self.losses.get(what)
        return sum(row.sum for row in found) / self.tokens if found else None

    def against_trained(self, what: What) -> Difference | None:
        """How much more `what` loses than the model as trained; None where one is missing."""
        one, other = self.losses.get(what), self.losses.get(self.as_trained)
        return _difference(one, other) if one and other else None

    def verdict(self) -> str:
        """What it means, in a few sentences."""
        kind = "held-out" if self.is_held_out else "trained"
        first = f"On {self.rows} {kind} rows ({self.tokens} tokens, {self.dtype}): "
        lines = [self._sentence(what) for what in self.losses if what != self.as_trained]
        trained = self.mean(self.as_trained)
        if trained is None:
            return first + "the model as trained was not measured. " + " ".join(self.notes)
        told = f"as trained ({self.as_trained}) the loss is {trained:.4f}. "
        return first + told + " ".join([*lines, *self._advice(), *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """The figures, in nats per trained token."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "held_out": self.is_held_out,
            "dtype": self.dtype,
            "loss": {what: self.mean(what) for what in self.losses},
            "verdict": self.verdict(),
        }

    def _sentence(self, what: What) -> str:
        name = what[0].upper() + what[1:]
        return f"{name}: {self.mean(what):.4f}, {self.against_trained(what)}."

    def _advice(self) -> list[str]:
        stored = self.against_trained("merged") or self.against_trained("adapter on 16 bits")
        dequantised = self.against_trained("merged on dequantised")
        if self.as_trained != "adapter on NF4" or stored is None:
            return []
        if dequantised is None:
            if stored.nats > 0 and stored.is_visible:
                return [f"Merging onto the base as training saw it ({_FLAG}) may be nearer."]
            return []
        if abs(dequantised.nats) < abs(stored.nats):
            return [f"Merging onto the base as training saw it ({_FLAG}) is nearer to it."]
        return ["Merging onto the stored base is as near to it."]


def measured(
    process: Process,
    trained: Trained,
    merged: Path | None,
    *,
    dequantised: Path | None = None,
    max_rows: int = 64,
) -> Honesty:
    """The loss of the model as trained and as merged, on up to `max_rows` of the run's rows.

    `merged` is the adapter merged onto the stored base, `dequantised` onto the dequantised one;
    either may be missing.  What memory has no room for is left out, and said.

    Raises: ExportError when there is nothing to measure on, or a model cannot be loaded.
    """
    chosen, is_held_out = _chosen(trained, max_rows)
    dtype: Dtype = (trained.run.manifest().get("resolved") or {}).get("dtype", "float32")
    found: dict[What, tuple[Loss, ...]] = {}
    notes = [] if is_held_out else ["The run held no rows out, so these are rows it trained on."]
    for what, model in _models(trained, merged, dequantised).items():
        needed = scoring.bytes_needed(model.folder, dtype, adapter=model.adapter, nf4=model.nf4)
        if scoring.place(needed) is None:
            notes.append(f"Not measured: {what}; it needs {gib(needed)} of memory.")
            continue
        with process.opened(
            model.folder, adapter=model.adapter, nf4=model.nf4, dtype=dtype
        ) as scorer:
            found[what] = tuple(scorer.loss([row]) for row in chosen)
    return Honesty(
        rows=len(chosen),
        tokens=_trained_tokens(chosen),
        is_held_out=is_held_out,
        dtype=dtype,
        as_trained="adapter on NF4" if trained.is_nf4 else "adapter on 16 bits",
        losses=found,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Model:
    folder: Path
    adapter: Path | None = None
    nf4: Nf4 | None = None


def _models(trained: Trained, merged: Path | None, dequantised: Path | None) -> dict[What, _Model]:
    """What is measured, in the order in which it is told."""
    base, adapter = trained.base.folder, trained.adapter
    found: dict[What, _Model] = {}
    if trained.is_nf4:
        found["adapter on NF4"] = _Model(base, adapter, Nf4(trained.recipe.model.double_quant))
    whole = _Model(adapter) if trained.is_whole else _Model(base, adapter)
    found["adapter on 16 bits"] = whole
    if merged is not None:
        found["merged"] = _Model(merged)
    if dequantised is not None:
        found["merged on dequantised"] = _Model(dequantised)
    return found


def _chosen(trained: Trained, max_rows: int) -> tuple[Rows, bool]:
    """Rows from all over the held-out ones, or the trained ones where none were held out."""
    train, evaluation = arrays.load(trained.run.tokens_path)
    for rows, is_held_out in ((evaluation, True), (train, False)):
        places = np.flatnonzero(rows.index.trained_lengths)
        if len(places):
            return _spread(rows, places, max_rows), is_held_out
    raise ExportError(
        "the run has no rows to measure on",
        where=str(trained.run.tokens_path),
        hint="the run's tokens.safetensors is not the one that was trained; restore it",
    )


def _spread(rows: TokenRows, places: np.ndarray, count: int) -> Rows:
    taken = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).astype(int))
    pairs = (rows[int(place)] for place in places[taken])
    return [(ids.tolist(), labels.tolist()) for ids, labels in pairs]


def _trained_tokens(rows: Rows) -> int:
    """Labels that are predicted: not -100, and not the first, which nothing comes before."""
    return sum(label != UNTRAINED for _, labels in rows for label in labels[1:])


def _difference(one: Sequence[Loss], other: Sequence[Loss]) -> Difference:
    """The ratio estimate over rows and its standard error (Cochran 1977, section 2.11)."""
    tokens = np.array([row.tokens for row in one])  # [R]
    more = np.array([a.sum - b.sum for a, b in zip(one, other, strict=True)])  # [R]
    mean, rows = more.sum() / tokens.sum(), len(tokens)
    if rows < 2:
        return Difference(float(mean), math.nan)
    spread = math.sqrt(np.square(more - mean * tokens).sum() * rows / (rows - 1))
    return Difference(float(mean), spread / int(tokens.sum()))
