"""The planner: what it recommends fits and is fastest, what `auto` becomes, what would help."""

import re
from dataclasses import asdict, replace

import numpy as np
import planning_cases as cases
import pytest
from planning_cases import GIB, SHIPPED

from fastsft import (
    estimate,
    flops,
    plan,
    plan_problem,
    plan_rows,
    plan_search,
    plan_words,
    roofline,
)
from fastsft.cards import CARDS
from fastsft.errors import DeviceError
from fastsft.estimate import Setting, Stack, Widths
from fastsft.history import Entry
from fastsft.host import Host
from fastsft.recipe import ALL_LINEAR, Recipe
from fastsft.shapes import SHIPPED as SHAPES
from fastsft.shapes import Shape

# The published figures of what fits 24 GiB

TOKENS = {  # thousands of tokens, rounded, of the longest row with everything offloaded
    "qwen2.5-0.5b": 347,
    "qwen2.5-1.5b": 186,
    "qwen2.5-3b": 141,
    "llama-3.2-3b": 130,
    "qwen2.5-7b": 67,
    "llama-3.1-8b": 72,
    "mistral-7b": 78,
    "mistral-nemo-12b": 55,
    "qwen2.5-14b": 48,
    "mistral-small-24b": 19,
    "qwen2.5-32b": 6.5,
}
LAYERS = {  # layers without recomputation at 2,048, 4,096 and 8,192 tokens, and the gain in FLOP
    "qwen2.5-0.5b": ((24, 1.35), (24, 1.35), (24, 1.35)),
    "qwen2.5-1.5b": ((28, 1.41), (28, 1.41), (28, 1.41)),
    "qwen2.5-3b": ((36, 1.44), (36, 1.44), (25, 1.27)),
    "llama-3.2-3b": ((28, 1.42), (28, 1.42), (26, 1.38)),
    "qwen2.5-7b": ((28, 1.45), (24, 1.36), (11, 1.14)),
    "llama-3.1-8b": ((32, 1.45), (27, 1.36), (13, 1.15)),
    "mistral-7b": ((32, 1.48), (30, 1.43), (14, 1.16)),
    "mistral-nemo-12b": ((40, 1.46), (21, 1.20), (10, 1.09)),
    "qwen2.5-14b": ((38, 1.33), (18, 1.13), (8, 1.06)),
    "mistral-small-24b": ((13, 1.12), (6, 1.05), (2, 1.02)),
    "qwen2.5-32b": ((3, 1.02),),
}
POINTS = [
    (name, 2048 * 2**n, kept, gain)
    for name, found in LAYERS.items()
    for n, (kept, gain) in enumerate(found)
]
USABLE = int(plan_problem.USABLE * 24 * GIB)


def qlora(tokens: int = 2048, *, kind: str = "unsloth", skip: int = 0) -> Setting:
    fixed = (True, "lora", 16, tuple(ALL_LINEAR), "adamw_8bit")
    return Setting("unsloth", "nf4", *fixed, kind, skip, 1, tokens)  # type: ignore[arg-type]


def published(shape: Shape) -> Stack:
    """The constants by which those figures were made.

    Eight bytes for a weight of the adapter where ours, in float32, takes ten; 0.4 GiB of scratch
    whatever the model, where we count the dequantised weights; chunks of logits too small to tell.
    """
    ours = estimate.memory(shape, qlora()).scratch
    return Stack(
        "published",
        adapter_bytes=2,
        gradient_bytes=4 - 2 * 4 / 256,
        logit_bytes=0,
        saved=Widths(4, 2, 2, 3),
        slack=0.05,
        runtime_bytes=int(0.8 * GIB + 1.05 * (0.4 * GIB - ours)),
    )


def need_as_published(shape: Shape):
    stack = published(shape)
    return lambda setting: estimate.memory(shape, setting, stack=stack).process


def need_of_ours(shape: Shape):
    stack = estimate.cautious(estimate.UNSLOTH)
    return lambda setting: estimate.memory(shape, setting, stack=stack).process


