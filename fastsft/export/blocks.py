"""Computes one block of one output tensor at a time, in memory that does not grow with the model.

The definition of a merged weight: `scale * (B @ A) + W` in float64, then for DoRA times the
row's magnitude over its 2-norm, rounded once to the stored type.  In float64 another order of
summation moves a result by about 2**-52 of its terms, so it changes a bfloat16 or float16 weight
about once in 10**13 and a float32 weight about once in 10**8.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastsft.errors import ExportError
from fastsft.export.lora import Delta
from fastsft.export.plan import Output
from fastsft.export.rounding import Doubles, Scratch, all_finite, narrow
from fastsft.weights import ITEM_BYTES, Bytes, Floats, Reader, Tensor, widen

# About what a core's own cache holds as float64: measured best of 32k to 512k.
BLOCK_VALUES = 128 * 1024
COPY_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class Block:
    """Values `first` to `first + count` of an output; whole rows where it has a delta."""

    output: Output
    first: int
    count: int
    a: Doubles | None  # [rank, in], scaled


@dataclass(frozen=True)
class Values:
    """A block's values before the adapter, float32, and after it, float64 where it has a part."""

    base: Floats
    merged: Doubles | Floats


def blocks(output: Output, reader: Reader, *, unit_rows: int = 0) -> Iterator[Block]:
    """The output cut into blocks, in the order of its bytes.

    Where `unit_rows` is given, each block holds a whole number of such groups of rows.
    """
    step, a = BLOCK_VALUES, None
    unit = max(1, output.source.row_length) * max(1, unit_rows)
    if output.delta or unit_rows:
        step = max(1, BLOCK_VALUES // unit) * unit
    if output.delta:
        a = reader.floats(output.delta.a).reshape(output.delta.a.shape).astype(np.float64)
        a *= output.delta.scale
    elif output.dtype == output.source.dtype and not unit_rows:
        step = COPY_BYTES // ITEM_BYTES[output.dtype]
    for first in range(0, output.source.count, step):
        yield Block(output, first, min(step, output.source.count - first), a)


class Kernel:
    """Computes blocks from several threads, and remembers how far LoRA moved the weights."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._threads = threading.local()
        self._lock = threading.Lock()
        self.changed: set[str] = set()
        self.max_abs_delta = 0.0

    def __call__(self, block: Block) -> Bytes:
        """The block's bytes as they are stored, valid until this thread's next block.

        Raises: ExportError when a value does not fit the stored type.
        """
        output = block.output
        if output.delta is None and output.dtype == output.source.dtype:
            return self._read(block)
        values = self.values(block)
        stored = narrow(values.merged, output.dtype, self.scratch)
        if not all_finite(stored, output.dtype, self.scratch):
            raise overflow(output.name, output.dtype)
        if output.delta is not None and output.name not in self.changed:
            self._compare(output, stored, values.base)
        return stored

    def values(self, block: Block) -> Values:
        """The block's values, not rounded yet; valid until this thread's next block."""
        output = block.output
        wide = self.scratch.take("wide", block.count, np.float32)
        base = widen(self._read(block), output.source.dtype, wide)
        return Values(base, self._merged(block, output.delta, base) if output.delta else base)

    @property
    def scratch(self) -> Scratch:
        """This thread's own arrays."""
        if not hasattr(self._threads, "scratch"):
            self._threads.scratch = Scratch()
        scratch: Scratch = self._threads.scratch
        return scratch

    def _read(self, block: Block) -> Bytes:
        source = block.output.source
        raw = self.scratch.take("raw", block.count * ITEM_BYTES[source.dtype], np.uint8)
        self._reader.read_into(source, block.first * ITEM_BYTES[source.dtype], raw)
        return raw

    def _merged(self, block: Block, delta: Delta, base: Floats) -> Doubles:
        product = self._product(block, delta)
        base = base.reshape(product.shape)
        if delta.magnitude is None:
            self._moved(product)
            product += base
            return product
        product += base
        with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros: refused as stored
            product *= self._row_scales(block, delta.magnitude, product)
            self._moved(product - base)
        return product

    def _product(self, block: Block, delta: Delta) -> Doubles:
        """The block's rows of scale * B @ A."""
        assert block.a is not None
        rank, width = block.a.shape
        row, rows = block.first // width, block.count // width
        b = self._reader.floats(delta.b, row * rank, rows * rank).reshape(rows, rank)
        product = self.scratch.take("product", block.count, np.float64).reshape(rows, width)
        np.matmul(b.astype(np.float64), block.a, out=product)
        return product

    def _row_scales(self, block: Block, magnitude: Tensor, merged: Doubles) -> Doubles:
        """DoRA's factor of each row: magnitude / 2-norm.  Source: PEFT 0.21, DoraLinearVariant."""
        rows, width = merged.shape
        wanted = self._reader.floats(magnitude, block.first // width, rows).astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", merged, merged))
        scales: Doubles = wanted / norms
        return scales[:, None]

    def _moved(self, delta: Doubles) -> None:
        furthest = max(float(delta.max()), -float(delta.min())) if delta.size else 0.0
        with self._lock:
            self.max_abs_delta = max(self.max_abs_delta, furthest)

    def _compare(self, output: Output, stored: Bytes, base: Floats) -> None:
        unmerged = narrow(base, output.dtype, Scratch())
        if not np.array_equal(widen(stored, output.dtype), widen(unmerged, output.dtype)):
            self.changed.add(output.name)


def overflow(name: str, dtype: str) -> ExportError:
    """The error for values that the stored type has no room for."""
    return ExportError(
        f"{name} has values that {dtype} cannot hold",
        where="export",
        hint="export as bfloat16 or float32; if it happens there too, the weights are not finite",
    )
