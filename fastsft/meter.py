"""What is counted and timed, defined once.  Pure: numbers in, numbers out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median


@dataclass(frozen=True)
class Tokens:
    """What a piece of training was fed, counted.

    `trained`: positions that the loss sees (label not -100, the first position of a row aside,
    which has nothing before it to be predicted from); `real`: positions that are not padding;
    `slots`: positions that are computed; `documents`: rows before any packing; `pairs`: (query,
    key) pairs that causal attention needs, L(L+1)/2 of each document of L tokens;
    `computed_pairs`: the same of what is computed, padding included.
    """

    trained: int = 0
    real: int = 0
    slots: int = 0
    documents: int = 0
    pairs: int = 0
    computed_pairs: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def per_second(self, seconds: float) -> tuple[float, float, float]:
        """Rates of (trained, real, slots)."""
        span = max(seconds, 1e-9)
        return self.trained / span, self.real / span, self.slots / span


@dataclass(frozen=True)
class Lap:
    """One optimizer step: what it was fed, and its time in seconds.

    `seconds`: from the end of the step before to the end of this one, reading the data included,
    evaluating and saving left out; `overhead_s`: what of it fastsft's own callbacks took.
    """

    tokens: Tokens
    seconds: float
    overhead_s: float = 0.0

    def __add__(self, other: "Lap") -> "Lap":
        return Lap(
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.overhead_s + other.overhead_s,
        )


@dataclass(frozen=True)
class Rates:
    """Tokens per second, of each kind; see `Tokens`."""

    trained: float
    real: float
    slots: float


def rates(laps: Lap | None) -> Rates | None:
    """Rates of one step, or of the sum of several; None where there is nothing."""
    if laps is None or laps.seconds <= 0:
        return None
    return Rates(*laps.tokens.per_second(laps.seconds))


@dataclass(frozen=True)
class Spread:
    """How values lie: in their own unit.  `mad`: median absolute deviation from the median."""

    median: float
    p10: float
    p90: float
    mad: float


def spread(values: Sequence[float], *, warmup: int = 0) -> Spread | None:
    """The spread of what was measured after the first `warmup` values; None of nothing.

    Percentiles interpolate linearly between the two nearest values.
    """
    steady = values[warmup:]
    if not steady:
        return None
    middle, ordered = median(steady), sorted(steady)
    deviation = median(abs(value - middle) for value in steady)
    return Spread(middle, _percentile(ordered, 0.1), _percentile(ordered, 0.9), deviation)


def _percentile(ordered: Sequence[float], share: float) -> float:
    at = share * (len(ordered) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    return low + (high - low) * (at - math.floor(at))


def utilisation(flops_per_s: float | None, peak_flops_per_s: float | None) -> float | None:
    """Share of a peak, 1 for all of it; None where either is unknown, never guessed.

    The peak: a card's dense one (MFU of model FLOP/s, HFU of hardware FLOP/s), or a matmul's
    measured in the same process.
    """
    if flops_per_s is None or not peak_flops_per_s:
        return None
    return flops_per_s / peak_flops_per_s


def share(part: float, whole: float) -> float:
    """A part's share of the whole, 0 of nothing."""
    return part / whole if whole > 0 else 0.0


Peaks = Mapping[str, int]
"""Most bytes at once, by what is counted: allocated (in live tensors), active (allocated, or freed
but still awaited by a stream), reserved (held by torch's allocator from the driver)."""


def whole(phases: Iterable[Peaks]) -> dict[str, int]:
    """Peaks of a process from those of its phases."""
    found: dict[str, int] = {}
    for peaks in phases:
        for name, count in peaks.items():
            found[name] = max(count, found.get(name, 0))
    return found
