"""A recipe on this device: what `auto` means here, and what cannot be honoured.  No torch."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastsft import hardware
from fastsft.data import pack
from fastsft.errors import DeviceError, RecipeError
from fastsft.recipe import Recipe

Dtype = Literal["bfloat16", "float16", "float32"]
Batching = Literal["packed", "grouped", "padded"]

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}

MIXES = "Unsloth offers no packing on a CPU"


@dataclass(frozen=True)
class Device:
    """Where training runs: CUDA or the CPU, and whether CUDA has bfloat16."""

    kind: Literal["cuda", "cpu"]
    has_bfloat16: bool


def here() -> Device:
    """The device of this machine, as the driver tells it."""
    gpu = hardware.gpu()
    if gpu is None:
        return Device("cpu", has_bfloat16=False)
    return Device("cuda", has_bfloat16=float(gpu.compute_capability) >= 8.0)


@dataclass(frozen=True)
class Resolved:
    """The device's answer to each open setting."""

    device: Device
    dtype: Dtype
    optimizer: str
    gradient_checkpointing: Literal["unsloth", "standard", "none"]
    batching: Batching
    total_steps: int
    warmup_steps: int


def resolve(recipe: Recipe, device: Device, *, rows: int) -> Resolved:
    """What each `auto` becomes on this device, for as many training items as `items` says.

    What `plan.settle` decides is settled before; left open, `auto` checkpointing is the thrifty
    kind.

    Raises RecipeError for what this device cannot honour.
    """
    _refuse(recipe, device)
    steps = total_steps(recipe, rows)
    return Resolved(
        device=device,
        dtype=_dtype(recipe, device),
        optimizer=_optimizer(recipe, device),
        gradient_checkpointing=_checkpointing(recipe, device),
        batching=batching(recipe, device),
        total_steps=steps,
        warmup_steps=math.ceil(recipe.train.warmup_share * steps),
    )


def batching(recipe: Recipe, device: Device) -> Batching:
    """How rows become batches, by `train.packing` and what the engine can keep apart here."""
    if not recipe.train.packing:
        return "padded"
    return "packed" if _keeps_apart(recipe, device) else "grouped"


def batching_note(recipe: Recipe, device: Device) -> str | None:
    """What to tell of an `auto` that does not pack."""
    if batching(recipe, device) != "grouped":
        return None
    return f"train.packing: {MIXES}; batches of like lengths instead"


def _keeps_apart(recipe: Recipe, device: Device) -> bool:
    """Whether the documents of a packed sequence do not see each other; the preflight proves it.

    Source: transformers 5.17 `masking_utils.find_packed_sequence_indices`, for every attention
    and device; Unsloth 2026.10.9 has varlen attention on CUDA only.
    """
    return recipe.engine == "reference" or device.kind == "cuda"


def items(recipe: Recipe, device: Device, lengths: ArrayLike) -> int:
    """Training items of an epoch: the rows of these lengths, or the sequences they pack into."""
    rows = np.asarray(lengths)
    if batching(recipe, device) != "packed":
        return len(rows)
    return len(pack.pack(rows, recipe.data.max_tokens))


