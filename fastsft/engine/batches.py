"""Makes the trainer's items and batches of token rows: padded, of like lengths, or packed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from fastsft.data import pack
from fastsft.data.arrays import TokenRows
from fastsft.data.pack import Bins, Packed
from fastsft.engine.settings import Batching
from fastsft.meter import Tokens

UNTRAINED = -100
REAL = "real_tokens"
"""A packed batch's key for what is not padding in each sequence [B]; the model never sees it."""


@dataclass(frozen=True)
class Items:
    """What one side of the data gives the trainer: a row each, or the rows of a bin each."""

    rows: TokenRows
    bins: Bins | None = None

    @classmethod
    def of(cls, rows: TokenRows, batching: Batching, *, budget: int) -> "Items":
        """The rows as they are trained; `budget`: tokens of a packed sequence."""
        return cls(rows, pack.pack(rows.lengths, budget) if batching == "packed" else None)

    def __len__(self) -> int:
        return len(self.rows) if self.bins is None else len(self.bins)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.bins is None:
            ids, labels = self.rows[index]
            return {"input_ids": ids, "labels": labels}
        return packed_item(pack.join([self.rows[int(row)] for row in self.bins[index]]))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each item [N]."""
        return self.rows.lengths if self.bins is None else self.bins.tokens(self.rows.lengths)

    def dataset(self) -> Any:
        """The items as a `datasets.Dataset`."""
        from datasets import Dataset

        items = [self[index] for index in range(len(self))]
        return Dataset.from_dict({key: [item[key] for item in items] for key in items[0]})


def packed_item(packed: Packed) -> dict[str, Any]:
    """A packed sequence as the trainer's item."""
    return {"input_ids": packed.input_ids, "labels": packed.labels, "lengths": packed.lengths}


class Collator:
    """Pads items on the right to the longest of the batch.  Nothing is cut.

    Packed items have no attention mask: transformers and Unsloth would believe it, and let the
    documents of a sequence see each other.  The padding is a document of its own instead.
    """

    def __init__(self, pad_id: int, *, tells_lengths: bool = False) -> None:
        """`tells_lengths`: packed batches name their documents' lengths, as Unsloth wants it."""
        self.pad_id, self.tells_lengths = pad_id, tells_lengths

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if "lengths" in items[0]:
            return self._packed(items)
        width = max(len(item["input_ids"]) for item in items)
        ids = torch.full((len(items), width), self.pad_id)  # [B, T]
        labels = torch.full((len(items), width), UNTRAINED)  # [B, T]
        mask = torch.zeros((len(items), width), dtype=torch.long)  # [B, T]
        for index, item in enumerate(items):
            length = len(item["input_ids"])
            ids[index, :length] = torch.as_tensor(item["input_ids"])
            labels[index, :length] = torch.as_tensor(item["labels"])
            mask[index, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _packed(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(item["input_ids"]) for item in items)
        full = [_sequence(item).padded(width, pad_id=self.pad_id) for item in items]
        batch = {
            "input_ids": _stacked([one.input_ids for one in full]),
            "labels": _stacked([one.labels for one in full]),
            "position_ids": _stacked([one.position_ids for one in full]),
            REAL: torch.tensor([len(item["input_ids"]) for item in items]),
            "use_cache": False,  # with a cache, transformers does not look for documents
        }
        if self.tells_lengths:
            lengths = np.concatenate([one.lengths for one in full])
            batch["packed_seq_lengths"] = torch.as_tensor(lengths, dtype=torch.int32)
        return batch


def _sequence(item: dict[str, Any]) -> Packed:
    return Packed(*(np.asarray(item[key], np.int32) for key in ("input_ids", "labels", "lengths")))


def _stacked(rows: Sequence[NDArray[np.int32]]) -> torch.Tensor:
    """The rows as one tensor  # [B, T]."""
    return torch.as_tensor(np.stack(rows), dtype=torch.long)


def counted(
    labels: NDArray[np.int64], real: NDArray[np.int64], positions: NDArray[np.int64] | None
) -> Tokens:
    """What a micro-batch is, counted: labels [B, T], real tokens of each sequence [B].

    `positions` [B, T]: of packed sequences, from 0 in each document, the padding one of its own;
    a position sees as many keys as stand before it in its document, and itself.
    """
    rows, width = labels.shape
    trained = int((labels[:, 1:] != UNTRAINED).sum())
    if positions is None:
        documents, pairs = int((real > 0).sum()), int((real * (real + 1) // 2).sum())
        computed = rows * width * (width + 1) // 2
    else:
        is_real = np.arange(width) < real[:, None]  # [B, T]
        documents, pairs = int((is_real & (positions == 0)).sum()), int(positions[is_real].sum())
        pairs, computed = pairs + int(is_real.sum()), int(positions.sum()) + positions.size
    return Tokens(
        trained=trained,
        real=int(real.sum()),
        slots=labels.size,
        documents=documents,
        pairs=pairs,
        computed_pairs=computed,
    )


class LikeLengths(Sampler[int]):
    """The rows in batches of like lengths, in an order of the seed and the epoch alone.

    transformers' own sampler draws from torch's global random numbers, and a resumed run would
    see another order.
    """

    def __init__(self, lengths: NDArray[np.int64], batch_rows: int, *, seed: int) -> None:
        self._lengths, self._batch_rows, self._seed, self._epoch = lengths, batch_rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer as each epoch begins, a resumed one too."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        order = pack.grouped(self._lengths, self._batch_rows, seed=self._seed, epoch=self._epoch)
        return iter(order.tolist())
