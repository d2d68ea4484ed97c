"""Compares stored weights with what they must be, a block at a time.  Reads no file.

Types that hold a weight by itself (F32, F16, BF16) must be equal to the bit, Q8_0 as fastsft
writes it to the byte; what llama.cpp quantised is measured: how far from the weights it lies,
and how much of the adapter's change is in it.
"""

import math
import os
from dataclasses import dataclass

import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from fastsft.export.gate.expected import Block, Doubles, stored
from fastsft.weights import Bytes, Dtype, Floats, widen

WORKERS = min(8, len(os.sched_getaffinity(0)))
"""Blocks compared at once; each takes some 40 MB."""

_PLAIN: dict[str, Dtype] = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


@dataclass(frozen=True)
class Sums:
    """Sums over weights: w what the base has, d what LoRA adds, y what is stored, v = w + d."""

    count: float = 0.0
    ww: float = 0.0
    wd: float = 0.0
    dd: float = 0.0
    yw: float = 0.0
    yd: float = 0.0
    vv: float = 0.0
    error: float = 0.0  # of (y - v)²

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(one + two for one, two in zip(_plain(self), _plain(other), strict=True)))

    @property
    def relative_error(self) -> float:
        """Root mean square of the error, as a share of the weights' own."""
        if self.vv == 0:
            return 0.0 if self.error == 0 else math.inf
        return math.sqrt(self.error / self.vv)

    def arrived(self) -> "Arrived | None":
        """How much of LoRA's change is stored; None where there is no change to look for.

        Least squares of y = a·w + c·d.  What quantising adds is as good as independent of d, so
        c is known to within the error over the root of the sum of d² that w does not explain.
        """
        own = self.dd - (self.wd**2 / self.ww if self.ww else 0.0)
        if not own > 1e-9 * self.dd:
            return None
        along = self.wd / self.ww if self.ww else 0.0
        share = (self.yd - along * self.yw) / own
        return Arrived(share, math.sqrt(self.error / self.count / own))


@dataclass(frozen=True)
class Arrived:
    """The share of LoRA's change that is stored, 1.0 if all, and its standard deviation."""

    share: float
    deviation: float


@dataclass(frozen=True)
class Compared:
    """One block's comparison; `wrong` and `near_ties` count values, `changed` ones LoRA moved."""

    values: int
    wrong: int = 0
    near_ties: int = 0
    changed: int = 0
    is_finite: bool = True
    sums: Sums | None = None


def compared(
    block: Block, raw: Bytes, kind: GGMLQuantizationType, *, ours: bool = False
) -> Compared:
    """A block against the bytes that are stored for it as `kind`.

    `ours` says that fastsft wrote them: then Q8_0 is the quantised float32 rounding, byte by byte.
    llama.cpp quantises from float16 instead.

    Raises: NotImplementedError when the `gguf` package cannot read that type.
    """
    if kind.name in _PLAIN:
        return plainly(block, raw, _PLAIN[kind.name])
    if ours and kind is GGMLQuantizationType.Q8_0:
        return _q8_0(block, raw)
    rows = raw.reshape(len(block.values), -1)
    return _coarsely(block, quants.dequantize(rows, kind).astype(np.float64))


def plainly(block: Block, raw: Bytes, dtype: Dtype) -> Compared:
    """A block against values that are stored one by one."""
    wanted = stored(block.values, dtype)
    changed = 0
    if block.delta is not None:
        changed = int(np.count_nonzero(_items(wanted, dtype) != _items(_base(block, dtype), dtype)))
    is_finite = bool(np.isfinite(widen(raw, dtype)).all())
    different = _items(wanted, dtype) != _items(raw, dtype)
    if not different.any():
        return Compared(block.values.size, changed=changed, is_finite=is_finite)
    near = _near_ties(block, widen(raw, dtype)[different], different, widen(wanted, dtype))
    wrong = int(np.count_nonzero(different)) - near
    return Compared(block.values.size, wrong, near, changed, is_finite)


def _near_ties(block: Block, found: Floats, where: NDArray[np.bool_], wanted: Floats) -> int:
    """How many of the different values are as near to the exact one as ours, but for float64's
    own rounding: two orders of summation that fall to two sides of a tie."""
    exact = block.values.reshape(-1)[where]
    with np.errstate(invalid="ignore"):
        ours = np.abs(wanted[where].astype(np.float64) - exact)
        theirs = np.abs(found.astype(np.float64) - exact)
        return int(np.count_nonzero(theirs <= ours + 2 * block.doubt))


def _q8_0(block: Block, raw: Bytes) -> Compared:
    wanted = _quantised(block.values)
    different = (wanted.reshape(-1, 34) != raw.reshape(-1, 34)).any(axis=1)
    changed = 0
    if block.delta is not None:
        changed = int(np.count_nonzero(wanted != _quantised(block.base)))
    scales = raw.reshape(-1, 34)[:, :2].copy().view(np.float16)
    return Compared(
        block.values.size,
        wrong=32 * int(np.count_nonzero(different)),
        changed=changed,
        is_finite=bool(np.isfinite(scales).all()),
    )


def _quantised(values: Doubles) -> Bytes:
    singles = values.astype(np.float32)
    found: Bytes = quants.quantize(singles, GGMLQuantizationType.Q8_0)
    return np.ascontiguousarray(found).reshape(-1)


def _coarsely(block: Block, found: Doubles) -> Compared:
    y, v, w = found.reshape(-1), block.values.reshape(-1), block.base.reshape(-1)
    is_finite = bool(np.isfinite(y).all())
    error, vv = float(np.square(y - v).sum()), float(v @ v)
    if block.delta is None:
        return Compared(v.size, is_finite=is_finite, sums=Sums(vv=vv, error=error))
    d = block.delta.reshape(-1)
    ww, wd, dd, yw, yd = (float(a @ b) for a, b in ((w, w), (w, d), (d, d), (y, w), (y, d)))
    sums = Sums(v.size, ww, wd, dd, yw, yd, vv, error)
    return Compared(v.size, changed=int(np.any(d != 0)), is_finite=is_finite, sums=sums)


def _base(block: Block, dtype: Dtype) -> Bytes:
    return stored(block.base, dtype)


def _items(raw: Bytes, dtype: Dtype) -> NDArray[np.generic]:
    """The bits of each value; the two zeros are one."""
    if dtype == "F32":
        bits = raw.view(np.uint32)
        return np.where(bits == 1 << 31, np.uint32(0), bits)
    half = raw.view(np.uint16)
    return np.where(half == 1 << 15, np.uint16(0), half)


def _plain(sums: Sums) -> tuple[float, ...]:
    return (sums.count, sums.ww, sums.wd, sums.dd, sums.yw, sums.yd, sums.vv, sums.error)
