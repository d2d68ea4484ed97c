"""The order of rows is worked out a second time; test_bench_end_to_end has the trainer's own."""

import numpy as np
import pytest

from fastsft import synthetic
from fastsft.bench import order
from fastsft.bench.order import Layout
from fastsft.data.arrays import Index, TokenRows


def layout(**changes: object) -> Layout:
    values = {
        "micro_batch_rows": 2,
        "accumulation_steps": 1,
        "batching": "padded",
        "max_tokens": 8,
        "seed": 1,
        "pad_id": 0,
    }
    return Layout(**{**values, **changes})  # type: ignore[arg-type]


def rows(*lengths: int) -> TokenRows:
    """Rows of these lengths, all but the first token trained."""
    sizes = np.array(lengths)
    index = Index.of(sizes, np.arange(len(sizes)), sizes - 1)
    trained = np.ones(int(sizes.sum()), dtype=np.bool_)
    trained[index.starts] = False
    return TokenRows(np.arange(1, int(sizes.sum()) + 1, dtype=np.int32), trained, index)


@pytest.mark.parametrize(
    ("size", "seed", "wanted"),
    [
        (7, 3407, [5, 1, 3, 4, 2, 0, 6]),
        (10, 0, [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]),
        (1, 5, [0]),
    ],
)
def test_a_permutation_is_that_of_torch_randperm(size: int, seed: int, wanted: list[int]):
    """Pinned from torch 2.10: `torch.randperm(size, generator=Generator().manual_seed(seed))`."""
    assert order.permutation(size, seed).tolist() == wanted


def test_an_epoch_feeds_every_row_once():
    data = rows(3, 5, 2, 8, 4)

    found = order.expected(data, layout(), steps=3)

    assert found.steps_per_epoch == 3
    assert sum(found.steps.documents) == 5
    assert sum(found.steps.real_tokens) == found.real_tokens == 22
    assert sum(found.steps.trained_tokens) == found.trained_tokens == 17


def test_padding_is_counted_as_slots():
    found = order.expected(rows(3, 8), layout(), steps=1)

    assert found.steps.slots == [16]
    assert found.steps.real_tokens == [11]


def test_the_last_step_of_an_epoch_takes_what_is_left():
    found = order.expected(rows(4, 4, 4, 4, 4), layout(accumulation_steps=2), steps=4)

    assert found.steps.documents == [4, 1, 4, 1]


def test_epochs_have_orders_of_their_own():
    one = order.expected(rows(1, 2, 3, 4, 5, 6), layout(micro_batch_rows=1), steps=12)

    assert one.steps.slots[:6] != one.steps.slots[6:]
    assert sorted(one.steps.slots[:6]) == sorted(one.steps.slots[6:])


def test_packed_rows_share_sequences_and_lose_their_first_tokens():
    found = order.expected(rows(3, 5, 2, 6), layout(batching="packed"), steps=1)

    assert found.items == 2
    assert found.steps.slots == [16]
    assert found.steps.documents == [4]
    assert found.steps.trained_tokens == [12]


def test_like_lengths_are_batched_together():
    data = rows(*([2] * 8 + [8] * 8))

    found = order.expected(data, layout(batching="grouped"), steps=8)

    assert found.steps.slots == found.steps.real_tokens


def test_another_seed_or_pad_is_another_hash():
    data = rows(3, 5, 2, 8, 4)
    hashes = {
        order.expected(data, layout(**change), steps=3).order_hash
        for change in ({}, {"seed": 2}, {"pad_id": 9}, {"micro_batch_rows": 3})
    }

    assert len(hashes) == 4


def test_synthetic_rows_have_no_padding():
    data = synthetic.token_rows(100, rows=12, length=8, seed=1)

    found = order.expected(data, layout(), steps=6)

    assert found.steps.slots == found.steps.real_tokens == [16] * 6
    assert found.steps.trained_tokens == [8] * 6
