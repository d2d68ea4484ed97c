"""The bytes of training, part by part."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastsft import estimate, recipe_file
from fastsft.cards import CARDS
from fastsft.demo.tiny import BASE
from fastsft.estimate import GIB, REFERENCE, UNSLOTH, Memory, Setting, Stack
from fastsft.recipe import ALL_LINEAR
from fastsft.shapes import SHIPPED
from fastsft.weights import Checkpoint

RECIPES = Path(__file__).parent.parent / "recipes"
SHAPE = SHIPPED["llama-3.1-8b"]
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
    rows=2,
    length=2048,
)
PLAIN = replace(SETTING, quantization="none")
WHOLE = replace(PLAIN, parameters="all")
STOCK = replace(SETTING, engine="reference", checkpointing="standard")

# GiB of the weights in 4 bits with double quantisation, and in 16.
WEIGHTS = (
    ("qwen2.5-0.5b", 0.43, 0.92),
    ("qwen2.5-1.5b", 1.06, 2.88),
    ("qwen2.5-3b", 1.91, 5.75),
    ("qwen2.5-7b", 5.17, 14.19),
    ("qwen2.5-14b", 9.25, 27.51),
    ("qwen2.5-32b", 17.89, 61.03),
    ("llama-3.2-1b", 0.96, 2.30),
    ("llama-3.2-3b", 2.09, 5.98),
    ("llama-3.1-8b", 5.31, 14.96),
    ("llama-3.3-70b", 36.80, 131.4),
    ("mistral-7b", 3.85, 13.50),
    ("mistral-nemo-12b", 7.74, 22.81),
    ("mistral-small-24b", 13.18, 43.91),
)

# KB a token: one layer's working set, what a layer saves; and of a hidden state of all layers.
WORKING = (
    ("qwen2.5-0.5b", 63, 40, 43),
    ("qwen2.5-1.5b", 114, 73, 86),
    ("qwen2.5-3b", 143, 92, 147),
    ("qwen2.5-7b", 249, 159, 201),
    ("qwen2.5-14b", 252, 148, 492),
    ("qwen2.5-32b", 362, 231, 655),
    ("llama-3.2-1b", 123, 76, 66),
    ("llama-3.2-3b", 154, 90, 172),
    ("llama-3.1-8b", 229, 139, 262),
    ("llama-3.3-70b", 451, 274, 1311),
    ("mistral-7b", 229, 139, 262),
    ("mistral-nemo-12b", 248, 147, 410),
    ("mistral-small-24b", 395, 258, 410),
)


def memory(setting: Setting, stack: Stack | None = None) -> Memory:
    return estimate.memory(SHAPE, setting, stack=stack)


@pytest.mark.parametrize(("name", "nf4", "plain"), WEIGHTS)
def test_the_weights_are_those_of_the_published_table(name: str, nf4: float, plain: float):
    found = [estimate.memory(SHIPPED[name], setting).weights / GIB for setting in (SETTING, PLAIN)]

    assert found == pytest.approx((nf4, plain), rel=4e-4, abs=6e-3)


@pytest.mark.parametrize(("name", "working", "saved", "hidden"), WORKING)
def test_the_bytes_a_token_are_those_of_the_published_table(
    name: str, working: int, saved: int, hidden: int
):
    one_kept = estimate.memory(SHIPPED[name], replace(SETTING, skip_layers=1))
    none_kept = estimate.memory(SHIPPED[name], SETTING)

    assert one_kept.working / 4096e3 == pytest.approx(working, abs=0.6)
    assert one_kept.kept_layers / 4096e3 == pytest.approx(saved, abs=0.6)
    assert none_kept.pinned / 4096e3 == pytest.approx(hidden, abs=0.6)


def test_without_double_quantisation_a_scale_costs_a_float():
    single = memory(replace(STOCK, double_quant=False)).weights

    assert single - memory(STOCK).weights == pytest.approx(
        SHAPE.linear_params * (4 / 64 - 1 / 64 - 4 / 64 / 256), abs=2
    )


def test_the_adapter_is_held_in_float32_with_its_gradient():
    found = memory(SETTING)

    assert found.adapter == found.gradients == 4 * SHAPE.lora_params(16, ALL_LINEAR)
    assert found.optimizer == int((2 + 8 / 256) * SHAPE.lora_params(16, ALL_LINEAR))
    assert memory(replace(SETTING, optimizer="adamw")).optimizer == 2 * found.adapter


def test_full_fine_tuning_holds_weights_gradients_and_moments_in_float32():
    found = memory(replace(WHOLE, optimizer="adamw"))

    assert (found.weights, found.gradients) == (4 * SHAPE.params, 4 * SHAPE.params)
    assert (found.optimizer, found.adapter) == (8 * SHAPE.params, 0)
    assert found.scratch == 2 * (SHAPE.linear_params + SHAPE.head_params)


def test_embeddings_keep_float32_moments_under_an_8_bit_optimizer():
    heads = 2 * SHAPE.head_params

    found = memory(WHOLE).optimizer

    assert found == int(8 * heads + (2 + 8 / 256) * (SHAPE.params - heads))


def test_paged_moments_of_large_tensors_live_on_the_host():
    paged, plain = memory(replace(WHOLE, optimizer="paged_adamw_8bit")), memory(WHOLE)

    assert paged.optimizer + paged.pinned == pytest.approx(plain.optimizer + plain.pinned, abs=4)
    assert paged.optimizer < 0.001 * plain.optimizer
    small = replace(SETTING, optimizer="paged_adamw_8bit", targets=("q_proj",))
    assert memory(small).optimizer == memory(replace(small, optimizer="adamw_8bit")).optimizer


def test_unsloth_moves_hidden_states_to_the_host_from_512_tokens_on():
    short, long = replace(SETTING, rows=1, length=511), replace(SETTING, rows=1, length=512)

    assert (memory(short).hidden_states, memory(short).pinned) == (32 * 4096 * 2 * 511, 0)
    assert (memory(long).hidden_states, memory(long).pinned) == (0, 32 * 4096 * 2 * 512)


def test_unsloth_keeps_a_hidden_state_of_two_mib_or_less_on_the_device():
    shape = SHIPPED["qwen2.5-0.5b"]

    found = estimate.memory(shape, replace(SETTING, rows=1, length=1024))

    assert (found.hidden_states, found.pinned) == (24 * 896 * 2 * 1024, 0)


def test_standard_checkpointing_keeps_hidden_states_on_the_device():
    found = memory(replace(SETTING, checkpointing="standard"))

    assert (found.hidden_states, found.pinned) == (32 * 4096 * 2 * 4096, 0)


def test_a_layer_that_is_skipped_keeps_its_activations_and_no_hidden_state():
    found, whole = memory(replace(SETTING, skip_layers=8)), memory(SETTING)

    assert found.pinned == 0.75 * whole.pinned
    assert found.kept_layers == 8 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 3 * 14336) * 2 * 4096


def test_without_checkpointing_every_layer_is_kept():
    none = memory(replace(SETTING, checkpointing="none"))

    assert none == replace(
        memory(replace(SETTING, skip_layers=32)), slack=none.slack, hidden_states=0
    )


def test_only_the_larger_of_a_layer_and_the_loss_counts():
    found = memory(SETTING)
    larger = replace(found, loss=found.working + 7)

    assert found.loss < found.working
    assert larger.allocated - found.allocated == 7


def test_reserved_and_process_add_slack_and_runtime():
    found = memory(SETTING)

    assert found.slack == int(0.03 * found.allocated)
    assert found.reserved == found.allocated + found.slack
    assert found.process == found.reserved + found.runtime
    assert found.host > found.pinned


def test_on_a_cpu_everything_is_on_the_host():
    found = memory(replace(STOCK, device="cpu", checkpointing="none", dtype_bytes=4))

    assert (found.runtime, found.pinned) == (0, 0)
    assert found.process == found.reserved < found.host


def test_auto_on_a_cpu_is_float32_without_checkpointing():
    recipe = recipe_file.load(RECIPES / "tiny-llama.yaml")

    found = estimate.setting_of(recipe, length=64, device="cpu")

    assert (found.dtype_bytes, found.checkpointing, found.optimizer) == (4, "none", "adamw")


def test_planning_is_more_cautious_than_the_middle_estimate():
    found = memory(SETTING, stack=estimate.cautious(UNSLOTH))

    assert found.slack == int(0.05 * found.allocated)
    assert found.runtime == int(0.8 * GIB)


@pytest.mark.parametrize(("slots", "rows"), [(100, 100), (8192, 512), (65536, 2048)])
def test_unsloths_loss_takes_a_power_of_two_of_rows(slots: int, rows: int):
    found = memory(replace(SETTING, rows=1, length=slots))

    assert found.loss == 4 * SHAPE.vocab * rows


@pytest.mark.parametrize(("slots", "rows"), [(100, 100), (8192, 4096)])
def test_trls_loss_takes_a_tile(slots: int, rows: int):
    found = memory(replace(STOCK, rows=1, length=slots))

    assert found.loss == 2 * 32768 * rows


def test_a_long_context_never_takes_more_than_two_gib_of_logits():
    shape = SHIPPED["qwen2.5-7b"]

    found = estimate.memory(shape, replace(SETTING, rows=1, length=500_000))

    assert found.loss <= 2 * GIB


def test_rows_shorter_than_max_tokens_are_moved_to_the_host_by_max_tokens():
    short = replace(SETTING, rows=8, length=400)

    assert memory(short).pinned == 0
    assert memory(replace(short, max_tokens=2048)).pinned > 0
    assert memory(replace(SETTING, max_tokens=511)).pinned == 0


def test_dropout_keeps_each_adapted_input_again_and_its_mask():
    one = replace(STOCK, targets=("q_proj", "down_proj"), skip_layers=1)
    dropped = memory(replace(one, has_dropout=True))
    fused = replace(one, engine="unsloth")

    each = (4096 + 14336) * 4096
    assert dropped.kept_layers - memory(one).kept_layers == 3 * each
    assert dropped.working - memory(one).working == 3 * each
    masks = memory(replace(fused, has_dropout=True)).kept_layers - memory(fused).kept_layers
    assert masks == each  # Unsloth drops the input again by the mask


def test_unsloth_computes_dora_as_the_stock_stack_does():
    dora = replace(SETTING, is_dora=True, checkpointing="standard")

    assert memory(dora).working == memory(replace(STOCK, is_dora=True)).working


def test_a_changed_formula_has_a_number_of_its_own():
    settings = (SETTING, STOCK, PLAIN, WHOLE, replace(SETTING, skip_layers=3, rows=1))

    sizes = [memory(setting).process for setting in settings]
    time = estimate.micro_batch_time(
        SHAPE, SETTING, CARDS["rtx-4090"], tokens=4096, pairs=2048 * 2049, head_rows=2000
    )

    assert time is not None
    # Another figure here: raise FORMULAS, or runs that older formulas predicted correct the new.
    assert estimate.FORMULAS == 1
    assert sizes == [8160610139, 9715858062, 18587656437, 106501057708, 8558062386]
    assert (time.low_s, time.high_s, time.host_s) == pytest.approx(
        (1.46764, 1.79427, 0.2496), rel=1e-4
    )


def test_eager_attention_holds_its_scores():
    plain = memory(STOCK)

    eager = memory(replace(STOCK, is_eager=True))

    assert eager.working - plain.working == 9 * 2 * 32 * 2 * 2048**2


def test_the_stock_stack_needs_more_for_a_layer_than_unsloths_kernels():
    assert memory(STOCK).working > memory(SETTING).working
    assert estimate.stack_of(STOCK) is REFERENCE


def test_float32_training_takes_twice_as_much_for_what_is_not_4_bit():
    found, half = memory(replace(STOCK, dtype_bytes=4)), memory(STOCK)

    assert found.working == 2 * half.working
    assert found.hidden_states == 2 * half.hidden_states
    kept = SHAPE.params - SHAPE.linear_params
    assert found.weights - half.weights == 2 * kept


def test_real_headers_tell_the_weights_exactly():
    count = {name: tensor.count for name, tensor in Checkpoint.open(BASE).tensors.items()}
    linear = sum(n for name, n in count.items() if name.split(".")[-2] in ALL_LINEAR)
    linear -= sum(n for name, n in count.items() if name.endswith("proj.bias"))
    rest = sum(count.values()) - linear

    assert estimate.weights_of(BASE, WHOLE) == 4 * (linear + rest)
    assert estimate.weights_of(BASE, PLAIN) == 2 * (linear + rest)
    assert estimate.weights_of(BASE, SETTING) == int(
        (0.5 + 1 / 64 + 4 / 64 / 256) * linear + 2 * rest
    )


def test_weights_are_read_for_every_way_to_hold_them_where_they_are_here(tmp_path: Path):
    recipe = recipe_file.load(RECIPES / "tiny-llama.yaml", ["model.quantization=auto"])

    found = estimate.stored_weights(BASE, recipe)

    assert found == {
        "nf4": estimate.weights_of(BASE, SETTING),
        "none": estimate.weights_of(BASE, PLAIN),
    }
    assert estimate.stored_weights(tmp_path, recipe) == {}


def test_weights_that_were_read_replace_the_arithmetic():
    assert estimate.memory(SHAPE, SETTING, weight_bytes=123).weights == 123


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_has_a_setting(path: Path):
    recipe = recipe_file.load(path)

    found = estimate.setting_of(recipe, length=recipe.data.max_tokens, rows=3)

    assert (found.rows, found.length) == (3, recipe.data.max_tokens)
    assert (found.optimizer, found.checkpointing) == ("adamw_8bit", "unsloth")
    assert estimate.memory(SHAPE, found).allocated > 0


def test_auto_is_standard_checkpointing_for_the_other_engine():
    recipe = recipe_file.load(RECIPES / "qwen2.5-7b.yaml", ["engine=reference"])

    found = estimate.setting_of(recipe, length=8)

    assert (found.checkpointing, found.rows) == ("standard", recipe.train.micro_rows)
