"""The definitions: what is counted, how values lie, what a peak is."""

import random

import pytest

from fastsft import meter
from fastsft.meter import Lap, Rates, Tokens


def test_tokens_add_up_kind_by_kind():
    one = Tokens(trained=1, real=2, slots=3, documents=4, pairs=5, computed_pairs=6)
    other = Tokens(trained=10, real=20, slots=30, documents=40, pairs=50, computed_pairs=60)

    assert one + other == Tokens(11, 22, 33, 44, 55, 66)


def test_a_rate_is_told_of_each_kind_of_token():
    assert Tokens(trained=10, real=20, slots=40).per_second(2.0) == (5, 10, 20)
    assert meter.rates(Lap(Tokens(10, 20, 40), 2.0)) == Rates(trained=5, real=10, slots=20)


def test_nothing_has_no_rate():
    assert meter.rates(None) is None
    assert meter.rates(Lap(Tokens(), 0.0)) is None


def test_steps_add_up_with_their_time_and_our_part_of_it():
    both = Lap(Tokens(1), 2.0, 0.25) + Lap(Tokens(3), 4.0, 0.5)

    assert both == Lap(Tokens(4), 6.0, 0.75)


def test_the_spread_of_known_values():
    found = meter.spread([5.0, 1.0, 2.0, 3.0, 4.0])

    assert found == meter.Spread(median=3.0, p10=pytest.approx(1.4), p90=pytest.approx(4.6), mad=1)


def test_the_order_of_values_does_not_change_their_spread():
    values = [float(n * n) for n in range(17)]
    shuffled = random.Random(0).sample(values, len(values))

    assert meter.spread(shuffled) == meter.spread(values)


def test_the_warm_up_is_no_part_of_the_spread():
    assert meter.spread([100.0, 2.0, 2.0], warmup=1) == meter.Spread(2.0, 2.0, 2.0, 0.0)
    assert meter.spread([100.0], warmup=1) is None


@pytest.mark.parametrize(("rate", "peak"), [(None, 1e12), (1e12, None), (None, None), (1e12, 0)])
def test_a_utilisation_that_cannot_be_known_is_not_guessed(rate, peak):
    assert meter.utilisation(rate, peak) is None


def test_utilisation_is_a_share_of_the_peak():
    assert meter.utilisation(40e12, 160e12) == 0.25


def test_the_peak_of_a_process_is_the_highest_of_its_phases():
    phases = [{"allocated": 3, "reserved": 10}, {"allocated": 7, "reserved": 8}]

    assert meter.whole(phases) == {"allocated": 7, "reserved": 10}
    assert meter.whole([]) == {}


def test_our_share_of_no_time_is_nothing():
    assert meter.share(0.0, 0.0) == 0
    assert meter.share(1.0, 4.0) == 0.25
