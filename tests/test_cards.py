"""What is known of each card, and what a name may and may not mean."""

import pytest

from fastsft import cards
from fastsft.errors import RecipeError

GIB = 1024**3
MIB = 1024**2


@pytest.mark.parametrize(
    ("key", "tflops"),
    [
        ("rtx-3090", 71.2),
        ("rtx-4080", 97.5),
        ("rtx-4090", 165.2),
        ("rtx-5080", 112.6),
        ("rtx-5090", 209.5),
        ("a100-80gb", 312),
        ("l40s", 362),
        ("h100-pcie", 756),
        ("h100-sxm", 989),
        ("h200", 989),
    ],
)
def test_a_peak_is_the_published_one(key: str, tflops: float):
    assert cards.CARDS[key].peak_flops == pytest.approx(tflops * 1e12, rel=1e-3)


def test_every_card_has_its_figures_and_says_where_they_are_from():
    for key, card in cards.CARDS.items():
        assert card.key == key
        assert card.peak_flops and card.bandwidth and card.power_w
        assert "NVIDIA" in card.source


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ("rtx-4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 5070 Ti", "rtx-5070-ti"),
        ("3060", "rtx-3060-12gb"),
        ("rtx-4060-ti", "rtx-4060-ti-16gb"),
        ("h200", "h200"),
    ],
)
def test_a_card_is_found_by_what_people_call_it(asked: str, key: str):
    assert cards.find(asked).key == key


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("a100", "--gpu: 'a100' is more than one card\n  hint: one of a100-40gb, a100-80gb; "),
        ("h100", "--gpu: 'h100' is more than one card\n  hint: one of h100-pcie, h100-sxm; "),
        ("rtx-4091", "--gpu: 'rtx-4091' is no card known here\n  hint: one of rtx-4090"),
        ("4070", "--gpu: '4070' is no card known here"),
        ("", "--gpu: '' is no card known here"),
    ],
)
def test_a_name_that_means_none_or_several_is_refused(asked: str, message: str):
    with pytest.raises(RecipeError) as refused:
        cards.find(asked)

    assert str(refused.value).startswith(message)
    assert refused.value.hint.endswith("or --vram GIB for any other")


def test_the_drivers_name_and_memory_tell_twins_apart():
    large = cards.of_name("NVIDIA GeForce RTX 3060", 12288 * MIB)
    small = cards.of_name("NVIDIA GeForce RTX 3060", 8192 * MIB)

    assert (large.key, large.bandwidth) == ("rtx-3060-12gb", 360e9)
    assert (small.key, small.bandwidth) == ("rtx-3060-8gb", 240e9)


@pytest.mark.parametrize(
    ("name", "mib", "key"),
    [
        ("NVIDIA GeForce RTX 4090", 24564, "rtx-4090"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100-sxm"),
        ("NVIDIA H200", 143771, "h200"),
    ],
)
def test_a_card_that_is_here_has_the_memory_it_shows(name: str, mib: int, key: str):
    found = cards.of_name(name, mib * MIB)

    assert (found.key, found.vram_bytes) == (key, mib * MIB)
    assert found.peak_flops == cards.CARDS[key].peak_flops


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 5060"])
def test_nothing_is_guessed_of_a_card_that_is_not_known(name: str):
    found = cards.of_name(name, 16 * GIB)

    assert (found.peak_flops, found.bandwidth, found.power_w) == (None, None, None)
    assert (found.kind, found.name, found.source) == ("unknown", name, "n/a, never guessed")


def test_a_size_alone_is_a_card_without_speed():
    found = cards.of_size(24)

    assert (found.vram_bytes, found.peak_flops) == (24 * GIB, None)
