"""Packing loses nothing, cuts nothing, fills its sequences and depends on the lengths alone."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsft.data.pack import Packed, Row, efficiency, grouped, join, pack
from fastsft.errors import DataError

BUDGET = 64
LENGTHS = st.lists(st.integers(1, BUDGET), max_size=80)


def bins_of(lengths: list[int]) -> list[list[int]]:
    found = pack(lengths, BUDGET)
    return [found[index].tolist() for index in range(len(found))]


@given(LENGTHS)
def test_every_row_is_in_exactly_one_bin(lengths: list[int]):
    rows = [row for members in bins_of(lengths) for row in members]

    assert sorted(rows) == list(range(len(lengths)))


@given(LENGTHS)
def test_no_bin_is_empty_or_over_the_budget(lengths: list[int]):
    found = pack(lengths, BUDGET)
    sums = [sum(lengths[row] for row in members) for members in bins_of(lengths)]

    assert found.tokens(lengths).tolist() == sums
    assert all(0 < total <= BUDGET for total in sums)


@given(LENGTHS)
def test_no_two_bins_would_fit_into_one(lengths: list[int]):
    fullness = sorted(pack(lengths, BUDGET).tokens(lengths).tolist())

    assert len(fullness) < 2 or fullness[0] + fullness[1] > BUDGET


@given(LENGTHS, st.randoms(use_true_random=False))
def test_the_fullness_of_the_bins_does_not_depend_on_the_order_of_the_rows(lengths, random):
    shuffled = random.sample(lengths, len(lengths))

    def fullness(of: list[int]) -> list[int]:
        return sorted(pack(of, BUDGET).tokens(of).tolist())

    assert fullness(shuffled) == fullness(lengths)


@given(LENGTHS)
def test_the_same_lengths_make_the_same_bins(lengths: list[int]):
    assert bins_of(lengths) == bins_of(list(lengths))


@given(LENGTHS)
def test_bins_come_by_their_first_rows_which_rise(lengths: list[int]):
    members = bins_of(lengths)

    assert [rows[0] for rows in members] == sorted(min(rows) for rows in members)
    assert all(rows == sorted(rows) for rows in members)


def test_a_row_goes_where_the_least_space_is_left():
    assert bins_of([40, 50, 14, 24]) == [[0, 3], [1, 2]]


def test_a_row_over_the_budget_is_refused_by_name():
    with pytest.raises(DataError) as refused:
        pack([3, 65, 66], 64)

    assert str(refused.value) == (
        "row 1: 65 tokens do not fit a sequence of 64\n"
        "  hint: raise data.max_tokens, or prepare the rows with the one that is trained with"
    )


def test_a_row_of_the_very_budget_fits():
    assert bins_of([BUDGET, BUDGET]) == [[0], [1]]


def test_there_is_no_bin_beyond_the_last():
    with pytest.raises(IndexError):
        pack([1], 2)[1]


def drawn(count: int, median: float, p95: float, cap: int) -> np.ndarray:
    """Log-normal lengths; the two shapes of chat data that packers are measured with here."""
    spread = np.log(p95 / median) / 1.645
    lengths = np.random.default_rng(0).lognormal(np.log(median), spread, count)
    return np.clip(np.rint(lengths), 1, cap).astype(np.int64)


SHAPES = [(179, 565, 2048), (698, 3077, 4096)]


@pytest.mark.parametrize(("median", "p95", "cap"), SHAPES)
def test_fifty_thousand_rows_are_packed_in_a_second_into_nearly_full_bins(median, p95, cap):
    lengths = drawn(50_000, median, p95, cap)

    began = time.process_time()
    found = pack(lengths, cap)
    seconds = time.process_time() - began

    assert lengths.sum() / (len(found) * cap) >= 0.995
    assert seconds < 1


@pytest.mark.parametrize(("median", "p95", "cap"), SHAPES)
def test_packed_beats_grouped_beats_padded(median, p95, cap):
    found = efficiency(drawn(20_000, median, p95, cap), budget=cap, batch_rows=8, seed=0)

    assert found.packed >= 0.995
    assert 0.85 < found.grouped < 0.99
    assert found.padded < 0.5


def test_efficiency_is_real_positions_of_those_computed():
    found = efficiency([4, 4, 2, 2], budget=8, batch_rows=4, seed=0)

    assert found.padded == found.grouped == 12 / 16  # one batch of 4 x 4
    assert found.packed == 12 / 16  # one batch of two sequences: 8 and 4


def test_efficiency_of_nothing_wastes_nothing():
    found = efficiency([], budget=8, batch_rows=2, seed=0)

    assert (found.padded, found.grouped, found.packed) == (1.0, 1.0, 1.0)


def test_efficiency_is_of_the_seed():
    lengths = drawn(1000, 179, 565, 2048)

    def of(seed: int) -> object:
        return efficiency(lengths, budget=2048, batch_rows=4, seed=seed)

    assert of(1) == of(1) != of(2)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 5))
def test_a_grouped_order_holds_every_row_once(lengths: list[int], batch_rows: int, epoch: int):
    order = grouped(lengths, batch_rows, seed=3, epoch=epoch)

    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert order.tolist() == grouped(lengths, batch_rows, seed=3, epoch=epoch).tolist()


def test_grouped_batches_change_from_epoch_to_epoch_and_are_not_by_length():
    lengths = drawn(403, 179, 565, 2048)

    orders = [grouped(lengths, 4, seed=1, epoch=epoch)[:400].reshape(-1, 4) for epoch in (0, 1)]
    batches = [{frozenset(batch) for batch in order.tolist()} for order in orders]
    longest = lengths[orders[0]].max(axis=1)

    assert len(batches[0] & batches[1]) < 10
    assert abs(np.corrcoef(longest, np.arange(100))[0, 1]) < 0.3


def row(ids: list[int]) -> Row:
    """A row whose labels are its ids, the even ones untrained."""
    labels = [i if i % 2 else -100 for i in ids]
    return np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32)


ROWS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9).map(row), min_size=1)


def documents(packed: Packed, values: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(values, np.cumsum(packed.lengths)[:-1])]


@given(ROWS)
def test_joined_documents_keep_their_ids_and_their_labels_but_the_first(rows: list[Row]):
    packed = join(rows)

    assert documents(packed, packed.input_ids) == [ids.tolist() for ids, _ in rows]
    assert documents(packed, packed.labels) == [[-100, *labels[1:]] for _, labels in rows]


@given(ROWS)
def test_positions_begin_again_with_every_document(rows: list[Row]):
    packed = join(rows)

    positions = documents(packed, packed.position_ids)

    assert positions == [list(range(len(ids))) for ids, _ in rows]


@given(ROWS)
def test_joining_leaves_the_rows_as_they_were(rows: list[Row]):
    before = [labels.tolist() for _, labels in rows]

    join(rows)

    assert [labels.tolist() for _, labels in rows] == before


@given(ROWS, st.integers(0, 20))
def test_padding_is_an_untrained_document_at_the_end(rows: list[Row], missing: int):
    packed = join(rows)
    size = len(packed.input_ids)

    padded = packed.padded(size + missing, pad_id=7)

    assert documents(padded, padded.input_ids)[: len(rows)] == documents(packed, packed.input_ids)
    assert padded.input_ids[size:].tolist() == [7] * missing
    assert padded.labels[size:].tolist() == [-100] * missing
    assert padded.position_ids[size:].tolist() == list(range(missing))
    assert padded.lengths.sum() == size + missing
