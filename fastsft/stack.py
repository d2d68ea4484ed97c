"""The numbers in which stacks of training software differ in the bytes that they need."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from fastsft.setting import Setting
from fastsft.shape import Shape

GIB: Final = 1024**3


@dataclass(frozen=True)
class Widths:
    """Values per token, as multiples of a layer's widths: hidden, queries, keys, MLP."""

    hidden: float
    q: float
    kv: float
    mlp: float

    def of(self, shape: Shape) -> float:
        return (
            self.hidden * shape.hidden
            + self.q * shape.q
            + self.kv * shape.kv
            + self.mlp * shape.mlp
        )


@dataclass(frozen=True)
class Stack:
    """The numbers in which stacks of training software differ; the defaults are Unsloth's.

    Bytes of a parameter: `kept_bytes` of embeddings, head, norms and biases under a 4-bit base,
    `adapter_bytes` and `gradient_bytes` of the adapter.  `hidden_scale`: a checkpointed hidden
    state's bytes, as a multiple of an activation's.  `working`: values per token of one layer's
    recompute and backward, `saved`: of what one layer saves for its backward.  Of the loss:
    `logit_bytes` for each logit that is there at once, by `chunks`; `kept_logit_bytes` for each of
    all logits, from forward to backward.  `runtime_bytes`: the CUDA context and kernels;
    `slack`: the allocator's, as a share.
    """

    name: str
    kept_bytes: int = 2
    adapter_bytes: float = 4
    gradient_bytes: float = 4
    hidden_scale: float = 1
    working: Widths = Widths(9, 4, 4, 4)
    saved: Widths = Widths(4, 2, 2, 3)
    chunks: Literal["all", "unsloth", "trl"] = "all"
    logit_bytes: float = 16
    kept_logit_bytes: float = 0
    runtime_bytes: int = int(0.6 * GIB)
    slack: float = 0.03


UNSLOTH: Final = Stack("unsloth 2026.10", chunks="unsloth", logit_bytes=4)
"""Source: `working`, `saved`, runtime and slack are fitted to Unsloth's published context lengths
(bench/estimator/points.py rows 1-9); its loss writes float32 logits, `estimate._unsloth_rows` of
them at once."""

REFERENCE: Final = Stack(
    "trl 1.15",
    working=Widths(13, 3, 2, 7),
    saved=Widths(9, 3, 2, 4),
    chunks="trl",
    logit_bytes=2,
)
"""Source: what transformers 5.17 with PEFT 0.21 and bfloat16 autocast holds alive, counted on a CPU
(tests/test_estimate_saved.py): 18 h + 6 q + 4 kv + 8 m bytes saved by a layer, 26 h + 6 q + 4 kv +
14 m at the peak of its backward, and 2 h for a checkpointed hidden state."""


UNFUSED: Final = replace(UNSLOTH, working=REFERENCE.working, saved=REFERENCE.saved)
"""Unsloth with DoRA: its fused adapters do not know it, so PEFT computes them instead.

Source: unsloth 2026.10 `models/llama.FastLlamaModel.patch_peft_model`, which fuses no layer with a
magnitude (facts)."""


def cautious(stack: Stack) -> Stack:
    """The stack with the runtime and slack to plan with, before anything was measured."""
    return replace(stack, runtime_bytes=int(0.8 * GIB), slack=0.05)


def stack_of(setting: Setting) -> Stack:
    """The stack that fastsft itself trains with."""
    if setting.engine == "reference":
        return REFERENCE
    return UNFUSED if setting.is_dora else UNSLOTH
