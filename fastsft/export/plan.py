"""Decides which tensors an export holds and what each is made of.  Reads no values but to compare.

Embeddings: a base whose `lm_head` is its `embed_tokens` stays tied while the adapter leaves both
alone or trained them to the same values.  Otherwise the model that was trained is no longer tied,
and neither is the export.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsft.errors import ExportError
from fastsft.export.lora import CONFIG, Adapter, Delta, open_adapter
from fastsft.weights import INDEX, ITEM_BYTES, SINGLE, Checkpoint, Dtype, Reader, Tensor

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_COMPARE_VALUES = 1024**2


@dataclass(frozen=True)
class Output:
    """One tensor to write: `source`, plus `delta` if any, stored as `dtype`."""

    name: str
    dtype: Dtype
    source: Tensor
    delta: Delta | None
    replaced: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Plan:
    """Everything an export holds, in the base's order."""

    outputs: tuple[Output, ...]
    untied: bool

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)


def plan(base: Path, trained: Path, config: Mapping[str, Any], dtype: Dtype | None) -> Plan:
    """What `trained` on `base`, whose `config.json` is `config`, gives.

    `trained` is an adapter, or the whole model where every weight was trained: then nothing is
    added to it, and it is stored in the base's type unless another is asked for.

    Raises: ExportError when the two do not belong together, or one cannot be read.
    """
    weights, change, stored = _sources(base, trained, dtype)
    tied = HEAD not in weights.tensors or config.get("tie_word_embeddings") is True
    return plan_outputs(weights, change, tied=tied, dtype=stored)


def is_whole(trained: Path) -> bool:
    """Whether the folder holds a whole model's weights, not an adapter."""
    return not (trained / CONFIG).exists() and any((trained / n).exists() for n in (SINGLE, INDEX))


def _sources(
    base: Path, trained: Path, stored: Dtype | None
) -> tuple[Checkpoint, Adapter, Dtype | None]:
    """The weights to start from, what changes them, and the type to store."""
    weights = Checkpoint.open(base)
    if not is_whole(trained):
        return weights, open_adapter(trained), stored
    whole = Checkpoint.open(trained)
    shapes = [{t.name: t.shape for t in one.tensors.values()} for one in (weights, whole)]
    if shapes[0] != shapes[1]:
        raise ExportError(
            "the trained weights are those of another base",
            where=str(trained),
            hint="pass the base that was trained",
        )
    kept = max((t.dtype for t in weights.tensors.values()), key=list(ITEM_BYTES).index)
    return whole, Adapter(trained, {}, {}), stored or kept


def plan_outputs(base: Checkpoint, adapter: Adapter, *, tied: bool, dtype: Dtype | None) -> Plan:
    """What `adapter` on `base` gives; `dtype` None keeps each tensor's own type.

    Raises: ExportError when the adapter names a weight that the base lacks or shapes differ.
    """
    sources = known = dict(base.tensors)
    untied = False
    if tied and EMBEDDING in sources:
        known = {HEAD: sources[EMBEDDING], **sources}
        untied = _is_untied(adapter)
    if untied:
        sources = {**sources, HEAD: known[HEAD]}
    _check_fit(known, adapter)
    outputs = tuple(_output(name, tensor, adapter, dtype) for name, tensor in sources.items())
    return Plan(outputs, untied)


def _output(name: str, base: Tensor, adapter: Adapter, dtype: Dtype | None) -> Output:
    new = adapter.replaced.get(name)
    delta = adapter.deltas.get(name)
    return Output(name, dtype or base.dtype, new or base, delta, new is not None)


def _is_untied(adapter: Adapter) -> bool:
    """Whether embedding and head of a tied base differ once the adapter is applied."""
    if HEAD in adapter.deltas or EMBEDDING in adapter.deltas:
        return True
    embedding, head = adapter.replaced.get(EMBEDDING), adapter.replaced.get(HEAD)
    if embedding is None and head is None:
        return False
    return embedding is None or head is None or not equal(embedding, head)


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, whatever types they are stored as."""
    if one.shape != other.shape:
        return False
    with Reader() as reader:
        for first in range(0, one.count, _COMPARE_VALUES):
            count = min(_COMPARE_VALUES, one.count - first)
            left, right = (reader.floats(tensor, first, count) for tensor in (one, other))
            if not np.array_equal(left, right):
                return False
    return True


def _check_fit(base: dict[str, Tensor], adapter: Adapter) -> None:
    wanted: dict[str, tuple[int, ...]]
    wanted = {name: (d.b.shape[0], d.a.shape[1]) for name, d in adapter.deltas.items()}
    wanted |= {name: tensor.shape for name, tensor in adapter.replaced.items()}
    for name, shape in wanted.items():
        if name not in base:
            raise _other_base(adapter, f"{name} is not in the base")
        if base[name].shape != shape:
            raise _other_base(
                adapter, f"{name} is {[*base[name].shape]} in the base, {[*shape]} in the adapter"
            )
    for name, delta in adapter.deltas.items():
        if delta.magnitude and delta.magnitude.shape != base[name].shape[:1]:
            raise _other_base(adapter, f"{delta.magnitude.name} is {[*delta.magnitude.shape]}")


def _other_base(adapter: Adapter, what: str) -> ExportError:
    return ExportError(
        what, where=str(adapter.folder), hint="pass the base model that the adapter was trained on"
    )
