"""The evaluation split: stable, and never empty on either side."""

from hypothesis import given
from hypothesis import strategies as st

from fastsft.data.split import evaluated, fraction

FRACTIONS = st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=30)
SHARES = st.floats(0.001, 0.999)


def test_the_order_of_keys_does_not_matter():
    assert fraction({"a": 1, "b": "é"}) == fraction({"b": "é", "a": 1})


def test_content_matters():
    assert fraction({"a": 1}) != fraction({"a": 2})


def test_the_share_is_about_right():
    fractions = [fraction({"row": i}) for i in range(2000)]

    assert 150 < sum(evaluated(fractions, 0.1)) < 250


def test_no_share_evaluates_nothing():
    assert evaluated([0.0, 0.5], 0.0) == [False, False]


@given(fractions=FRACTIONS, share=SHARES)
def test_neither_side_is_empty(fractions: list[float], share: float):
    assert set(evaluated(fractions, share)) == {True, False}


@given(fractions=FRACTIONS, share=SHARES, more=st.floats(0, 1, exclude_max=True))
def test_a_new_row_moves_no_other(fractions: list[float], share: float, more: float):
    before = [value < share for value in fractions]
    if not any(before) or all(before):
        return

    assert evaluated([*fractions, more], share)[:-1] == before
