"""Which rows are evaluated on: by content alone."""

import numpy as np

from fastsft.data.split import evaluated, fractions

HASHES = np.random.default_rng(3).integers(0, 2**64, size=(5000, 2), dtype=np.uint64)


def test_fractions_are_spread_over_zero_to_one():
    found = fractions(HASHES)

    assert 0 <= found.min() < 0.01
    assert 0.99 < found.max() < 1


def test_about_the_share_is_held_out():
    assert abs(evaluated(fractions(HASHES), 0.1).mean() - 0.1) < 0.02


def test_a_row_keeps_its_side_as_data_grows():
    few, all_ = (evaluated(fractions(HASHES[:count]), 0.1) for count in (100, 5000))

    assert np.array_equal(few, all_[:100])


def test_a_larger_share_holds_out_the_same_rows_and_more():
    small, large = (evaluated(fractions(HASHES), share) for share in (0.05, 0.1))

    assert not (small & ~large).any()


def test_no_share_holds_out_nothing():
    assert not evaluated(fractions(HASHES), 0).any()
