"""Rounds floats to the type that is stored: to nearest even, once.  Pure numpy."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastsft.weights import ITEM_BYTES, Bytes, Dtype, Floats

Doubles = NDArray[np.float64]
Bits = NDArray[np.uint16]
Scalar = TypeVar("Scalar", bound=np.generic)

_LOW = np.uint32(0xFFFF)
_HALF = np.uint32(0x8000)
_QUIET_NAN = np.uint16(0x7FC0)


class Scratch:
    """Arrays by use, kept from block to block: fresh ones cost a page fault per 4 KiB."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def take(self, use: str, count: int, dtype: type[Scalar]) -> NDArray[Scalar]:
        """`count` undefined values, valid until the next `take` of the same use."""
        held = self._arrays.get(use)
        if held is None or held.size < count or held.dtype != dtype:
            held = self._arrays[use] = np.empty(count, dtype)
        return held[:count]


def narrow(values: Doubles | Floats, dtype: Dtype, scratch: Scratch) -> Bytes:
    """The bytes of `values` as `dtype`, each rounded once to nearest, ties to even.

    Beyond the type's range is infinity, as IEEE 754 has it; NaN stays NaN.
    The bytes lie in `scratch`, or are `values` themselves where nothing changes.
    """
    flat = values.reshape(-1)
    if dtype == "BF16":
        return _bf16(_cast(flat, np.float32, scratch), flat, scratch)
    return _cast(flat, np.float16 if dtype == "F16" else np.float32, scratch).view(np.uint8)


def all_finite(raw: Bytes, dtype: Dtype, scratch: Scratch) -> bool:
    """Whether no value among these bytes is infinite or NaN."""
    if raw.size == 0:
        return True
    if dtype == "F32":
        return bool(np.isfinite(raw.view(np.float32)).all())
    magnitudes = scratch.take("magnitudes", raw.size // ITEM_BYTES[dtype], np.uint16)
    np.bitwise_and(raw.view(np.uint16), np.uint16(0x7FFF), out=magnitudes)
    return bool(magnitudes.max() < (0x7C00 if dtype == "F16" else 0x7F80))


def _cast(flat: NDArray[Any], dtype: type[Scalar], scratch: Scratch) -> NDArray[Scalar]:
    if flat.dtype == dtype:
        return flat
    cast = scratch.take(f"cast to {dtype.__name__}", flat.size, dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.copyto(cast, flat, casting="same_kind")
    return cast


def _bf16(singles: Floats, exact: Doubles | Floats, scratch: Scratch) -> Bytes:
    """The upper halves of `singles`, rounded as `exact` would be.

    Rounding float64 to float32 first only misleads where the float32 lies exactly half-way
    between two bfloat16 values; there `exact` decides.  Everywhere else half-up is right.
    """
    bits, count = singles.view(np.uint32), singles.size
    halfway = _halfway(bits, scratch)
    work: NDArray[np.uint32] = scratch.take("work", count, np.uint32)
    np.add(bits, _HALF, out=work)
    np.right_shift(work, 16, out=work)
    rounded: Bits = scratch.take("rounded", count, np.uint16)
    np.copyto(rounded, work, casting="same_kind")
    truth, seen = np.abs(exact[halfway]), np.abs(singles[halfway])
    rounded[halfway] -= (truth < seen) | ((truth == seen) & (rounded[halfway] & 1).astype(bool))
    if count and np.isnan(singles.max()):
        rounded[np.isnan(singles)] = _QUIET_NAN
    return rounded.view(np.uint8)


def _halfway(bits: NDArray[np.uint32], scratch: Scratch) -> NDArray[np.intp]:
    """Where the lower half of the bits is exactly one half of the upper's last place."""
    work = scratch.take("work", bits.size, np.uint32)
    ties = scratch.take("ties", bits.size, np.bool_)
    np.bitwise_and(bits, _LOW, out=work)
    np.equal(work, _HALF, out=ties)
    return np.flatnonzero(ties)
