"""How long a micro-batch takes at the least and at the most on a card.  Pure arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastsft import flops
from fastsft.cards import Card, Kind
from fastsft.flops import Flops
from fastsft.setting import NF4_BYTES, NF4_DOUBLE_BYTES, Setting
from fastsft.shape import Shape

EFFICIENCY: Final[Mapping[Kind, tuple[float, float]]] = {
    "geforce": (0.65, 0.80),
    "datacenter": (0.40, 0.50),
}
"""Share of the peak that published LoRA runs reach with their hardware FLOP, low and high.

Source: Surogate's tables (Unsloth at 8B on an RTX 5090: 73-77 %, on an H100: 37-39 %, at 32B
47-49 %) and torchtune's (RTX 4090: 65-68 %), re-computed by the products of `flops`."""

HOST_S: Final = 2.6e-3
"""Seconds of Python and launches for each pass through a layer.

Source: fitted to Surogate's rows of Unsloth at 0.6B and 1.7B, which take 0.21-0.23 s for three
passes through 28 layers on an H100 and an RTX 5090 alike.  The stock stack launches more."""


@dataclass(frozen=True)
class Time:
    """Seconds of one micro-batch, the optimizer's step aside.

    `low_s` and `high_s`: by the range of efficiency, never under `host_s`; `dequant_s`, the reading
    and writing of a 4-bit base, is in both.  `flops`: what the device computes.
    """

    low_s: float
    high_s: float
    host_s: float
    dequant_s: float
    flops: Flops

    @property
    def is_host_bound(self) -> bool:
        """Whether even the slower device would wait for Python."""
        return self.high_s <= self.host_s


def micro_batch_time(
    shape: Shape, setting: Setting, card: Card, *, tokens: int, pairs: int, head_rows: int
) -> Time | None:
    """Seconds of a micro-batch of `tokens` slots; None for a card without a sourced peak."""
    if card.peak_flops is None or card.bandwidth is None or card.kind not in EFFICIENCY:
        return None
    work = work_of(shape, setting, tokens=tokens, pairs=pairs, head_rows=head_rows)
    low, high = EFFICIENCY[card.kind]
    dequant, host = dequant_s(shape, setting, card.bandwidth), host_s(shape, setting)
    fast = work.hardware / (high * card.peak_flops) + dequant
    slow = work.hardware / (low * card.peak_flops) + dequant
    return Time(max(fast, host), max(slow, host), host, dequant, work)


def work_of(shape: Shape, setting: Setting, *, tokens: int, pairs: int, head_rows: int) -> Flops:
    """The products of one micro-batch."""
    is_lora = setting.parameters == "lora"
    recomputed = setting.recomputed_layers(shape)
    work = flops.of_work(
        shape,
        lora_params=shape.lora_params(setting.rank, setting.targets) if is_lora else 0,
        tokens=tokens,
        head_rows=head_rows,
        pairs=pairs,
        recomputed_layers=recomputed,
        trains_base=not is_lora,
    )
    if setting.engine == "unsloth" or not is_lora:
        return work
    return flops.as_stock(
        work,
        shape,
        rank=setting.rank,
        targets=setting.targets,
        tokens=tokens,
        pairs=pairs,
        recomputed_layers=recomputed,
    )


def threshold_tokens(
    shape: Shape, setting: Setting, card: Card, *, length: int, efficiency: float | None = None
) -> float | None:
    """Tokens of a micro-batch above which the card, not Python, is the limit.

    Documents of `length` tokens, every logit computed; `efficiency`: share of the peak, the high
    end of the published range if None.  None for a card without a sourced peak.
    """
    if card.peak_flops is None or card.bandwidth is None or card.kind not in EFFICIENCY:
        return None
    share = EFFICIENCY[card.kind][1] if efficiency is None else efficiency
    pairs = flops.causal_pairs([length])
    work = work_of(shape, setting, tokens=length, pairs=pairs, head_rows=length)
    seconds = host_s(shape, setting) - dequant_s(shape, setting, card.bandwidth)
    return max(seconds, 0.0) * share * card.peak_flops * length / work.hardware


def passes(shape: Shape, setting: Setting) -> float:
    """Times that a micro-batch goes through the layers: forward, backward, and again recomputed."""
    return 2 + setting.recomputed_layers(shape) / shape.layers


def host_s(shape: Shape, setting: Setting) -> float:
    """Seconds that Python needs to launch a micro-batch."""
    return HOST_S * shape.layers * passes(shape, setting)


def dequant_s(shape: Shape, setting: Setting, bandwidth: float) -> float:
    """Seconds in which a 4-bit base is read and written in 16 bits, once a pass."""
    if setting.quantization == "none":
        return 0.0
    each = (NF4_DOUBLE_BYTES if setting.double_quant else NF4_BYTES) + setting.dtype_bytes
    return passes(shape, setting) * each * shape.linear_params / bandwidth