@pytest.mark.parametrize("name", TOKENS)
def test_the_longest_row_on_24_gib_is_the_published_one(name: str):
    shape = SHAPES[name]

    found = cases.most_tokens(qlora(), USABLE, need_as_published(shape))

    assert found / 1000 == pytest.approx(TOKENS[name], rel=0.05)


@pytest.mark.parametrize("name", [name for name in TOKENS if name != "qwen2.5-32b"])
def test_the_longest_row_is_within_a_twentieth_by_our_own_constants_too(name: str):
    shape = SHAPES[name]

    found = cases.most_tokens(qlora(), USABLE, need_of_ours(shape))

    assert found / 1000 == pytest.approx(TOKENS[name], rel=0.05)


def test_where_the_weights_leave_little_the_memory_agrees_and_we_are_the_more_careful():
    shape = SHAPES["qwen2.5-32b"]

    needed = need_of_ours(shape)(qlora(6500))

    assert USABLE < needed == pytest.approx(USABLE, rel=0.03)


@pytest.mark.parametrize(("name", "tokens", "kept", "gain"), POINTS)
def test_the_layers_that_need_no_recomputing_are_the_published_ones(
    name: str, tokens: int, kept: int, gain: float
):
    shape, setting = SHAPES[name], qlora(tokens)
    need = need_as_published(shape)

    each = need(replace(setting, skip_layers=1)) - need(setting)
    room = min((USABLE - need(setting)) / each, shape.layers)

    assert room == pytest.approx(kept, rel=0.05, abs=0.5)  # published as whole layers


LARGEST = ("mistral-small-24b", "qwen2.5-32b")
"""Bases whose dequantised weights, which the published figures leave out, take a layer's room."""


@pytest.mark.parametrize(("name", "tokens", "kept", "gain"), POINTS)
def test_our_own_constants_keep_as_many_layers_but_for_the_largest_bases(
    name: str, tokens: int, kept: int, gain: float
):
    shape, setting = SHAPES[name], qlora(tokens)
    need = need_of_ours(shape)

    each = need(replace(setting, skip_layers=1)) - need(setting)
    room = min((USABLE - need(setting)) / each, shape.layers)

    if name in LARGEST:
        assert kept - 1 <= room <= kept
    else:
        assert room == pytest.approx(kept, rel=0.05, abs=0.5)


@pytest.mark.parametrize(("name", "tokens", "kept", "gain"), POINTS)
def test_the_gain_in_flops_is_the_published_one(name: str, tokens: int, kept: int, gain: float):
    shape = SHAPES[name]

    def hardware(recomputed: int) -> float:
        rank = shape.lora_params(16, ALL_LINEAR)
        work = flops.of_work(
            shape,
            lora_params=rank,
            tokens=2048,
            head_rows=2048,
            pairs=2048 * 2049 // 2,
            recomputed_layers=recomputed,
        )
        return work.hardware

    assert hardware(shape.layers) / hardware(shape.layers - kept) == pytest.approx(gain, rel=0.05)


# What is recommended

SOME_CARDS = ("rtx-3060-12gb", "rtx-4080", "rtx-4090", "rtx-5090", "h100-sxm")


def every_setting(recipe: Recipe, shape: Shape):
    """The whole grid, not the planner's: each divisor, kind, number of layers, precision."""
    asked = recipe.train.step_rows
    bits = ("none",) if recipe.model.quantization == "none" else ("nf4", "none")
    for rows in (n for n in range(1, asked + 1) if asked % n == 0):
        start = estimate.setting_of(recipe, length=recipe.data.max_tokens, rows=rows)
        for quantization in bits:
            for kind in ("none", "standard", "unsloth"):
                for skip in range(1 if kind == "none" else shape.layers):
                    yield replace(
                        start, quantization=quantization, checkpointing=kind, skip_layers=skip
                    )


