"""How long a micro-batch takes: the published roofline and thresholds, re-computed."""

from dataclasses import replace

import pytest

from fastsft import cards, flops, roofline
from fastsft.cards import CARDS
from fastsft.recipe import ALL_LINEAR
from fastsft.setting import Setting
from fastsft.shapes import SHIPPED

SETTING = Setting(
    engine="unsloth",
    quantization="nf4",
    double_quant=True,
    parameters="lora",
    rank=16,
    targets=ALL_LINEAR,
    optimizer="adamw_8bit",
    checkpointing="unsloth",
    skip_layers=0,
    rows=1,
    length=2048,
)
KEPT = replace(SETTING, checkpointing="none")

# Model; GFLOP a token at 2,048 tokens with and without recomputation; tokens/s at the whole peak of
# a 3090, 4090, 5090, A100 and H100, with and without.
ROOFLINE = (
    (
        "qwen2.5-0.5b",
        (3.2, 2.3),
        ((22.5e3, 30.5e3), (52.3e3, 70.7e3), (66.3e3, 89.6e3), (98.8e3, 134e3), (313e3, 423e3)),
    ),
    (
        "qwen2.5-1.5b",
        (9.7, 6.9),
        ((7313, 10.3e3), (17.0e3, 23.9e3), (21.5e3, 30.4e3), (32.0e3, 45.2e3), (102e3, 143e3)),
    ),
    (
        "qwen2.5-3b",
        (19.5, 13.6),
        ((3653, 5243), (8476, 12.2e3), (10.7e3, 15.4e3), (16.0e3, 23.0e3), (50.7e3, 72.8e3)),
    ),
    (
        "qwen2.5-7b",
        (43.5, 30.0),
        ((1637, 2376), (3797, 5514), (4816, 6992), (7172, 10.4e3), (22.7e3, 33.0e3)),
    ),
    (
        "qwen2.5-14b",
        (87.5, 59.9),
        ((814, 1189), (1889, 2758), (2395, 3497), (3567, 5209), (11.3e3, 16.5e3)),
    ),
    (
        "qwen2.5-32b",
        (197.5, 133.4),
        ((361, 534), (837, 1238), (1061, 1570), (1580, 2338), (5008, 7411)),
    ),
    (
        "llama-3.2-1b",
        (7.6, 5.5),
        ((9389, 13.0e3), (21.8e3, 30.1e3), (27.6e3, 38.2e3), (41.1e3, 56.9e3), (130e3, 180e3)),
    ),
    (
        "llama-3.2-3b",
        (20.3, 14.2),
        ((3513, 5004), (8151, 11.6e3), (10.3e3, 14.7e3), (15.4e3, 21.9e3), (48.8e3, 69.5e3)),
    ),
    (
        "llama-3.1-8b",
        (46.7, 32.2),
        ((1524, 2215), (3535, 5138), (4483, 6516), (6677, 9704), (21.2e3, 30.8e3)),
    ),
    (
        "llama-3.3-70b",
        (428.7, 288.6),
        ((166, 247), (385, 572), (489, 726), (728, 1081), (2307, 3426)),
    ),
    (
        "mistral-7b",
        (45.2, 30.6),
        ((1576, 2328), (3658, 5401), (4639, 6850), (6908, 10.2e3), (21.9e3, 32.3e3)),
    ),
    (
        "mistral-nemo-12b",
        (71.6, 49.0),
        ((995, 1453), (2307, 3372), (2926, 4276), (4358, 6368), (13.8e3, 20.2e3)),
    ),
    (
        "mistral-small-24b",
        (139.8, 94.5),
        ((509, 753), (1181, 1748), (1498, 2217), (2231, 3301), (7073, 10.5e3)),
    ),
)
FIVE = ("rtx-3090", "rtx-4090", "rtx-5090", "a100-80gb", "h100-sxm")

