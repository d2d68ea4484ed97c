"""What of a recipe decides the bytes and the speed of a micro-batch."""

from dataclasses import dataclass
from typing import Final, Literal

from fastsft.recipe import Recipe
from fastsft.shape import Shape

NF4_BYTES: Final = 0.5 + 4 / 64
NF4_DOUBLE_BYTES: Final = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in 4 bits, and its share of the scale of 64 weights: a float32, or with double
quantisation an int8 and a float32 for every 256 of those.

Source: QLoRA (Dettmers et al. 2023) section 3; bitsandbytes 0.50 defaults."""

Engine = Literal["unsloth", "reference"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
Checkpointing = Literal["unsloth", "standard", "none"]
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Setting:
    """What of a recipe decides bytes and speed.

    A micro-batch has `rows` rows padded to `length` tokens, of at most `max_tokens` (`length` if
    None).  `skip_layers`: layers that keep their activations although the others are recomputed.
    `dtype_bytes`: of an activation.  `has_dropout`: on the adapter's inputs.
    """

    engine: Engine
    quantization: Literal["nf4", "none"]
    double_quant: bool
    parameters: Literal["lora", "all"]
    rank: int
    targets: tuple[str, ...]
    optimizer: Optimizer
    checkpointing: Checkpointing
    skip_layers: int
    rows: int
    length: int
    dtype_bytes: int = 2
    is_eager: bool = False
    device: Device = "cuda"
    max_tokens: int | None = None
    has_dropout: bool = False
    is_dora: bool = False

    @property
    def slots(self) -> int:
        """Tokens of a micro-batch, padding among them."""
        return self.rows * self.length

    def recomputed_layers(self, shape: Shape) -> int:
        """Layers whose forward runs again in the backward."""
        if self.checkpointing == "none":
            return 0
        return max(shape.layers - self.skip_layers, 0)


def setting_of(
    recipe: Recipe, *, length: int, rows: int | None = None, device: Device = "cuda"
) -> Setting:
    """The recipe's setting with rows of `length` tokens; `auto` as without a planner.

    `rows`: of a micro-batch; the recipe's if None.
    """
    model, lora, train = recipe.model, recipe.lora, recipe.train
    is_lora = train.parameters == "lora"
    is_float = model.dtype == "float32" or (model.dtype == "auto" and device == "cpu")
    return Setting(
        engine=recipe.engine,
        quantization="none" if model.quantization == "none" else "nf4",
        double_quant=model.double_quant,
        parameters=train.parameters,
        rank=lora.rank,
        targets=tuple(lora.targets),
        optimizer=_optimizer(recipe, device),
        checkpointing=_checkpointing(recipe, device),
        skip_layers=train.checkpoint_skip_layers,
        rows=rows if rows is not None else train.micro_rows,
        length=length,
        dtype_bytes=4 if is_float else 2,
        device=device,
        max_tokens=recipe.data.max_tokens,
        has_dropout=is_lora and lora.dropout > 0,
        is_dora=is_lora and lora.dora,
    )


def _optimizer(recipe: Recipe, device: Device) -> Optimizer:
    if recipe.train.optimizer != "auto":
        return recipe.train.optimizer
    return "adamw_8bit" if device == "cuda" else "adamw"


def _checkpointing(recipe: Recipe, device: Device) -> Checkpointing:
    if recipe.train.gradient_checkpointing != "auto":
        return recipe.train.gradient_checkpointing
    if device == "cpu":
        return "none"
    return "unsloth" if recipe.engine == "unsloth" else "standard"
