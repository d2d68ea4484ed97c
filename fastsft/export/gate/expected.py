"""What every exported weight must be: base and adapter put together by plain numpy in float64.

It is the second opinion on `blocks` and shares no arithmetic with it.  What an adapter's files
mean (names, scale) it takes from `lora`; that is proved by the behaviour check, through PEFT.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsft.export.lora import CONFIG, Adapter, Delta, open_adapter
from fastsft.weights import Bytes, Checkpoint, Dtype, Reader, Tensor, read_object

Doubles = NDArray[np.float64]

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

BLOCK_VALUES = 512 * 1024
# float64 sums in another order differ by less than this share of their largest term.
SUMMATION = 2.0**-44


@dataclass(frozen=True)
class Block:
    """Rows `first` to `first + len(values)` of a weight, [rows, width].

    `values` is what it must be, `base` what it was, `delta` what LoRA adds, None where nothing.
    """

    first: int
    values: Doubles
    base: Doubles
    delta: Doubles | None

    @property
    def doubt(self) -> float:
        """How far another order of summation may move a value."""
        if self.delta is None or not self.values.size:
            return 0.0
        return SUMMATION * float(np.abs(self.base).max() + np.abs(self.delta).max())


class Expected:
    """The weights that were trained, by their names in the base, a block of rows at a time."""

    def __init__(self, base: Path, trained: Path, reader: Reader) -> None:
        self._reader = reader
        self.config = read_object(base / "config.json")
        self.adapter: Adapter | None = None
        self.base = Checkpoint.open(base).tensors
        self._sources: dict[str, Tensor] = dict(self.base)
        if (trained / CONFIG).is_file():
            self.adapter = open_adapter(trained)
            self._sources |= self.adapter.replaced
        else:
            self._sources = dict(Checkpoint.open(trained).tensors)
        self._last: tuple[str, Doubles] = ("", np.empty(0))
        self.is_tied = HEAD not in self.base or self.config.get("tie_word_embeddings") is True

    @property
    def deltas(self) -> Mapping[str, Delta]:
        """LoRA's part of each weight that has one."""
        return self.adapter.deltas if self.adapter else {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every weight of the model; a tied head only where the adapter made it one of its own."""
        kept = [name for name in self._sources if not name.endswith("rotary_emb.inv_freq")]
        if self.is_tied and HEAD not in kept and self.is_untied:
            kept.append(HEAD)
        return tuple(kept)

    @property
    def is_untied(self) -> bool:
        """Whether the adapter changes embedding or head of a base where they are one."""
        if not (self.is_tied and self.adapter):
            return False
        touched = {*self.adapter.deltas, *self.adapter.replaced}
        return bool(touched & {HEAD, EMBEDDING})

    def source(self, name: str) -> Tensor:
        """Where the weight comes from before LoRA is added."""
        if name == HEAD and name not in self._sources:
            return self.base[EMBEDDING] if self.adapter else self._sources[EMBEDDING]
        return self._sources[name]

    def cuts(self, name: str, *, multiple: int = 1) -> list[tuple[int, int]]:
        """First row and number of rows of each block; all but the last have `multiple`·n rows."""
        tensor = self.source(name)
        count, width = tensor.shape[0], max(1, tensor.row_length)
        step = max(multiple, BLOCK_VALUES // width // multiple * multiple)
        return [(first, min(step, count - first)) for first in range(0, count, step)]

    def block(self, name: str, first: int, rows: int) -> Block:
        """Some rows of a weight; safe from several threads."""
        tensor, delta = self.source(name), self.deltas.get(name)
        width = tensor.row_length
        flat = self._reader.floats(tensor, first * width, rows * width)
        base = flat.reshape(rows, width).astype(np.float64)
        return Block(first, base, base, None) if delta is None else self._merged(delta, first, base)

    def _merged(self, delta: Delta, first: int, base: Doubles) -> Block:
        rank, rows = delta.b.shape[1], len(base)
        flat = self._reader.floats(delta.b, first * rank, rows * rank)
        change = delta.scale * (flat.reshape(rows, rank).astype(np.float64) @ self._a(delta.a))
        values = base + change
        if delta.magnitude is not None:
            wanted = self._reader.floats(delta.magnitude, first, rows).astype(np.float64)
            values = values * (wanted / np.linalg.norm(values, axis=1))[:, None]
            change = values - base
        return Block(first, values, base, change)

    def _a(self, tensor: Tensor) -> Doubles:
        """A as float64, kept for the next block of the same weight."""
        name, kept = self._last
        if name != tensor.name:
            kept = self._reader.floats(tensor).reshape(tensor.shape).astype(np.float64)
            self._last = (tensor.name, kept)
        return kept


def stored(values: Doubles, dtype: Dtype) -> Bytes:
    """The bytes of `values` as `dtype`, rounded once, ties to even."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if dtype == "BF16":
        return (_bf16(flat).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    with np.errstate(over="ignore", under="ignore"):
        return flat.astype(np.float16 if dtype == "F16" else np.float32).view(np.uint8)


def _bf16(flat: Doubles) -> NDArray[np.float32]:
    """float64 rounded to eight significant bits; below 2**-126 to multiples of 2**-133."""
    bits = flat.view(np.uint64)
    odd = (bits >> np.uint64(45)) & np.uint64(1)
    low = np.uint64(2**45 - 1)
    rounded = ((bits + (low >> np.uint64(1)) + odd) & ~low).view(np.float64)
    small = np.abs(flat) < 2.0**-126
    if small.any():
        rounded[small] = np.rint(flat[small] * 2.0**133) * 2.0**-133
    with np.errstate(over="ignore", under="ignore"):
        single: NDArray[np.float32] = rounded.astype(np.float32)
    return single


def rope_factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """What Llama 3.1 divides each rotary frequency by [head_dim / 2]; None for other scalings.

    Source: Llama 3.1's `apply_scaling` (meta-llama/llama-models, models/llama3/model.py).
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return None
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    factor, low, high = (float(rope[key]) for key in _LLAMA3)
    context = float(rope["original_max_position_embeddings"])
    found = []
    for index in range(0, head_dim(config), 2):
        wavelength = 2 * math.pi * theta ** (index / head_dim(config))
        smooth = (context / wavelength - low) / (high - low)
        smooth = min(1.0, max(0.0, smooth))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor")


def head_dim(config: Mapping[str, Any]) -> int:
    """Values of one attention head."""
    given = config.get("head_dim")
    return int(given or config["hidden_size"] // config["num_attention_heads"])
