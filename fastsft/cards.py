"""What the graphics cards can do, each figure with its source.  Never guesses: None is unknown."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final, Literal

from fastsft.errors import RecipeError

Kind = Literal["geforce", "datacenter", "unknown"]

_GIB: Final = 1024**3
_TERA: Final = 1e12
_GIGA: Final = 1e9


@dataclass(frozen=True)
class Card:
    """A graphics card; `name` is nvidia-smi's.

    `vram_bytes`: all of it, as sold (the driver keeps some 2 % of that).  `peak_flops`: dense
    matmuls of bfloat16 added up in float32, at the boost clock, FLOP/s.  `bandwidth`: of its
    memory, bytes/s.  `power_w`: the board's limit as sold.  None where no source says.
    """

    key: str
    name: str
    vram_bytes: int
    peak_flops: float | None
    bandwidth: float | None
    power_w: float | None
    compute_capability: str
    kind: Kind
    source: str


_PER_CORE: Final = 128
"""FLOP per clock of a GeForce tensor core, fp32 accumulate: half of what it does with fp16.

Source: NVIDIA's Ada whitepaper gives the 4090 165.2 TFLOP/s from 512 tensor cores at 2,520 MHz,
and its Blackwell whitepaper (v1.1, table 3) the 5090 209.5 from 680 at 2,407; Ampere GA102's 3090
(328 at 1,695) has 71.  All three are 128 per core and clock, as llm.c `llmc/mfu.h` uses them."""

_CORES: Final = "tensor cores x boost clock x 128 FLOP ({} x {:,} MHz); {}"
_GENERATIONS: Final = {
    "8.6": "NVIDIA GA102 whitepaper; cores and clock as in llm.c llmc/mfu.h",
    "8.9": "NVIDIA Ada whitepaper; cores and clock as in llm.c llmc/mfu.h",
    "12.0": "NVIDIA RTX Blackwell whitepaper v1.1; cores and clock from NVIDIA's specification",
}
"""Where a GeForce card's figures come from, by compute capability: Ampere, Ada, Blackwell."""


def _geforce(capability: str, model: str, memory_gib: int, *figures: float, key: str = "") -> Card:
    """A row of the specification: tensor cores, boost clock in MHz, GB/s, W."""
    cores, mhz, gb_per_s, watts = figures
    return Card(
        key=key or model.lower().replace(" ", "-"),
        name=f"NVIDIA GeForce {model}",
        vram_bytes=memory_gib * _GIB,
        peak_flops=cores * mhz * 1e6 * _PER_CORE,
        bandwidth=gb_per_s * _GIGA,
        power_w=watts,
        compute_capability=capability,
        kind="geforce",
        source=_CORES.format(cores, int(mhz), _GENERATIONS[capability]),
    )


def _datacenter(
    key: str, name: str, gib: float, tflops: float, gbs: float, watts: float, capability: str
) -> Card:
    return Card(
        key=key,
        name=f"NVIDIA {name}",
        vram_bytes=int(gib * _GIB),
        peak_flops=tflops * _TERA,
        bandwidth=gbs * _GIGA,
        power_w=watts,
        compute_capability=capability,
        kind="datacenter",
        source=f"NVIDIA's data sheet of the {name.split('-')[0]}: dense, without sparsity",
    )


