"""What a layer of the stock stack holds alive, counted byte by byte on a CPU in bfloat16.

The numbers of `stack.REFERENCE` come from here.  A GPU's kernels were not measured.
"""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoConfig, AutoModelForCausalLM

from fastsft.recipe import ALL_LINEAR
from fastsft.stack import REFERENCE, Widths

TOKENS = 256

# Hidden, heads, key-value heads, head width, MLP.
SIZES = (
    (64, 4, 2, 16, 96),
    (128, 4, 2, 16, 96),
    (64, 8, 2, 16, 96),
    (64, 4, 4, 16, 96),
    (64, 4, 2, 16, 192),
    (96, 6, 2, 32, 256),
)


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still there."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        tensors = [*model.parameters(), *model.buffers()]
        self.sizes: dict[int, int] = {}
        self.known = {tensor.untyped_storage()._cdata for tensor in tensors}
        self.peak = 0

    @property
    def now(self) -> int:
        return sum(self.sizes.values())

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, result)
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.known and key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            weakref.finalize(storage, self.sizes.pop, key, None)


def held(sizes: tuple[int, ...], layers: int, *, recomputes: bool) -> tuple[float, float]:
    """Bytes a token after the forward, and how much more at the peak of the backward."""
    hidden, heads, kv_heads, head_dim, mlp = sizes
    settings = AutoConfig.for_model(
        "llama",
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=mlp,
        vocab_size=64,
        pad_token_id=0,
    )
    base = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa").bfloat16()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=list(ALL_LINEAR))).train()
    if recomputes:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    alive = Alive(model)
    with alive:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            last = base.model(input_ids=torch.ones(1, TOKENS, dtype=torch.long), use_cache=False)
        states = last.last_hidden_state
        del last
        after = alive.peak = alive.now
        states.backward(torch.ones_like(states))
    return after / TOKENS, (alive.peak - after) / TOKENS


def row(sizes: tuple[int, ...]) -> list[int]:
    hidden, heads, kv_heads, head_dim, mlp = sizes
    return [hidden, heads * head_dim, kv_heads * head_dim, mlp, 1]


def fitted(values: list[float]) -> list[float]:
    """Bytes a token for each unit of hidden, queries, keys and MLP."""
    found, *_ = np.linalg.lstsq(np.array([row(s) for s in SIZES], float), np.array(values))
    return [float(value) for value in found[:4]]


def bytes_of(widths: Widths) -> list[float]:
    return [2 * widths.hidden, 2 * widths.q, 2 * widths.kv, 2 * widths.mlp]


@pytest.mark.slow
def test_a_layer_saves_what_the_stack_says():
    values = [
        (held(s, 4, recomputes=False)[0] - held(s, 2, recomputes=False)[0]) / 2 for s in SIZES
    ]

    assert fitted(values) == pytest.approx(bytes_of(REFERENCE.saved), abs=0.3)


@pytest.mark.slow
def test_a_recomputed_layer_works_with_what_the_stack_says_and_keeps_its_input():
    small, large = ([held(s, n, recomputes=True) for s in SIZES] for n in (2, 4))

    kept = [(b[0] - a[0]) / 2 for a, b in zip(small, large, strict=True)]
    assert kept == [2 * REFERENCE.hidden_scale * s[0] for s in SIZES]
    assert fitted([a[1] for a in small]) == pytest.approx(bytes_of(REFERENCE.working), abs=0.3)