# Thousands of tokens above which a 4090, 5090, A100 and H100 is the limit, at these shares of peak.
THRESHOLDS = (
    ("qwen2.5-0.5b", (8.0, 10.6, 11.1, 32)),
    ("qwen2.5-1.5b", (2.8, 3.8, 4.0, 11.7)),
    ("llama-3.2-1b", (2.0, 2.8, 2.9, 8.5)),
    ("llama-3.2-3b", (1.3, 1.8, 1.9, 5.5)),
    ("qwen2.5-7b", (0.5, 0.8, 0.8, 2.4)),
    ("llama-3.1-8b", (0.5, 0.8, 0.8, 2.6)),
    ("qwen2.5-14b", (0.4, 0.6, 0.7, 2.0)),
)
SHARES = {"rtx-4090": 0.75, "rtx-5090": 0.78, "a100-80gb": 0.55, "h100-sxm": 0.50}


def per_token(name: str, setting: Setting) -> float:
    """FLOP a token at 2,048 tokens."""
    pairs = flops.causal_pairs([2048])
    work = roofline.work_of(SHIPPED[name], setting, tokens=2048, pairs=pairs, head_rows=2048)
    return work.hardware / 2048


@pytest.mark.parametrize(("name", "gigaflop", "rates"), ROOFLINE)
def test_the_whole_peak_gives_the_published_roofline(
    name: str, gigaflop: tuple[float, float], rates: tuple[tuple[float, float], ...]
):
    each = [per_token(name, setting) for setting in (SETTING, KEPT)]

    assert [round(flop / 1e9, 1) for flop in each] == list(gigaflop)
    for key, wanted in zip(FIVE, rates, strict=True):
        found = [(CARDS[key].peak_flops or 0) / flop for flop in each]
        assert found == pytest.approx(wanted, rel=5e-3)


@pytest.mark.parametrize(("name", "thousands"), THRESHOLDS)
def test_a_small_micro_batch_waits_for_python_up_to_the_published_threshold(
    name: str, thousands: tuple[float, ...]
):
    found = [
        roofline.threshold_tokens(SHIPPED[name], SETTING, CARDS[key], length=512, efficiency=share)
        for key, share in SHARES.items()
    ]

    assert [(tokens or 0) / 1000 for tokens in found] == pytest.approx(thousands, rel=0.09)


def micro_batch(name: str, setting: Setting, tokens: int) -> roofline.Time:
    """On a 4090, in documents of 1,024 tokens."""
    pairs = flops.causal_pairs([1024] * (tokens // 1024))
    found = roofline.micro_batch_time(
        SHIPPED[name], setting, CARDS["rtx-4090"], tokens=tokens, pairs=pairs, head_rows=tokens
    )
    assert found is not None
    return found


def test_a_large_micro_batch_takes_as_long_as_published_runs_say():
    found = micro_batch("llama-3.1-8b", SETTING, 8192)

    rates = 8192 / found.high_s, 8192 / found.low_s  # published: 2,300 to 2,800 tokens a second
    assert rates == pytest.approx((2300, 2800), rel=0.03)
    assert not found.is_host_bound
    assert found.dequant_s == pytest.approx(0.052, abs=5e-4)


def test_a_small_micro_batch_never_takes_less_than_python():
    found = micro_batch("qwen2.5-0.5b", SETTING, 1024)

    assert found.is_host_bound
    assert found.low_s == found.high_s == found.host_s == pytest.approx(2.6e-3 * 3 * 24)


def test_the_stock_stack_computes_a_little_less():
    stock = replace(KEPT, engine="reference")

    work, less = (micro_batch("llama-3.1-8b", each, 1024).flops for each in (KEPT, stock))

    assert 0.99 < less.hardware / work.hardware < 1


def test_a_16_bit_base_is_not_dequantised():
    plain = replace(SETTING, quantization="none")

    assert micro_batch("llama-3.2-1b", plain, 4096).dequant_s == 0


def test_layers_that_keep_their_activations_save_their_share_of_the_recomputation():
    whole, half, none = (
        micro_batch("llama-3.1-8b", setting, 4096).flops.recompute
        for setting in (SETTING, replace(SETTING, skip_layers=16), KEPT)
    )

    assert (half, none) == (pytest.approx(whole / 2), 0)


def test_a_card_without_a_sourced_peak_has_no_time():
    unknown = cards.of_size(24)
    shape = SHIPPED["llama-3.2-1b"]

    time = roofline.micro_batch_time(shape, SETTING, unknown, tokens=9, pairs=45, head_rows=9)

    assert time is None
    assert roofline.threshold_tokens(shape, SETTING, unknown, length=512) is None