def cost(shape: Shape, setting: Setting, card: str) -> float:
    """Seconds of a token, by the estimate alone."""
    tokens = setting.slots
    pairs = setting.rows * setting.length * (setting.length + 1) // 2
    time = roofline.micro_batch_time(
        shape, setting, CARDS[card], tokens=tokens, pairs=pairs, head_rows=tokens
    )
    assert time is not None
    share = setting.recomputed_layers(shape) / shape.layers
    is_offloaded = estimate.memory(shape, setting).pinned > 0
    return (time.low_s + time.high_s) / 2 / tokens * (1 + 0.019 * share * is_offloaded)


QUICK = [
    ("qwen2.5-0.5b", "h100-sxm"),
    ("llama-3.2-3b", "rtx-3060-12gb"),
    ("qwen2.5-7b", "rtx-4090"),
]
WHOLE = [
    pytest.param(name, card, marks=pytest.mark.slow)
    for name in SHIPPED
    for card in SOME_CARDS
    if (name, card) not in QUICK
]


@pytest.mark.parametrize(("name", "card"), [*QUICK, *WHOLE])
def test_nothing_that_fits_and_is_faster_is_passed_over(name: str, card: str):
    recipe, shape = cases.shipped(name)
    need, usable = need_of_ours(shape), int(0.97 * CARDS[card].vram_bytes)

    fitting = [s for s in every_setting(recipe, shape) if need(s) <= usable]
    chosen = plan.plan(recipe, shape, CARDS[card]).chosen

    assert (chosen is None) == (not fitting)
    if chosen is not None:
        fastest = min(cost(shape, setting, card) for setting in fitting)
        assert chosen.token_s == pytest.approx(cost(shape, chosen.setting, card))
        assert chosen.token_s <= 1.02 * fastest * (1 + 1e-9)


@pytest.mark.parametrize("card", SOME_CARDS)
@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_recommended_fits_and_trains_the_same(name: str, card: str):
    recipe, shape = cases.shipped(name)

    found = plan.plan(recipe, shape, CARDS[card])

    if found.chosen is None:
        assert found.cures
        return
    chosen = found.chosen
    assert need_of_ours(shape)(chosen.setting) <= 0.97 * CARDS[card].vram_bytes
    assert chosen.setting.rows * chosen.accumulation_steps == recipe.train.step_rows
    own = estimate.setting_of(recipe, length=recipe.data.max_tokens)
    neutral = ("rank", "targets", "optimizer", "length", "parameters", "engine")
    assert all(getattr(own, key) == getattr(chosen.setting, key) for key in neutral)
    if recipe.model.quantization == "none" and found.as_is.fits:
        assert chosen.setting.quantization == "none"


@pytest.mark.parametrize("card", SOME_CARDS)
def test_every_loser_has_its_reason(card: str):
    found = plan.plan(*cases.shipped("qwen2.5-7b"), CARDS[card])

    assert [c.lost for c in found.considered].count("") == 1
    for candidate in found.considered[1:]:
        is_over = candidate.lost.endswith(" over")
        assert candidate.fits != is_over


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_fits_the_card_that_it_is_meant_for(name: str):
    recipe, shape = cases.shipped(name)

    found = plan.plan(recipe, shape, cases.card(recipe.model.min_vram_gib))

    assert found.as_is.fits


@pytest.mark.parametrize("name", [n for n in SHIPPED if n != "qwen2.5-32b"])
def test_no_shipped_recipe_asks_for_a_larger_card_than_it_needs(name: str):
    recipe, shape = cases.shipped(name)
    sizes = (6, 8, 12, 16, 24, 32)
    smaller = [size for size in sizes if size < recipe.model.min_vram_gib]

    if smaller:
        assert not plan.plan(recipe, shape, cases.card(smaller[-1])).as_is.fits


@pytest.mark.parametrize("name", SHIPPED)
def test_the_peak_in_a_description_is_the_estimate(name: str):
    recipe, shape = cases.shipped(name)
    told = re.search(r"about (\d+) GiB at the peak \(estimate\)", recipe.description, re.IGNORECASE)

    found = estimate.memory(shape, estimate.setting_of(recipe, length=recipe.data.max_tokens))

    assert told is not None
    assert float(told[1]) == pytest.approx(found.process / GIB, abs=1.0)


