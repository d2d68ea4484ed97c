"""The products of training, by hand; tests/test_flops_counter.py holds them against torch."""

from itertools import pairwise

import pytest

from fastsft import flops
from fastsft.flops import Flops
from fastsft.recipe import ALL_LINEAR
from fastsft.shapes import SHIPPED

SHAPE = SHIPPED["llama-3.1-8b"]
LORA = SHAPE.lora_params(16, ALL_LINEAR)
LINEAR, HEAD = SHAPE.linear_params, SHAPE.head_params
ATTENTION = 4 * 32 * 4096
"""FLOP of one attended pair, forward."""


def work(
    *, tokens: int = 100, head_rows: int = 100, pairs: int = 0, recomputed_layers: int = 0
) -> Flops:
    return flops.of_work(
        SHAPE,
        lora_params=LORA,
        tokens=tokens,
        head_rows=head_rows,
        pairs=pairs,
        recomputed_layers=recomputed_layers,
    )


def test_a_frozen_weight_costs_four_flop_a_token_and_a_trained_one_six():
    assert work().model == 100 * (4 * (LINEAR + HEAD) + 6 * LORA)


def test_recomputation_costs_two_more_but_the_head_is_not_repeated():
    assert work(recomputed_layers=32).hardware == 100 * (6 * LINEAR + 4 * HEAD + 8 * LORA)
    assert work(recomputed_layers=8).recompute == work(recomputed_layers=32).recompute / 4


def test_attention_costs_three_passes_and_flash_attention_half_a_pass_more():
    found = work(pairs=5050, recomputed_layers=32)
    without = work(recomputed_layers=32)

    assert found.model - without.model == 3 * 5050 * ATTENTION
    assert found.hardware - without.hardware == 4.5 * 5050 * ATTENTION


def test_a_row_without_a_trained_label_needs_no_logits():
    assert work().model - work(head_rows=40).model == 4 * 60 * HEAD


def test_full_fine_tuning_costs_six_flop_a_weight():
    found = flops.of_work(
        SHAPE,
        lora_params=0,
        tokens=10,
        head_rows=10,
        pairs=0,
        recomputed_layers=0,
        trains_base=True,
    )

    assert found.model == 10 * 6 * (LINEAR + HEAD)


def test_documents_attend_to_themselves_only():
    assert flops.causal_pairs([4]) == 10
    assert flops.causal_pairs([3, 1]) == 7
    assert flops.causal_pairs([]) == 0


def test_work_adds_up():
    both = work() + work(pairs=7, recomputed_layers=32)

    assert both == Flops(
        *(
            getattr(work(), field) + getattr(work(pairs=7, recomputed_layers=32), field)
            for field in ("forward", "backward", "recompute", "attention")
        )
    )


@pytest.mark.parametrize("recomputed", [0, 32])
def test_the_stock_stack_leaves_a_little_out(recomputed: int):
    whole = work(pairs=5050, recomputed_layers=recomputed)

    stock = flops.as_stock(
        whole,
        SHAPE,
        rank=16,
        targets=ALL_LINEAR,
        tokens=100,
        pairs=5050,
        recomputed_layers=recomputed,
    )

    assert 0.995 < stock.hardware / whole.hardware < 1
    assert stock.forward == whole.forward


def test_the_earlier_the_first_adapter_the_less_is_left_out():
    order = ("q_proj", "o_proj", "gate_proj", "down_proj")
    whole = work(pairs=5050)

    left = [
        flops.as_stock(
            whole, SHAPE, rank=16, targets=(name,), tokens=100, pairs=5050, recomputed_layers=0
        ).backward
        for name in order
    ]

    assert all(earlier > later for earlier, later in pairwise(left))
