"""Rounding is to nearest even, once, for every value there is."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsft.export.rounding import Scratch, all_finite, narrow
from fastsft.weights import Dtype, widen

# significand bits, least exponent, largest finite value
FORMATS: dict[Dtype, tuple[int, int, float]] = {
    "BF16": (8, -126, (2 - 2.0**-7) * 2.0**127),
    "F16": (11, -14, 65504.0),
    "F32": (24, -126, (2 - 2.0**-23) * 2.0**127),
}


def nearest(value: float, dtype: Dtype) -> float:
    """The definition, in exact arithmetic: the nearest multiple of the last place."""
    bits, least, largest = FORMATS[dtype]
    exponent = max(math.frexp(value)[1], least + 1) - bits
    rounded = round(Fraction(value) / Fraction(2) ** exponent) * Fraction(2) ** exponent
    return math.copysign(math.inf, value) if abs(rounded) > largest else float(rounded)


def stored(value: float, dtype: Dtype) -> float:
    return float(widen(narrow(np.array([value]), dtype, Scratch()).copy(), dtype)[0])


@pytest.mark.parametrize("dtype", FORMATS)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_any_double_goes_to_its_nearest(dtype, value):
    assert stored(value, dtype) == nearest(value, dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@given(value=st.floats(width=16, allow_nan=False, allow_infinity=False), nudge=st.integers(-2, 2))
def test_doubles_around_a_half_way_go_to_their_nearest(dtype, value, nudge):
    bits = FORMATS[dtype][0]
    half = value * (1 + 2.0**-bits)
    for _ in range(abs(nudge)):
        half = math.nextafter(half, math.copysign(math.inf, nudge))

    assert stored(half, dtype) == nearest(half, dtype)


def test_rounding_to_float32_first_would_be_wrong():
    just_above = 1 + 2.0**-8 + 2.0**-40

    assert stored(just_above, "BF16") == 1 + 2.0**-7
    assert stored(1 + 3 * 2.0**-8 - 2.0**-40, "BF16") == 1 + 2.0**-7


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_16_bit_value_survives_the_way_there_and_back(dtype):
    raw = np.arange(65536, dtype=np.uint16).view(np.uint8)
    wide = widen(raw, dtype)

    back = narrow(wide, dtype, Scratch()).view(np.uint16)

    number = ~np.isnan(wide)
    assert np.array_equal(back[number], np.arange(65536, dtype=np.uint16)[number])
    assert np.isnan(widen(back[~number].view(np.uint8), dtype)).all()


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000])
def test_no_nan_becomes_a_number(bits):
    values = np.array([1.0, 0.0], np.float32)
    values.view(np.uint32)[1] = bits

    assert np.isnan(widen(narrow(values, "BF16", Scratch()), "BF16")[1])


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_not_finite_is_seen(dtype):
    largest = FORMATS[dtype][2]

    assert all_finite(narrow(np.array([largest, -largest]), dtype, Scratch()), dtype, Scratch())
    for bad in (math.inf, -math.inf, math.nan, largest * 1.01):
        raw = narrow(np.array([1.0, bad]), dtype, Scratch())
        assert not all_finite(raw, dtype, Scratch())