def test_a_card_of_unknown_speed_gets_no_times():
    found = plan.plan(*cases.shipped("qwen2.5-7b"), cases.card(24))

    assert found.chosen is not None
    assert found.seconds(found.chosen) is None
    assert found.joules(found.chosen) is None
    assert any("not known: ranked as on an rtx-4090" in note for note in found.notes)


def test_time_and_energy_follow_the_range_and_the_cards_limit():
    found = plan.plan(*cases.shipped("qwen2.5-7b"), CARDS["rtx-4090"])
    assert found.chosen is not None

    low, high = found.seconds(found.chosen) or (0, 0)

    assert 0 < low < high < 2 * low
    assert found.joules(found.chosen) == pytest.approx(high * 450)


# Known rows


def short_rows(count: int = 400) -> np.ndarray:
    return np.random.default_rng(7).integers(60, 300, count)


def test_short_rows_are_packed_where_a_step_keeps_its_rows():
    recipe, shape = cases.shipped("qwen2.5-0.5b", "train.accumulation_steps=8")

    found = plan.plan(recipe, shape, CARDS["rtx-4090"], lengths=short_rows())

    chosen = found.chosen
    assert chosen is not None
    assert chosen.packing
    rows = chosen.setting.rows * chosen.accumulation_steps * 400 / sum_sequences(recipe)
    assert rows == pytest.approx(recipe.train.step_rows, rel=0.1)
    told = f"packed, a step becomes about {rows:.1f} rows instead of {recipe.train.step_rows}"
    assert told in found.notes


def sum_sequences(recipe: Recipe) -> int:
    rows = plan_rows.Rows(short_rows(), budget=recipe.data.max_tokens, seed=1)
    return round(400 / rows.per_sequence)


def test_packing_that_would_change_the_step_is_not_considered():
    recipe, shape = cases.shipped("qwen2.5-0.5b", "train.micro_batch_rows=2")  # 2 rows a step

    found = plan.plan(recipe, shape, CARDS["rtx-4090"], lengths=short_rows())

    assert not any(c.packing for c in found.considered)
    assert "packing is left out: a sequence of 11 rows makes no step of 2" in found.notes


def test_the_card_waits_for_python_below_the_tokens_of_the_roofline():
    found = plan.plan(*cases.shipped("qwen2.5-0.5b"), CARDS["h100-sxm"])
    assert found.chosen is not None
    setting = found.chosen.setting

    least = roofline.threshold_tokens(
        found.shape, setting, found.card, length=setting.length, efficiency=0.45
    )

    assert least
    assert found.busy_from(found.chosen) == pytest.approx(least)


def test_an_epoch_of_known_rows_is_timed():
    recipe, shape = cases.shipped("qwen2.5-7b")
    lengths = short_rows()

    one = plan.plan(recipe, shape, CARDS["rtx-4090"], lengths=lengths)
    twice = plan.plan(recipe, shape, CARDS["rtx-4090"], lengths=np.tile(lengths, 2))

    assert one.rows == 400
    assert one.tokens == lengths.sum()
    assert one.chosen is not None
    assert twice.chosen is not None
    assert twice.seconds(twice.chosen) == pytest.approx(
        [2 * s for s in one.seconds(one.chosen) or ()], rel=0.1
    )


def test_padded_batches_count_their_padding():
    rows = plan_rows.Rows([10, 30], budget=64, seed=1)

    padded, packed = rows.batches(2, packing=False), rows.batches(2, packing=True)

    assert (padded.slots, padded.real, padded.length, padded.count) == (60, 40, 30, 1)
    assert padded.pairs == 2 * 30 * 31 / 2
    assert (packed.slots, packed.real, packed.length) == (40, 40, 40)
    assert packed.pairs == (10 * 11 + 30 * 31) / 2


# What would help


