"""How often each row is used: by weight, by share, the same rows each time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsft.data.mixture import Use, chosen, counts


@pytest.mark.parametrize(
    ("rows", "uses", "wanted"),
    [
        ([100], [Use()], [100]),
        ([100, 40], [Use(), Use(weight=0.5)], [100, 20]),
        ([100, 40], [Use(), Use(weight=2)], [100, 80]),
        ([90, 500], [Use(), Use(share=0.1)], [90, 10]),
        ([90, 500, 0], [Use(), Use(share=0.1), Use(share=0.5)], [90, 10, 0]),
        ([60, 9, 9], [Use(), Use(share=0.2), Use(share=0.2)], [60, 20, 20]),
    ],
)
def test_weights_count_rows_and_shares_are_of_the_whole(
    rows: list[int], uses: list[Use], wanted: list[int]
):
    assert counts(rows, uses) == wanted


@given(st.integers(1, 2000), st.floats(0.01, 0.9))
def test_a_share_is_met_within_a_row(rows: int, share: float):
    plain, shared = counts([rows, 10**6], [Use(), Use(share=share)])

    assert abs(shared - share * (plain + shared)) <= 1


@given(st.integers(1, 50), st.integers(0, 200))
def test_no_row_is_repeated_before_all_are_used(rows: int, count: int):
    fractions = np.random.default_rng(rows).random(rows)

    uses = np.bincount(chosen(fractions, count), minlength=rows)

    assert uses.sum() == count
    assert uses.max() - uses.min() <= 1


def test_the_choice_keeps_its_rows_as_the_source_grows():
    fractions = np.random.default_rng(1).random(1000)

    few, more = chosen(fractions[:900], 90), chosen(fractions, 100)

    assert len(set(few.tolist()) & set(more.tolist())) >= 85


def test_the_choice_is_spread_over_rows_that_were_not_held_out():
    """Fractions below an evaluation share are gone; the choice must not need them."""
    fractions = np.linspace(0.1, 1, 1000, endpoint=False)

    places = chosen(fractions, 100)

    assert np.median(places) == pytest.approx(500, abs=150)


def test_a_use_says_itself():
    assert [str(Use()), str(Use(weight=2)), str(Use(share=0.1))] == [
        "once",
        "weight 2",
        "share 10%",
    ]
