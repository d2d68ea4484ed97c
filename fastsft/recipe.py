"""The recipe: a complete, frozen, typed value that says what a run does.  Reads no file."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from fastsft.errors import RecipeError
from fastsft.recipe_data import Checks as Checks
from fastsft.recipe_data import Data as Data
from fastsft.recipe_data import NonEmpty, Section
from fastsft.recipe_data import Replay as Replay
from fastsft.recipe_data import Source as Source

Linear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_LINEAR: tuple[Linear, ...] = get_args(Linear)
"""All seven linear layers of a block: adapting every one is what it takes to match full
fine-tuning.  Source: QLoRA (Dettmers et al. 2023), section 4."""

LAYERLESS = ("auto", "none")
"""Kinds of checkpointing that leave no layers to choose."""


class Model(Section):
    """Which base is trained, and in which precision it is held."""

    base: NonEmpty = Field(
        description="Hugging Face id or local folder of the 16-bit base; "
        "`tiny:qwen2.5`, `tiny:llama` and `tiny:mistral` ship with fastsft."
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of the Hugging Face repository."
    )
    family: Literal["qwen2.5", "llama", "mistral"] = Field(
        description="Checked against the base's config.json."
    )
    quantization: Literal["auto", "nf4", "none"] = Field(
        "nf4",
        description="`nf4`: the frozen base is held in 4 bits (QLoRA); `none`: in `dtype`; `auto`: "
        "the faster of those that fit the GPU, `none` on a CPU.",
    )
    double_quant: bool = Field(
        True, description="Quantise the NF4 block scales too (saves 0.37 bit a weight)."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Compute type; `auto` is bfloat16 where the GPU has it, float16 on older ones, "
        "float32 on a CPU.",
    )
    min_vram_gib: float = Field(
        0.0,
        ge=0,
        le=1024,
        description="Smallest card this recipe is meant for, in GiB; 0 for a CPU.",
    )


class Lora(Section):
    """The low-rank adapter."""

    rank: int = Field(16, ge=1, le=1024, description="Rank r of the adapter.")
    alpha: float = Field(
        16.0, gt=0, le=8192, description="Scale: the update is alpha / r times B·A."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: tuple[Linear, ...] = Field(
        ALL_LINEAR, min_length=1, description="Which linear layers get an adapter."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead (rsLoRA).")
    dora: bool = Field(
        False, description="Learn a magnitude for each output row too (DoRA); slower."
    )
    init: Literal["default", "gaussian"] = Field(
        "default",
        description="Start of A; B starts at zero. PiSSA, OLoRA, CorDA and LoftQ change the base's "
        "weights and are not offered.",
    )


class Train(Section):
    """The optimisation."""

    parameters: Literal["lora", "all"] = Field(
        "lora", description="`lora` trains an adapter; `all` every weight (small models)."
    )
    epochs: float | None = Field(
        None, gt=0, le=1000, description="Passes over the data; or give `steps`."
    )
    steps: int | None = Field(
        None, ge=1, le=10_000_000, description="Optimizer steps; or give `epochs`."
    )
    micro_batch_rows: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        2,
        description="Rows computed at once; `auto`: as many of `rows_per_step` as are fastest and "
        "fit.",
    )
    accumulation_steps: int = Field(
        4,
        ge=1,
        le=4096,
        description="Micro-batches for one optimizer step (gradient accumulation); follows from "
        "`rows_per_step` where `micro_batch_rows` is `auto`.",
    )
    rows_per_step: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Rows of one optimizer step, for `micro_batch_rows: auto` to split.",
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the rate falls after the warm-up."
    )
    warmup_share: float = Field(
        0.03, ge=0, lt=1, description="Share of the steps over which the rate rises."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay (AdamW).")
    max_grad_norm: float = Field(
        1.0, gt=0, le=1000, description="Gradients are clipped to this norm."
    )
    optimizer: Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "auto", description="`auto` is 8-bit AdamW on CUDA, fused AdamW elsewhere."
    )
    gradient_checkpointing: Literal["auto", "unsloth", "standard", "none"] = Field(
        "auto",
        description="Recompute activations to save memory; `unsloth` also moves them to the host. "
        "`auto` is the fastest that fits the GPU, by `fastsft plan`; `none` on a CPU.",
    )
    checkpoint_skip_layers: int = Field(
        0,
        ge=0,
        le=1024,
        description="Layers that keep their activations all the same, for `unsloth` or `standard` "
        "checkpointing with engine `unsloth`.",
    )
    neftune_alpha: float | None = Field(
        None, gt=0, le=100, description="Noise on the embeddings (NEFTune)."
    )
    packing: bool | Literal["auto"] = Field(
        False,
        description="Several rows in one sequence of `data.max_tokens`, kept apart by the "
        "attention; `auto` takes batches of like lengths where no kernel keeps them apart.",
    )
    seed: int = Field(
        3407, ge=0, le=2**31 - 1, description="Seeds adapter, data order and dropout."
    )
    save_every_steps: int = Field(
        100, ge=1, description="A checkpoint every so many steps, and at the end."
    )
    keep_checkpoints: int = Field(
        2, ge=2, le=1000, description="Newest checkpoints kept; two, so that one is always whole."
    )
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="Trackers that also get the numbers; none unless asked."
    )

    @property
    def micro_rows(self) -> int:
        """Rows computed at once, as a number.  Raises RecipeError while they are `auto`."""
        if self.micro_batch_rows == "auto":
            raise RecipeError(
                "train.micro_batch_rows: still auto",
                where="recipe",
                hint="give a number; `fastsft train` settles auto for the GPU that is here",
            )
        return self.micro_batch_rows

    @property
    def step_rows(self) -> int:
        """Rows of one optimizer step, or packed sequences."""
        if self.micro_batch_rows == "auto":
            return self.rows_per_step or 1  # a recipe without it is refused
        return self.micro_batch_rows * self.accumulation_steps


class Eval(Section):
    """Held-out loss while training."""

    path: NonEmpty | None = Field(None, description="JSONL file of held-out rows; or give `share`.")
    share: float = Field(
        0.0, ge=0, le=0.5, description="Share of the rows held out, by a stable hash."
    )
    every_steps: int | None = Field(
        None, ge=1, description="Evaluate every so many steps; null only at the end."
    )
    micro_batch_rows: int | None = Field(
        None, ge=1, le=4096, description="Rows at once; null as in training."
    )
    keep_best: bool = Field(
        False, description="Keep the adapter with the lowest held-out loss, not the last."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop after so many evaluations without a lower loss (early stopping).",
    )

    @property
    def has_rows(self) -> bool:
        """Whether any rows are held out."""
        return self.path is not None or self.share > 0


class Export(Section):
    """What `fastsft export` writes unless told otherwise."""

    dtype: Literal["base", "bfloat16", "float16", "float32"] = Field(
        "base", description="Type of the merged weights; `base` keeps the base's."
    )
    max_shard_gib: float = Field(
        4.0, gt=0, le=1024, description="Largest safetensors file, in GiB."
    )
    quants: tuple[NonEmpty, ...] = Field(
        ("q4_k_m",),
        min_length=1,
        description="Types of the GGUF files: `f32`, `f16`, `bf16`, `q8_0`, or any of llama.cpp's "
        "such as `q4_k_m`, `q5_k_m`, `q6_k`.",
    )
    merge_base: Literal["stored", "dequantised"] = Field(
        "stored",
        description="Weights that the adapter is merged onto: the 16-bit ones as `stored`, or "
        "`dequantised`, as 4-bit training saw them.",
    )


class Recipe(Section):
    """Everything a run depends on."""

    description: str = Field(
        "", description="What this recipe is for, and what differs from its neighbours."
    )
    engine: Literal["unsloth", "reference"] = Field(
        "unsloth",
        description="`unsloth`: its kernels on CUDA, its own backend on a CPU. `reference`: "
        "transformers, PEFT, bitsandbytes and TRL as they are; never imports Unsloth.",
    )
    method: Literal["sft", "pretrain"] = Field(
        "sft",
        description="`sft`: supervised fine-tuning on conversations; `pretrain`: continued "
        "pretraining on raw text, every token trained.",
    )
    model: Model
    data: Data = Data()
    lora: Lora = Lora()
    train: Train
    eval: Eval = Eval()
    export: Export = Export()

    @model_validator(mode="after")
    def _is_honourable(self) -> Self:
        faults = [f"{key}: {cure}" for broken, key, cure in self._combinations() if broken]
        if faults:
            raise ValueError("@" + "\n".join(faults))
        return self

    def _combinations(self) -> tuple[tuple[bool, str, str], ...]:
        """Each combination that no engine can honour: whether it holds, its key, the cure."""
        train, lora, held_out, data = self.train, self.lora, self.eval, self.data
        is_reference = self.engine == "reference"
        return (
            (
                train.epochs is None and train.steps is None,
                "train.epochs",
                "give train.epochs or train.steps",
            ),
            (
                train.epochs is not None and train.steps is not None,
                "train.steps",
                "give either train.epochs or train.steps, not both (set the other to null)",
            ),
            (
                train.parameters == "all" and self.model.quantization == "nf4",
                "train.parameters",
                "a 4-bit base cannot be trained itself; set model.quantization to none",
            ),
            (
                train.gradient_checkpointing == "unsloth" and is_reference,
                "train.gradient_checkpointing",
                "engine reference never imports Unsloth; use standard, none or auto",
            ),
            (
                train.micro_batch_rows == "auto" and train.rows_per_step is None,
                "train.micro_batch_rows",
                "auto splits the rows of one optimizer step; give them as train.rows_per_step",
            ),
            (
                train.micro_batch_rows != "auto" and train.rows_per_step is not None,
                "train.rows_per_step",
                "micro_batch_rows times accumulation_steps say it; leave it out, or set "
                "train.micro_batch_rows to auto",
            ),
            (
                train.checkpoint_skip_layers > 0 and is_reference,
                "train.checkpoint_skip_layers",
                "only engine unsloth keeps some layers; leave it at 0, or set "
                "train.gradient_checkpointing to none",
            ),
            (
                train.checkpoint_skip_layers > 0 and train.gradient_checkpointing in LAYERLESS,
                "train.checkpoint_skip_layers",
                "auto chooses them and none keeps all; leave it at 0, or set "
                "train.gradient_checkpointing to unsloth or standard",
            ),
            (
                not self.model.double_quant and self.engine == "unsloth",
                "model.double_quant",
                "Unsloth always double-quantises; leave it true, or set engine to reference",
            ),
            (
                self.export.merge_base == "dequantised" and self.model.quantization == "none",
                "export.merge_base",
                "the base is not held in 4 bits; leave it at stored",
            ),
            (len(set(lora.targets)) < len(lora.targets), "lora.targets", "a layer is named twice"),
            (
                data.path is not None and bool(data.sources),
                "data.sources",
                "give data.path or data.sources, not both",
            ),
            (
                any(source.weight and source.share for source in data.sources),
                "data.sources",
                "a source has a weight and a share; give it one of them",
            ),
            (
                bool(data.sources) and all(source.share is not None for source in data.sources),
                "data.sources",
                "a share is of something: leave at least one source without a share",
            ),
            (
                sum(source.share or 0 for source in data.sources)
                + (data.replay.share if data.replay else 0)
                >= 1,
                "data.sources",
                "the shares add up to 1 or more; nothing is left for the other sources",
            ),
            (
                self.method == "pretrain" and data.overlength not in ("drop",),
                "data.overlength",
                "raw text is cut into pieces of data.max_tokens, no token lost; leave it out",
            ),
            (
                self.method == "pretrain" and data.train_on != "assistant",
                "data.train_on",
                "raw text is trained whole; leave it out",
            ),
            *(
                (
                    self.method == "pretrain" and bool(getattr(data, key)),
                    f"data.{key}",
                    "raw text is not rendered; leave it out",
                )
                for key in ("template", "system", "date")
            ),
            (
                held_out.path is not None and held_out.share > 0,
                "eval.share",
                "give eval.path or eval.share, not both",
            ),
            (
                held_out.every_steps is not None and not held_out.has_rows,
                "eval.every_steps",
                "there are no held-out rows; set eval.share (say 0.05) or eval.path",
            ),
            (
                held_out.keep_best and held_out.every_steps is None,
                "eval.keep_best",
                "needs eval.every_steps",
            ),
            (
                held_out.patience is not None and not held_out.keep_best,
                "eval.patience",
                "early stopping keeps the best adapter; set eval.keep_best to true too",
            ),
        )