def test_a_70b_does_not_fit_24_gib_and_what_would_is_told():
    found = plan.plan(*cases.llama_70b(), cases.card(24))

    assert found.chosen is None
    assert not found.as_is.fits
    assert found.cures == ("a card with 48 GiB (l40s)", "a smaller base (llama-3.1-8b)")


@pytest.mark.parametrize(
    ("key", "too_much"), [("lora.rank", 512), ("data.max_tokens", 65536)], ids=["rank", "tokens"]
)
def test_what_is_too_much_is_named_with_the_most_that_fits(key: str, too_much: int):
    recipe, shape = cases.shipped("qwen2.5-14b", f"{key}={too_much}", "train.micro_batch_rows=1")
    card = cases.card(16)

    found = plan.plan(recipe, shape, card)

    cure = next(cure for cure in found.cures if cure.startswith(key))
    most = int(cure.removeprefix(f"{key}="))
    assert 0 < most < too_much
    step = 128 if key == "data.max_tokens" else most
    for value, fits in ((most, True), (most + step, False)):
        changed, _ = cases.shipped("qwen2.5-14b", f"{key}={value}", "train.micro_batch_rows=1")
        assert (plan.plan(changed, shape, card).chosen is not None) is fits


def test_16_bits_that_do_not_fit_become_4():
    found = plan.plan(*cases.shipped("qwen2.5-3b"), cases.card(7))

    assert found.chosen is not None
    assert found.chosen.setting.quantization == "nf4"
    assert not found.as_is.fits


# This machine


def long_rows(tokens: int) -> tuple[Recipe, Shape]:
    return cases.shipped("llama-3.1-8b", f"data.max_tokens={tokens}", "train.micro_batch_rows=1")


def host(available_gib: float, *, is_wsl: bool = False) -> Host:
    return Host(int(available_gib * GIB), 64 * GIB, is_wsl)


def test_what_the_host_has_no_memory_for_is_not_recommended():
    recipe, shape = cases.shipped(
        "llama-3.1-8b", "data.max_tokens=65536", "train.micro_batch_rows=1"
    )
    card = CARDS["rtx-4090"]

    roomy = plan.plan(recipe, shape, card, host=host(64))
    tight = plan.plan(recipe, shape, card, host=host(8))

    assert roomy.chosen is not None
    assert roomy.chosen.offloads
    assert tight.chosen is None
    assert any("of RAM, 8.0 GiB free" in c.lost for c in tight.considered)
    (why, *_) = plan_words.refusal(tight)
    assert re.search(r"pins \d+\.\d GiB of RAM, 8.0 GiB free", why)


def test_of_ram_only_what_is_pinned_is_a_limit():
    recipe, shape = cases.shipped("qwen2.5-7b")

    found = plan.plan(recipe, shape, CARDS["rtx-4090"], host=host(0.5))

    assert found.chosen is not None
    assert found.chosen.memory.host > 0.5 * GIB


def test_what_a_paged_optimizer_pins_is_not_called_hidden_states():
    recipe, shape = cases.shipped("qwen2.5-7b", "train.optimizer=paged_adamw_8bit")

    found = plan.plan(recipe, shape, CARDS["rtx-4090"])

    assert "pinned for the optimizer (estimate)" in plan_words.facts(found)["RAM"]


def test_wsl_is_told_where_it_will_be_slow():
    recipe, shape = cases.shipped(
        "llama-3.1-8b", "data.max_tokens=32768", "train.micro_batch_rows=1"
    )

    found = plan.plan(recipe, shape, CARDS["rtx-4080"], host=host(64, is_wsl=True))

    assert any(note.startswith("WSL2 pins 1 to 2 GiB") for note in found.notes)


def test_offloading_is_left_alone_where_it_brings_nothing():
    for name in ("qwen2.5-0.5b", "qwen2.5-7b", "llama-3.1-8b"):
        found = plan.plan(*cases.shipped(name), CARDS["rtx-4090"])
        assert found.chosen is not None
        assert not found.chosen.offloads


