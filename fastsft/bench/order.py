"""Counts what a trainer must have been fed, from the token arrays alone.  No torch.

The order of rows is worked out a second time, apart from the libraries that shuffle, so that a
run's own counts and order hash can be checked against something that they do not come from.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from fastsft.bench.row import Counts, Expected
from fastsft.data import pack
from fastsft.data.arrays import TokenRows
from fastsft.data.encode import UNTRAINED

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Layout:
    """How rows become batches; `max_tokens` bounds a packed sequence."""

    micro_batch_rows: int
    accumulation_steps: int
    batching: str
    max_tokens: int
    seed: int
    pad_id: int


@dataclass(frozen=True)
class _Item:
    """A row, or a packed sequence: ids [T], tokens that the loss sees, documents in it."""

    ids: Ids
    trained: int
    documents: int


def expected(rows: TokenRows, layout: Layout, *, steps: int) -> Expected:
    """What the first `steps` optimizer steps are fed, and the order hash after them."""
    items = list(_items(rows, layout))
    batches = -(-len(items) // layout.micro_batch_rows)
    lengths = [len(item.ids) for item in items]
    fed = islice(_steps(items, layout), steps)
    counts, order_hash = _counted(list(fed), layout.pad_id)
    return Expected(
        order_hash=order_hash,
        rows=len(rows),
        items=len(items),
        items_per_step=layout.micro_batch_rows * layout.accumulation_steps,
        steps_per_epoch=-(-batches // layout.accumulation_steps),
        real_tokens=sum(lengths),
        trained_tokens=sum(item.trained for item in items),
        shortest_item=min(lengths),
        longest_item=max(lengths),
        steps=counts,
    )


def permutation(size: int, seed: int) -> NDArray[np.int64]:
    """What `torch.randperm(size)` gives a CPU generator of this seed.

    Source: PyTorch 2.10 `aten/src/ATen/native/TensorFactories.cpp`, randperm_cpu: Fisher and
    Yates, each place by the next 32 bits of MT19937 modulo what is left.
    """
    found = np.arange(size, dtype=np.int64)
    bits = np.random.RandomState(seed).randint(0, 2**32, size=max(size - 1, 0), dtype=np.uint32)
    for place, drawn in enumerate(bits.tolist()):
        other = place + drawn % (size - place)
        found[place], found[other] = found[other], found[place]
    return found


def _items(rows: TokenRows, layout: Layout) -> Iterator[_Item]:
    if layout.batching != "packed":
        for ids, labels in rows:
            yield _Item(ids, int((labels[1:] != UNTRAINED).sum()), 1)
        return
    bins = pack.pack(rows.lengths, layout.max_tokens)
    for members in (bins[place] for place in range(len(bins))):
        joined = pack.join([rows[int(row)] for row in members])
        trained = int((joined.labels[1:] != UNTRAINED).sum())
        yield _Item(joined.input_ids, trained, len(members))


def _steps(items: Sequence[_Item], layout: Layout) -> Iterator[list[list[_Item]]]:
    """The micro-batches of each optimizer step, epoch after epoch."""
    size, per_step = layout.micro_batch_rows, layout.accumulation_steps
    for epoch in count():
        ordered = [items[int(place)] for place in _order(items, layout, epoch)]
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        yield from (batches[at : at + per_step] for at in range(0, len(batches), per_step))


def _order(items: Sequence[_Item], layout: Layout, epoch: int) -> NDArray[np.int64]:
    """Source: accelerate 1.x `SeedableRandomSampler`, seeded with seed + epoch; for batches of
    like lengths our own order."""
    if layout.batching != "grouped":
        return permutation(len(items), layout.seed + epoch)
    lengths = [len(item.ids) for item in items]
    return pack.grouped(lengths, layout.micro_batch_rows, seed=layout.seed, epoch=epoch)


def _counted(steps: Sequence[Sequence[Sequence[_Item]]], pad_id: int) -> tuple[Counts, str]:
    """Counts of each step, and the hash over every padded micro-batch in turn."""
    counts = Counts(slots=[], real_tokens=[], trained_tokens=[], documents=[])
    order_hash = ""
    for step in steps:
        padded = [_padded(batch, pad_id) for batch in step]
        for ids in padded:
            order_hash = sha256(order_hash.encode() + ids.tobytes()).hexdigest()
        fed = [item for batch in step for item in batch]
        counts.slots.append(sum(ids.size for ids in padded))
        counts.real_tokens.append(sum(len(item.ids) for item in fed))
        counts.trained_tokens.append(sum(item.trained for item in fed))
        counts.documents.append(sum(item.documents for item in fed))
    return counts, order_hash


def _padded(batch: Sequence[_Item], pad_id: int) -> Ids:
    """The batch as the collator pads it [B, T]."""
    ids = np.full((len(batch), max(len(item.ids) for item in batch)), pad_id, dtype=np.int32)
    for row, item in zip(ids, batch, strict=True):
        row[: len(item.ids)] = item.ids
    return ids
