"""The counted products against torch's own counter, on tiny models of the three families.

torch's counter sees a CPU's eager attention as two dense products, so each query counts with every
position of its row: `pairs` is T * T here.  What a causal, packed kernel really attends to is held
against the mask that transformers builds.  Not counted by us: the product in which transformers
computes the rotary angles, some 1e-5 of the whole.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask

from fastsft import flops, shapes
from fastsft.flops import Flops
from fastsft.recipe import ALL_LINEAR
from fastsft.shapes import Shape

RANK = 4
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALONE, PACKED = (24,), (10, 14)
"""Lengths of the documents of a row."""


def config(kind: str, *, tied: bool = False) -> dict[str, Any]:
    """A tiny model whose heads are wider than its hidden state, as Nemo's are."""
    return {
        "model_type": kind,
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 80,
        "vocab_size": 112,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def build(sizes: dict[str, Any], targets: Sequence[str]) -> Any:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**sizes), attn_implementation="eager"
    )
    if not targets:
        return model.train()
    return get_peft_model(model, LoraConfig(r=RANK, target_modules=list(targets))).train()


def counted(model: Any, lengths: Sequence[int]) -> tuple[int, int]:
    """What torch's counter saw of (forward, backward), the rotary angles aside."""
    ids = torch.randint(3, 100, (1, sum(lengths)))  # [1, T]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss
        forward = total(counter)
        loss.backward()
    return forward - rotary(counter), total(counter) - forward


def total(counter: FlopCounterMode) -> int:
    return sum(counter.get_flop_counts()["Global"].values())


def rotary(counter: FlopCounterMode) -> int:
    found = counter.get_flop_counts()
    return sum(sum(ops.values()) for name, ops in found.items() if name.endswith("rotary_emb"))


def expected(
    shape: Shape, targets: Sequence[str], *, tokens: int, recomputed: int, like: str = "stock"
) -> Flops:
    work = flops.of_work(
        shape,
        lora_params=shape.lora_params(RANK, targets),
        tokens=tokens,
        head_rows=tokens,
        pairs=tokens * tokens,
        recomputed_layers=recomputed,
        trains_base=not targets,
    )
    if like != "stock":
        return work
    return flops.as_stock(
        work,
        shape,
        rank=RANK,
        targets=targets,
        tokens=tokens,
        pairs=tokens * tokens,
        recomputed_layers=recomputed,
    )


def checkpoint(model: Any, *, reentrant: bool) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()


@pytest.mark.parametrize("lengths", [ALONE, PACKED], ids=["alone", "packed"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("targets", [ATTENTION, ALL_LINEAR], ids=["4", "7"])
@pytest.mark.parametrize("kind", shapes.TYPES)
def test_every_product_of_lora_training_is_counted(
    kind: str, targets: tuple[str, ...], recomputes: bool, lengths: tuple[int, ...]
):
    sizes = config(kind)
    model = build(sizes, targets)
    if recomputes:
        checkpoint(model, reentrant=False)

    found = counted(model, lengths)

    shape = shapes.of(sizes)
    want = expected(
        shape, targets, tokens=sum(lengths), recomputed=shape.layers if recomputes else 0
    )
    assert found == (want.forward, want.backward + want.recompute)


def test_a_reentrant_checkpoint_repeats_the_whole_layer():
    sizes = config("llama")
    model = build(sizes, ALL_LINEAR)
    checkpoint(model, reentrant=True)

    found = counted(model, ALONE)

    want = expected(shapes.of(sizes), ALL_LINEAR, tokens=24, recomputed=2, like="unsloth")
    assert found == (want.forward, want.backward + want.recompute)


@pytest.mark.parametrize(("kind", "tied"), [("qwen2", True), ("llama", False), ("mistral", False)])
def test_full_fine_tuning_multiplies_each_weight_twice_backward(kind: str, tied: bool):
    sizes = config(kind, tied=tied)

    found = counted(build(sizes, ()), ALONE)

    want = expected(shapes.of(sizes), (), tokens=24, recomputed=0, like="whole")
    assert found == (want.forward, want.backward)


def test_pairs_are_what_the_mask_of_packed_documents_lets_through():
    lengths = (7, 1, 12, 4)
    settings = AutoConfig.for_model(**config("llama"))
    settings._attn_implementation = "eager"
    tokens = sum(lengths)

    mask = create_causal_mask(
        settings,
        torch.zeros(1, tokens, 48),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
    )

    assert int((mask == 0).sum()) == flops.causal_pairs(lengths)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [ATTENTION, ALL_LINEAR, ("down_proj",), ("q_proj", "v_proj")])
@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (2, 1)])
@pytest.mark.parametrize("kind", shapes.TYPES)
def test_other_sizes_and_targets_are_exact_too(
    kind: str,
    heads: tuple[int, int],
    layers: int,
    recomputes: bool,
    targets: tuple[str, ...],
):
    sizes = config(kind, tied=True) | {
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
    }
    model = build(sizes, targets)
    if recomputes:
        checkpoint(model, reentrant=False)

    found = counted(model, PACKED)

    want = expected(shapes.of(sizes), targets, tokens=24, recomputed=layers if recomputes else 0)
    assert found == (want.forward, want.backward + want.recompute)