# What `auto` becomes

OPEN = (
    "model.quantization=auto",
    "train.micro_batch_rows=auto",
    "train.accumulation_steps=1",
    "train.rows_per_step=16",
)
LENGTHS = np.full(100, 2048)


def test_every_open_knob_becomes_a_value_with_its_reason():
    recipe, shape = cases.shipped("qwen2.5-7b", *OPEN)

    found = plan.settle(recipe, shape, cases.gpu(), LENGTHS)

    train = found.recipe.train
    assert plan.opened(found.recipe) == ()
    assert (train.micro_rows * train.accumulation_steps, train.rows_per_step) == (16, None)
    assert set(found.why) == set(plan.opened(recipe))
    assert found.predicted is not None
    assert found.planned["predicted"]["process_bytes"] == found.predicted.process
    assert found.planned["need_bytes"] <= found.planned["usable_bytes"]
    assert found.warning is None


def test_a_plan_that_ran_out_of_memory_has_a_thriftier_one():
    recipe, shape = cases.shipped("qwen2.5-7b")

    settled = plan.settle(recipe, shape, cases.gpu(), LENGTHS).recipe
    second = plan.thriftier(recipe, settled)

    assert second is not None
    assert second.train.gradient_checkpointing == "unsloth"
    assert plan.thriftier(second, second) is None


def test_the_thriftier_plan_keeps_the_bits_and_rows_that_were_settled():
    recipe, shape = cases.shipped("qwen2.5-7b", *OPEN)

    settled = plan.settle(recipe, shape, cases.gpu(), LENGTHS).recipe
    second = plan.thriftier(recipe, settled)

    assert second is not None
    assert plan.opened(second) == ()
    own = {"gradient_checkpointing", "checkpoint_skip_layers"}
    assert second.train.model_dump(exclude=own) == settled.train.model_dump(exclude=own)
    assert second.model == settled.model
    assert second.train.checkpoint_skip_layers == 0


@pytest.mark.parametrize("rows", [4096, 4093])  # the second is a prime
def test_the_largest_step_that_a_recipe_may_ask_for_is_split_into_one_that_it_may_have(rows: int):
    recipe, shape = cases.shipped("qwen2.5-0.5b", *OPEN[:3], f"train.rows_per_step={rows}")

    for gpu in (None, cases.gpu()):
        train = plan.settle(recipe, shape, gpu, LENGTHS).recipe.train
        assert train.micro_rows * train.accumulation_steps == rows


def test_no_step_is_split_into_more_micro_batches_than_a_recipe_may_have():
    assert min(plan_search._divisors(2 * 4096, None)) == 2


def test_what_the_recipe_names_is_left_alone():
    recipe, shape = cases.shipped("qwen2.5-7b", "train.gradient_checkpointing=unsloth")

    found = plan.settle(recipe, shape, cases.gpu(), LENGTHS)

    assert found.recipe == recipe
    assert found.why == {}


def test_nothing_but_what_is_open_changes():
    recipe, shape = cases.shipped("qwen2.5-7b")  # checkpointing alone is open

    found = plan.settle(recipe, shape, cases.gpu(), LENGTHS)

    own = {"gradient_checkpointing", "checkpoint_skip_layers"}
    assert found.recipe.train.model_dump(exclude=own) == recipe.train.model_dump(exclude=own)
    assert found.recipe.model_dump(exclude={"train"}) == recipe.model_dump(exclude={"train"})
    assert found.recipe.train.gradient_checkpointing == "standard"
    assert found.recipe.train.checkpoint_skip_layers > 0


def test_what_other_programs_hold_is_not_ours():
    recipe, shape = cases.shipped("qwen2.5-7b")

    idle = plan.settle(recipe, shape, cases.gpu(), LENGTHS).recipe.train
    busy = plan.settle(recipe, shape, cases.gpu(free=12), LENGTHS).recipe.train

    assert busy.checkpoint_skip_layers < idle.checkpoint_skip_layers