CARDS: Final[Mapping[str, Card]] = {
    card.key: card
    for card in (
        _geforce("8.6", "RTX 3060", 12, 112, 1777, 360, 170, key="rtx-3060-12gb"),
        _geforce("8.6", "RTX 3090", 24, 328, 1695, 936, 350),
        _geforce("8.9", "RTX 4060 Ti", 16, 136, 2535, 288, 165, key="rtx-4060-ti-16gb"),
        _geforce("8.9", "RTX 4070 Ti SUPER", 16, 264, 2610, 672, 285),
        _geforce("8.9", "RTX 4080", 16, 304, 2505, 717, 320),
        _geforce("8.9", "RTX 4090", 24, 512, 2520, 1008, 450),
        _geforce("12.0", "RTX 5070 Ti", 16, 280, 2452, 896, 300),
        _geforce("12.0", "RTX 5080", 16, 336, 2617, 960, 360),
        _geforce("12.0", "RTX 5090", 32, 680, 2407, 1792, 575),
        _datacenter("a100-40gb", "A100-SXM4-40GB", 40, 312, 1555, 400, "8.0"),
        _datacenter("a100-80gb", "A100-SXM4-80GB", 80, 312, 2039, 400, "8.0"),
        _datacenter("l40s", "L40S", 48, 362, 864, 350, "8.9"),
        _datacenter("h100-pcie", "H100 PCIe", 80, 756, 2000, 350, "9.0"),
        _datacenter("h100-sxm", "H100 80GB HBM3", 80, 989, 3350, 700, "9.0"),
        # Sold as 141 GB; the driver shows 143,771 MiB.
        _datacenter("h200", "H200", 140.4, 989, 4800, 700, "9.0"),
    )
}
"""The cards that `fastsft plan --gpu` knows, by key, weakest first in each line.

Bandwidth, power and memory: NVIDIA's specification of each."""

_TWINS: Final = (
    # A 3060 with 8 GB and a 4060 Ti with 8 GB bear the same name as their larger twins.
    replace(CARDS["rtx-3060-12gb"], key="rtx-3060-8gb", vram_bytes=8 * _GIB, bandwidth=240e9),
    replace(CARDS["rtx-4060-ti-16gb"], key="rtx-4060-ti-8gb", vram_bytes=8 * _GIB, power_w=160.0),
)

_SLACK: Final = 0.85
"""A driver shows a little less than what was sold, never this much less."""


def find(key: str) -> Card:
    """The card that `key` names: `rtx-4090`, `RTX 4090` or only `4090`.

    Raises: RecipeError with the nearest names when none or several match.
    """
    asked = key.strip().lower().replace(" ", "-").replace("_", "-")
    for prefix in ("nvidia-", "geforce-", "rtx-"):
        asked = asked.removeprefix(prefix)
    matching = [known for known in CARDS if asked in _spellings(known)]
    if len(matching) == 1:
        return CARDS[matching[0]]
    near = matching or get_close_matches(f"rtx-{asked}", CARDS, n=3, cutoff=0.4) or list(CARDS)
    raise RecipeError(
        f"{key!r} is {'more than one card' if matching else 'no card known here'}",
        where="--gpu",
        hint=f"one of {', '.join(near)}; or --vram GIB for any other",
    )


def _spellings(key: str) -> set[str]:
    """`4060-ti-16gb` and `4060-ti` of `rtx-4060-ti-16gb`; never `4070` of `rtx-4070-ti-super`."""
    bare = key.removeprefix("rtx-")
    return {bare, re.sub(r"-(\d+gb|sxm|pcie)$", "", bare)}


def of_name(name: str, vram_bytes: int) -> Card:
    """The card of nvidia-smi's `name` with the memory that it really shows.

    An unknown name, a laptop's among them, gets a card whose peaks are None.
    """
    alike = [card for card in (*CARDS.values(), *_TWINS) if card.name == name]
    fitting = [card for card in alike if _SLACK < vram_bytes / card.vram_bytes < 1.01]
    if len(fitting) == 1:
        return replace(fitting[0], vram_bytes=vram_bytes)
    return _unknown(name, vram_bytes)


def of_size(vram_gib: float) -> Card:
    """A card of which only the memory is known, in GiB: what fits, but not how fast."""
    return _unknown(f"a card with {vram_gib:g} GiB", int(vram_gib * _GIB))


def _unknown(name: str, vram_bytes: int) -> Card:
    key = "-".join(name.lower().removeprefix("nvidia ").split())
    return Card(key, name, vram_bytes, None, None, None, "", "unknown", "n/a, never guessed")
