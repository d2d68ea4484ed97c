"""Counts the matrix products of training a dense decoder.  Pure arithmetic, exact on matmuls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fastsft.shape import Shape

_FLASH_EXTRA = 0.25
"""Of the attention's backward: FlashAttention computes 2.5 times the forward's products, not 2,
since it recomputes the scores.  Source: FlashAttention-2 (Dao 2023) section 4.1."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a whole piece of work, matmuls only.

    `attention`: the part of `backward` that is the attention's.
    """

    forward: float
    backward: float
    recompute: float
    attention: float = 0.0

    @property
    def model(self) -> float:
        """What the mathematics needs, by which utilisation is told (MFU)."""
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        """What the device computes: with recomputation and FlashAttention's extra (HFU)."""
        return self.model + self.recompute + _FLASH_EXTRA * self.attention

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recompute + other.recompute,
            self.attention + other.attention,
        )


def of_work(
    shape: Shape,
    *,
    lora_params: int,
    tokens: int,
    head_rows: int,
    pairs: int,
    recomputed_layers: int,
    trains_base: bool = False,
) -> Flops:
    """FLOP of one pass forward and backward over `tokens` positions.

    `lora_params`: of the whole adapter; `head_rows`: positions whose logits are computed;
    `pairs`: attended (query, key) pairs, L(L+1)/2 of each document; `recomputed_layers`: layers
    whose forward runs again; `trains_base`: the weights get gradients too.

    A frozen weight costs one product in the backward (its input's gradient), a trained one two.
    """
    linear = 2.0 * tokens * shape.linear_params
    adapter = 2.0 * tokens * lora_params
    head = 2.0 * head_rows * shape.head_params
    attention = 4.0 * shape.layers * shape.q * pairs
    trained = linear + head if trains_base else 0.0
    share = recomputed_layers / shape.layers
    return Flops(
        forward=linear + head + adapter + attention,
        backward=linear + head + trained + 2 * adapter + 2 * attention,
        recompute=share * (linear + adapter + attention),
        attention=2 * attention,
    )


def as_stock(
    work: Flops,
    shape: Shape,
    *,
    rank: int,
    targets: Sequence[str],
    tokens: int,
    pairs: int,
    recomputed_layers: int,
) -> Flops:
    """The same LoRA work as transformers, PEFT and torch do it, which leave two things out.

    Without recomputation nobody asks for the gradient of the first layer's input, nor for what
    only that would need; with it, PEFT asks.  A recomputed layer stops at the last tensor that the
    backward needs, before its last product: that of `down_proj`, or of its B.

    Seen with torch 2.10's counter (tests/test_flops_counter.py); `use_reentrant` checkpoints and
    Unsloth's repeat the whole layer.
    """
    if recomputed_layers:
        last = shape.hidden * (rank if "down_proj" in targets else shape.mlp)
        return replace(work, recompute=work.recompute - 2.0 * tokens * recomputed_layers * last)
    linear = 2.0 * tokens * _first_unneeded(shape, rank, targets)
    attention = 2.0 * shape.q * pairs * _first_unneeded_attention(targets)
    return replace(
        work,
        backward=work.backward - linear - attention,
        attention=work.attention - attention,
    )


_STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Linear layers by what they read: the layer's input, the attention, the sum so far, the MLP."""


def _first_unneeded(shape: Shape, rank: int, targets: Sequence[str]) -> int:
    """Weights of the first layer through which no gradient goes: nothing before them is trained."""
    unneeded, widths = 0, shape.linears()
    for stage in _STAGES:
        for name in stage:
            read, written = widths[name]
            unneeded += read * written + (rank * read if name in targets else 0)
        if any(name in targets for name in stage):
            break
    return unneeded


def _first_unneeded_attention(targets: Sequence[str]) -> int:
    """Of the first layer's four backward products of attention, those that nothing needs."""
    q, k, v = (f"{name}_proj" in targets for name in "qkv")
    return 4 - (v + (q or k) + q + k)  # of V, of the scores, of Q, of K


def causal_pairs(lengths: Iterable[int]) -> int:
    """Attended pairs of documents of these lengths, each token seeing itself and those before."""
    return sum(length * (length + 1) // 2 for length in lengths)