def total_steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of the whole run; a last, smaller batch of an epoch counts as one.

    `rows`: what `items` says, rows or packed sequences.
    """
    train = recipe.train
    if train.steps is not None:
        return train.steps
    return math.ceil((train.epochs or 0) * math.ceil(rows / train.step_rows))


def _refuse(recipe: Recipe, device: Device) -> None:
    train, model = recipe.train, recipe.model
    for tracker in train.report_to:
        if find_spec(tracker) is None:
            raise DeviceError(
                f"{tracker} is not installed",
                where="train.report_to",
                hint=f"uv sync --extra {tracker}",
            )
    if device.kind == "cuda":
        if model.dtype == "bfloat16" and not device.has_bfloat16:
            raise _refused("model.dtype", "this GPU has no bfloat16", "float16 or auto")
        return
    if train.optimizer not in ("auto", "adamw"):
        raise _refused("train.optimizer", f"{train.optimizer} needs CUDA", "auto or adamw")
    if train.packing is True and not _keeps_apart(recipe, device):
        raise _refused("train.packing", MIXES, "auto or false, or engine to reference")
    if train.gradient_checkpointing == "unsloth":
        raise _refused("train.gradient_checkpointing", "`unsloth` needs CUDA", "auto")
    if train.checkpoint_skip_layers:
        raise _refused("train.checkpoint_skip_layers", "Unsloth keeps layers on CUDA only", "0")
    if model.dtype == "float16" or (model.dtype == "bfloat16" and recipe.engine == "unsloth"):
        raise _refused("model.dtype", f"{model.dtype} does not train on a CPU", "auto or float32")
    if model.min_vram_gib > 0:
        raise DeviceError(
            f"this recipe is meant for a GPU with {model.min_vram_gib:g} GiB, and none is here",
            where="model.min_vram_gib",
            hint="try a tiny recipe (`fastsft recipes`), or --set model.min_vram_gib=0 to run on "
            "the CPU all the same; `fastsft doctor` says what it sees",
        )


def _refused(key: str, what: str, cure: str) -> RecipeError:
    return RecipeError(f"{key}: {what}", where="recipe", hint=f"set {key} to {cure}")


def _dtype(recipe: Recipe, device: Device) -> Dtype:
    if recipe.model.dtype != "auto":
        return recipe.model.dtype
    if device.kind == "cpu":
        return "float32"
    return "bfloat16" if device.has_bfloat16 else "float16"


def _optimizer(recipe: Recipe, device: Device) -> str:
    asked = recipe.train.optimizer
    if asked == "auto":
        asked = "adamw_8bit" if device.kind == "cuda" else "adamw"
    return OPTIMIZERS[asked]


def _checkpointing(recipe: Recipe, device: Device) -> Literal["unsloth", "standard", "none"]:
    asked = recipe.train.gradient_checkpointing
    if asked != "auto":
        return asked
    if device.kind == "cpu":
        return "none"
    return "unsloth" if recipe.engine == "unsloth" else "standard"


def trainer_arguments(recipe: Recipe, resolved: Resolved, output_dir: str) -> dict[str, Any]:
    """Every argument of TRL's SFTConfig that we rely on, by name.

    All are passed explicitly, since Unsloth replaces TRL's defaults.
    Source: shared notes on Unsloth 2026.10.9; TRL 1.15 SFTConfig, transformers 5.17.
    """
    train, is_cuda = recipe.train, resolved.device.kind == "cuda"
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": train.micro_rows,
        "per_device_eval_batch_size": recipe.eval.micro_batch_rows or train.micro_rows,
        "gradient_accumulation_steps": train.accumulation_steps,
        "max_steps": resolved.total_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": resolved.warmup_steps,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": resolved.optimizer,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "bf16": resolved.dtype == "bfloat16",
        "fp16": resolved.dtype == "float16",
        "tf32": None,
        "use_cpu": not is_cuda,
        "gradient_checkpointing": resolved.gradient_checkpointing != "none",
        # Unsloth 2026.10.9 sets this to true itself; asked for, so that nothing differs.
        "gradient_checkpointing_kwargs": {"use_reentrant": recipe.engine == "unsloth"},
        "neftune_noise_alpha": train.neftune_alpha,
        "packing": False,  # ours is done before the trainer sees a row
        "eval_packing": False,
        "padding_free": False,
        "max_length": recipe.data.max_tokens,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "completion_only_loss": False,
        "assistant_only_loss": False,
        "loss_type": "nll",
        "seed": train.seed,
        "data_seed": train.seed,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "prediction_loss_only": True,
        "eval_accumulation_steps": None,
        "load_best_model_at_end": False,
        "report_to": list(train.report_to) or "none",
        "disable_tqdm": True,
        "push_to_hub": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": is_cuda,
        "dataloader_drop_last": False,
        "auto_find_batch_size": False,
        "torch_compile": False,
        "activation_offloading": False,
        "use_liger_kernel": False,
        "use_cache": False,
        "ignore_data_skip": False,
        "average_tokens_across_devices": True,
    }