def test_an_auto_that_finds_nothing_is_refused_with_cures():
    recipe, shape = cases.shipped("qwen2.5-14b", "model.quantization=auto")

    with pytest.raises(DeviceError) as refused:
        plan.settle(recipe, shape, cases.gpu("NVIDIA GeForce RTX 3060", gib=12), LENGTHS)

    assert refused.value.exit_code == 3
    assert str(refused.value).startswith("qwen2.5-14b: needs about ")
    assert "a smaller base (qwen2.5-7b)" in refused.value.hint
    assert "name model.quantization yourself" in refused.value.hint


def test_what_to_recompute_is_thrifty_where_nothing_fits_and_never_refused():
    recipe, shape = cases.shipped("qwen2.5-14b")  # checkpointing alone is open

    found = plan.settle(recipe, shape, cases.gpu("NVIDIA GeForce RTX 3060", gib=12), LENGTHS)

    train = found.recipe.train
    assert (train.gradient_checkpointing, train.checkpoint_skip_layers) == ("unsloth", 0)
    assert found.warning is not None
    assert found.why["train.gradient_checkpointing"].startswith("what needs least")


def test_what_the_user_set_is_only_warned_of():
    recipe, shape = cases.shipped("qwen2.5-14b", "train.gradient_checkpointing=unsloth")

    found = plan.settle(
        recipe, shape, cases.gpu("NVIDIA GeForce RTX 3060", gib=12), np.full(9, 2048)
    )

    assert found.recipe == recipe
    assert found.warning is not None
    assert "can be had now" in found.warning


def test_without_a_shape_the_thrifty_values_train_all_the_same():
    recipe, _ = cases.shipped("qwen2.5-7b", *OPEN)

    found = plan.settle(recipe, None, cases.gpu(), LENGTHS)

    assert found.recipe.model.quantization == "nf4"
    assert (found.recipe.train.micro_rows, found.recipe.train.accumulation_steps) == (2, 8)
    assert found.recipe.train.gradient_checkpointing == "auto"  # the engine's thrifty kind
    assert "cannot be read" in found.why["model.quantization"]


def test_a_cpu_is_not_planned_for():
    recipe, shape = cases.shipped("qwen2.5-0.5b", *OPEN, "data.max_tokens=1000")

    found = plan.settle(recipe, shape, None, np.full(50, 900))

    assert found.recipe.model.quantization == "none"
    assert found.recipe.train.micro_rows == 4  # 4,096 tokens at once hold four rows of 1,000
    assert found.recipe.train.gradient_checkpointing == "auto"
    assert found.planned["predicted"]["host_bytes"] > 0
    assert found.planned["setting"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("override", "becomes"),
    [("export.merge_base=dequantised", "nf4"), ("train.parameters=all", "none")],
)
def test_open_bits_become_what_the_rest_of_the_recipe_needs(override: str, becomes: str):
    recipe, shape = cases.shipped("qwen2.5-0.5b", *OPEN, override)

    for gpu in (None, cases.gpu("NVIDIA H100 80GB HBM3", gib=80)):
        assert plan.settle(recipe, shape, gpu, LENGTHS).recipe.model.quantization == becomes


# What is learnt


def finished(shape: Shape, setting: Setting, ratio: float, device: str) -> Entry:
    predicted = float(estimate.memory(shape, setting).process)
    described = plan_problem.described(shape, setting)
    sizes = {"process_bytes": predicted}, {"process_bytes": predicted * ratio}
    return Entry(0.0, "run", device, "base", described, *sizes)


def test_a_measured_run_takes_the_margin_back_and_corrects():
    recipe, shape = cases.shipped("qwen2.5-7b")
    card = CARDS["rtx-4090"]
    before = plan.plan(recipe, shape, card).as_is

    exact = finished(shape, before.setting, 0.98, card.name)
    after = plan.plan(recipe, shape, card, corrections=[exact])
    twin = next(c for c in after.considered if c.setting == before.setting)

    assert twin.need_bytes < before.need_bytes
    other = finished(shape, before.setting, 0.98, "CPU")
    assert plan.plan(recipe, shape, card, corrections=[other] * 9).as_is == before


