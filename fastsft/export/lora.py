"""Reads a PEFT LoRA adapter folder into what it does to each base weight.  No torch, no merging.

Whatever it does not understand it refuses: an adapter read half is a model nobody trained.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsft.errors import ExportError
from fastsft.weights import Checkpoint, Reader, Tensor, read_object

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_SCAN_VALUES = 1024**2

# PEFT 0.21 settings that must have this value, because another changes what the weights mean.
_MUST_BE: dict[str, object] = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False}
# PEFT 0.21 settings that say nothing about the result of a merge.
_NEUTRAL = frozenset(
    [
        *("auto_mapping", "base_model_name_or_path", "peft_version", "revision", "task_type"),
        *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora"),
        *("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform"),
        *("modules_to_save", "ensure_weight_tying", "init_lora_weights", "lora_dropout"),
        *("eva_config", "loftq_config", "velora_config", "qalora_group_size", "megatron_core"),
        *("inference_mode", "runtime_config"),
    ]
)
# Initialisations that leave the base weights as they were (PEFT 0.21, tuners/lora/layer.py).
_INITS: tuple[object, ...] = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Delta:
    """What LoRA adds to one weight: `scale * B @ A`, then DoRA's magnitude of each row."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scale: float
    magnitude: Tensor | None  # [out]


@dataclass(frozen=True)
class Adapter:
    """What the adapter does, by the base's tensor names."""

    folder: Path
    deltas: Mapping[str, Delta]
    replaced: Mapping[str, Tensor]


