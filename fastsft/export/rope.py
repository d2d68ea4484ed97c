"""Turns a config's rotary settings into what llama.cpp knows, or refuses them.  No files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from fastsft.errors import ExportError
from fastsft.weights import Floats

_DEFAULT_THETA = 10000.0
"""Source: transformers 5.17, `RotaryEmbeddingConfigMixin.default_theta`."""

_YARN_SCALES = ("mscale", "mscale_all_dim")
_MAY_STAND: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset(["factor"]),
    "llama3": frozenset(
        ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
    ),
    "yarn": frozenset(
        ["factor", "original_max_position_embeddings", "attention_factor", *_YARN_SCALES]
    ),
}
# What llama.cpp does whatever the file says, so that no other value may stand in a config.
_MUST_BE: Mapping[str, object] = {
    "partial_rotary_factor": 1.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
}


@dataclass(frozen=True)
class Rope:
    """Rotary settings in llama.cpp's terms; `factors` divide each frequency (Llama 3.1)."""

    theta: float
    scaling: Literal["linear", "yarn"] | None = None
    factor: float = 1.0
    original_context: int | None = None
    attention: float = 1.0  # beyond the 1 + 0.1 ln(factor) that llama.cpp's yarn multiplies by
    factors: Floats | None = None  # [head_dim / 2]

    def add_to(self, writer: GGUFWriter) -> None:
        """Writes the keys; the factors are a tensor, not a key."""
        writer.add_rope_freq_base(self.theta)
        if self.scaling is None:
            return
        writer.add_rope_scaling_type(RopeScalingType(self.scaling))
        writer.add_rope_scaling_factor(self.factor)
        if self.original_context is not None:
            writer.add_rope_scaling_orig_ctx_len(self.original_context)
        if self.attention != 1.0:
            writer.add_rope_scaling_attn_factors(self.attention)


def read(config: Mapping[str, Any], head_dim: int, *, has_factors: bool) -> Rope:
    """The rotary settings of a `config.json`, of transformers 5's spelling or an older one.

    `has_factors`: whether llama.cpp reads frequency factors for this architecture.

    Raises: ExportError for settings that llama.cpp has no keys for.
    """
    settings = _settings(config)
    kind = str(settings.pop("rope_type", settings.pop("type", "default")))
    theta = _number(settings.pop("rope_theta", None) or _DEFAULT_THETA, "rope_theta")
    if kind not in _MAY_STAND or (kind == "llama3" and not has_factors):
        raise _refused(f"rope type {kind!r}: llama.cpp has no keys for it in this architecture")
    for key, value in settings.items():
        if key not in _MAY_STAND[kind] and value is not None and value != _MUST_BE.get(key):
            raise _refused(f"rope setting {key} = {value!r}: llama.cpp has no key for it")
    if kind == "default":
        return Rope(theta)
    factor = _number(settings.get("factor"), "factor")
    if kind == "linear":
        return Rope(theta, "linear", factor)
    original = _number(settings.get("original_max_position_embeddings"), "original context")
    if kind == "yarn":
        return Rope(theta, "yarn", factor, int(original), _attention(settings, factor))
    return Rope(theta, factors=_factors(theta, head_dim, factor, original, settings))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """One flat table of what the config says; None values are as good as absent."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
        raise _refused(f"rope settings {found!r} are not one table for all layers")
    beside = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    return {key: value for key, value in (beside | found).items() if value is not None}


def _attention(settings: Mapping[str, Any], factor: float) -> float:
    """What the config multiplies cos and sin by, over what llama.cpp's yarn does unasked.

    Source: transformers 5.17 `_compute_yarn_parameters`; llama.cpp ggml-cpu `rope_yarn`.
    """
    unasked = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    if (given := settings.get("attention_factor")) is not None:
        return _number(given, "attention_factor") / unasked
    both = [settings.get(key) for key in _YARN_SCALES]
    if not all(both):
        return 1.0
    if factor <= 1:
        return 1.0
    one, every = (0.1 * _number(m, "mscale") * math.log(factor) + 1.0 for m in both)
    return one / every / unasked


def _factors(
    theta: float, head_dim: int, factor: float, original: float, settings: Mapping[str, Any]
) -> Floats:
    """What Llama 3.1 divides each frequency by: 1 for short waves, `factor` for long ones.

    Source: transformers 5.17 `_compute_llama3_parameters`.
    """
    low = _number(settings.get("low_freq_factor"), "low_freq_factor")
    high = _number(settings.get("high_freq_factor"), "high_freq_factor")
    if high <= low:
        raise _refused(f"high_freq_factor {high:g} is not above low_freq_factor {low:g}")
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    factors: Floats = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise _refused(f"rope setting {key} is {value!r}, not a number above 0")
    return float(value)


def _refused(what: str) -> ExportError:
    return ExportError(
        what,
        where="config.json",
        hint="export with --to merged, which keeps the settings as they are",
    )