def test_runs_that_took_more_make_the_planner_careful():
    recipe, shape = cases.shipped("qwen2.5-7b")
    card = CARDS["rtx-4090"]
    plain = plan.plan(recipe, shape, card)
    known = [
        finished(shape, replace(plain.as_is.setting, length=length), 1.2, card.name)
        for length in (2000, 2010, 2020, 2030)
    ]

    careful = plan.plan(recipe, shape, card, corrections=known)

    assert careful.as_is.setting.skip_layers < plain.as_is.setting.skip_layers
    assert "4 measured runs" in careful.correction.words


def test_a_setting_is_described_with_all_that_decides_it():
    shape, setting = SHAPES["qwen2.5-7b"], qlora()

    described = plan_problem.described(shape, setting)

    sizes = {"shape": "qwen2.5-7b", "params": shape.params}
    assert described == {**sizes, **asdict(setting), "targets": list(ALL_LINEAR)}


def test_two_bases_of_the_same_unknown_name_are_not_the_same_setting():
    shape, setting = SHAPES["qwen2.5-7b"], qlora()
    larger = replace(shape, layers=2 * shape.layers)

    assert plan_problem.described(shape, setting) != plan_problem.described(larger, setting)


def test_runs_that_disagree_make_no_one_more_careful_than_none_at_all():
    recipe, shape = cases.shipped("qwen2.5-7b")
    card = CARDS["rtx-4090"]
    plain = plan.plan(recipe, shape, card)
    setting = plain.as_is.setting
    known = [finished(shape, setting, ratio, card.name) for ratio in (0.7, 1.0, 1.0, 1.4, 6.7)]

    found = plan.plan(recipe, shape, card, corrections=known)
    twin = next(c for c in found.considered if c.setting == setting)

    assert twin.need_bytes <= plain.as_is.need_bytes
    assert found.as_is.fits


def test_what_ran_out_of_memory_is_not_chosen_again():
    recipe, shape = cases.shipped("qwen2.5-7b")
    first = plan.settle(recipe, shape, cases.gpu(), LENGTHS)
    setting, sizes = first.planned["setting"], first.planned["predicted"]
    usable = float(first.planned["usable_bytes"])
    sizes = {key: float(value) for key, value in sizes.items() if value is not None}
    failed = Entry(
        0.0, "run", cases.gpu().name, "base", setting, sizes, {}, ran_out_of_bytes=usable
    )

    again = plan.settle(recipe, shape, cases.gpu(), LENGTHS, corrections=[failed])

    assert again.recipe.train.checkpoint_skip_layers < first.recipe.train.checkpoint_skip_layers
    assert again.warning is None


# What is not modelled


def test_dora_is_planned_with_care_and_keeps_no_layer():
    recipe, shape = cases.shipped("qwen2.5-0.5b", "lora.dora=true")
    card = CARDS["h100-sxm"]

    found = plan.plan(recipe, shape, card)
    own = found.as_is.setting

    assert found.chosen is not None
    assert own.is_dora
    assert all(c.setting.checkpointing != "none" for c in found.considered)
    assert all(c.setting.skip_layers == 0 for c in found.considered)
    exact = finished(shape, own, 0.9, card.name)
    assert plan.plan(recipe, shape, card, corrections=[exact] * 9).as_is == found.as_is


# The base's own files


def test_the_bases_own_files_tell_the_weights():
    recipe, shape = cases.shipped("qwen2.5-7b")
    stored = {"nf4": 6 * GIB, "none": 15 * GIB}

    found = plan.plan(recipe, shape, CARDS["rtx-4090"], stored=stored)
    settled = plan.settle(recipe, shape, cases.gpu(), LENGTHS, stored=stored)

    assert {c.memory.weights for c in found.considered} == set(stored.values())
    assert settled.predicted is not None
    assert settled.predicted.weights == 6 * GIB
