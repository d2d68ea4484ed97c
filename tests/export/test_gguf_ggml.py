"""Our q8_0 is the gguf package's to the bit, from float64 and float32 alike."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsft.export import ggml
from fastsft.export.rounding import Scratch

FLOATS = st.floats(width=32, min_value=-1e4, max_value=1e4, allow_subnormal=False)


def theirs(values):
    return quantize(values.astype(np.float32).reshape(-1, 32), GGMLQuantizationType.Q8_0).reshape(
        -1
    )


@settings(max_examples=40)
@given(st.lists(FLOATS.filter(lambda x: x == 0 or abs(x) > 1e-30), min_size=32, max_size=32))
def test_any_block_is_the_packages(values):
    block = np.array(values, np.float32)

    assert (ggml.encode(block, "Q8_0", Scratch()) == theirs(block)).all()


@pytest.mark.parametrize("scale", [1e-20, 0.02, 1.0, 500.0])
def test_random_float64_is_rounded_to_float32_then_quantised(scale):
    values = np.random.default_rng(1).standard_normal((64, 4096)) * scale

    assert (ggml.encode(values, "Q8_0", Scratch()) == theirs(values)).all()


def test_halves_are_rounded_away_from_zero():
    block = np.array([127.0, *(n - 15.5 for n in range(31))], np.float32)

    stored = ggml.encode(block, "Q8_0", Scratch())[2:].view(np.int8)

    assert stored[1:].tolist() == [*range(-16, 0), *range(1, 16)]


def test_the_float_below_one_half_is_rounded_to_zero():
    block = np.array([127.0, 0.49999997, -0.49999997, 0.5, *([0] * 28)], np.float32)

    assert ggml.encode(block, "Q8_0", Scratch())[2:6].view(np.int8).tolist() == [127, 0, 0, 1]


def test_a_block_too_small_for_a_scale_is_zeros_without_a_warning():
    block = np.full(32, 1e-40, np.float32)

    assert not ggml.encode(block, "Q8_0", Scratch()).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e7])
def test_what_no_scale_can_hold_does_not_fit(value):
    raw = ggml.encode(np.array([value, *([0] * 31)], np.float32), "Q8_0", Scratch())

    assert not ggml.fits(raw, "Q8_0", Scratch())