def open_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`, every value of it read once and found finite.

    Raises: ExportError for anything but LoRA, rsLoRA or DoRA on linear layers and whole
    modules (`modules_to_save`) as PEFT 0.21 saves them.
    """
    config = _config(folder)
    parts, replaced = _sorted_out(_tensors(folder))
    deltas = {name: _delta(folder, name, part, config) for name, part in parts.items()}
    if not deltas and not replaced:
        raise _refused(folder / WEIGHTS, "holds no LoRA weights")
    _refuse_non_finite(folder / WEIGHTS)
    return Adapter(folder, deltas, replaced)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ExportError(
            f"has no {CONFIG}", where=str(folder), hint="pass the run's adapter/ folder"
        )
    config = read_object(path)
    for key, value in _MUST_BE.items():
        if config.get(key, value) != value:
            raise _refused(path, f"{key} is {config[key]!r}; only {value!r} can be merged")
    for key in config.keys() - _NEUTRAL - _MUST_BE.keys():
        if config[key]:
            raise _refused(path, f"{key} is {config[key]!r}, which this merge does not know")
    if config.get("init_lora_weights", True) not in _INITS:
        raise _changed_base(path, config["init_lora_weights"])
    return config


def _changed_base(path: Path, init: object) -> ExportError:
    return ExportError(
        f"init_lora_weights is {init!r}: its adapter belongs to base weights changed in training",
        where=str(path),
        hint="save it with save_pretrained(..., path_initial_model_for_weight_conversion=...),"
        " which makes it an adapter of the original base",
    )


def _tensors(folder: Path) -> Mapping[str, Tensor]:
    path = folder / WEIGHTS
    if path.is_file():
        return Checkpoint.of_files([path]).tensors
    if (folder / "adapter_model.bin").is_file():
        raise ExportError(
            "holds a pickled adapter (adapter_model.bin), which can run code when read",
            where=str(folder),
            hint=f"save the adapter as {WEIGHTS}",
        )
    raise ExportError(f"has no {WEIGHTS}", where=str(folder), hint="pass the run's adapter/ folder")


def _sorted_out(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """LoRA parts by base weight and kind, and the tensors that replace a base tensor."""
    parts: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        lora = re.fullmatch(r"(.+)\.lora_(A|B|magnitude_vector)(\.weight)?", name)
        if not name.startswith(_PREFIX):
            raise _unknown(tensor)
        if lora and (lora[3] or lora[2] == "magnitude_vector"):
            _put(parts.setdefault(lora[1].removeprefix(_PREFIX) + ".weight", {}), lora[2], tensor)
        elif re.search(r"\.(lora_\w+|token_adapter|modules_to_save)\b", name):
            raise _unknown(tensor)
        else:  # whole modules; a LoRA layer's own base weight is saved as base_layer
            plain = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
            _put(replaced, plain, tensor)
    return parts, replaced


def _put(into: dict[str, Tensor], key: str, tensor: Tensor) -> None:
    if into.setdefault(key, tensor) is not tensor:
        raise _refused(tensor.path, f"{tensor.name} and {into[key].name} are the same weight")


def _delta(folder: Path, name: str, part: Mapping[str, Tensor], config: dict[str, Any]) -> Delta:
    if not part.keys() >= {"A", "B"}:
        raise _refused(folder / WEIGHTS, f"{name} has lora_{'/'.join(part)} only")
    if ("magnitude_vector" in part) != bool(config.get("use_dora")):
        raise _refused(folder / WEIGHTS, f"{name}: use_dora and lora_magnitude_vector disagree")
    module = name.removesuffix(".weight")
    rank = _setting(folder, config, "rank_pattern", "r", module)
    alpha = _setting(folder, config, "alpha_pattern", "lora_alpha", module)
    _check_rank(name, part, rank)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Delta(part["A"], part["B"], scale, part.get("magnitude_vector"))


def _check_rank(name: str, part: Mapping[str, Tensor], rank: float) -> None:
    a, b = part["A"], part["B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or not rank == a.shape[0] == b.shape[1] > 0:
        raise _refused(
            a.path, f"{name}: lora_A {[*a.shape]} and lora_B {[*b.shape]} do not fit rank {rank:g}"
        )


def _setting(folder: Path, config: dict[str, Any], table: str, key: str, module: str) -> float:
    """The module's own value from the pattern table, else the adapter's.

    Source: PEFT 0.21, `get_pattern_key`: the first pattern that matches the name's end.
    """
    value = config.get(key)
    patterns = config.get(table) or {}
    if not isinstance(patterns, dict):
        raise _refused(folder / CONFIG, f"{table} is {patterns!r}, not an object")
    for pattern, special in patterns.items():
        if _compiled(folder, pattern).match(module):
            value = special
            break
    if not isinstance(value, int | float) or not math.isfinite(value) or value is True:
        raise _refused(folder / CONFIG, f"{key} of {module} is {value!r}, not a number")
    return float(value)


def _compiled(folder: Path, pattern: str) -> re.Pattern[str]:
    """A stranger's pattern: short, few repeats and none of a group, so that it cannot hang."""
    if (
        len(pattern) > 200
        or len(re.findall(r"[*+?{]", pattern)) > 4
        or re.search(r"\)[*+?{]", pattern)
    ):
        raise _refused(folder / CONFIG, f"pattern {pattern[:60]!r} is too complex")
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise _refused(folder / CONFIG, f"pattern {pattern!r}: {error}") from error


def _refuse_non_finite(path: Path) -> None:
    with Reader() as reader:
        for tensor in Checkpoint.of_files([path]).tensors.values():
            for first in range(0, tensor.count, _SCAN_VALUES):
                count = min(_SCAN_VALUES, tensor.count - first)
                if not np.isfinite(reader.floats(tensor, first, count)).all():
                    raise ExportError(
                        f"{tensor.name} has values that are not finite",
                        where=str(path),
                        hint="the training diverged; export an earlier checkpoint",
                    )


def _unknown(tensor: Tensor) -> ExportError:
    return _refused(tensor.path, f"{tensor.name}: not a tensor this merge knows")


def _refused(path: Path, what: str) -> ExportError:
    return ExportError(
        what,
        where=str(path),
        hint="merge it with PEFT's merge_and_unload, or train with LoRA, rsLoRA or DoRA on"
        " linear layers, and modules_to_save for whole modules",
    )
