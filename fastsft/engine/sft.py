"""Builds TRL's SFTTrainer from a recipe; the one place where the two vocabularies meet."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsft.engine import settings
from fastsft.engine.batches import REAL, Collator, Items, LikeLengths, counted
from fastsft.engine.load import Loaded, in_float32
from fastsft.engine.metering import Meter
from fastsft.engine.settings import Resolved
from fastsft.errors import NonFiniteLoss
from fastsft.meter import Tokens
from fastsft.recipe import Recipe


class StepRecord:
    """What one optimizer step was fed: its losses, its tokens, and the running order hash."""

    def __init__(self, order_hash: str) -> None:
        self.order_hash = order_hash
        self.grad_norm: torch.Tensor | None = None
        self._batches: list[dict[str, torch.Tensor]] = []
        self._losses: list[torch.Tensor] = []

    @property
    def micro_batches(self) -> int:
        """How many were noted since the record was closed."""
        return len(self._batches)

    def add(self, inputs: dict[str, Any]) -> None:
        """Note a micro-batch; nothing is copied off the device before the step ends."""
        told = ("input_ids", "labels", REAL, "attention_mask", "position_ids")
        self._batches.append({key: inputs[key] for key in told if key in inputs})

    def add_loss(self, loss: torch.Tensor) -> None:
        """Note a micro-batch's loss."""
        self._losses.append(loss)

    def is_finite(self) -> tuple[bool, bool]:
        """Whether every loss of the step so far is a number, and the norm of its gradients."""
        assert self.grad_norm is not None, "the trainer took no norm"
        losses = torch.isfinite(torch.stack(self._losses)).all()
        both = torch.stack((losses, torch.isfinite(self.grad_norm)))
        return tuple(both.tolist())  # one wait for the device

    def close(self) -> Tokens:
        """The step's tokens; its rows go into the order hash, and the record is empty again.

        Copies a few kilobytes off the device: call it when the device has come to rest.
        """
        total = Tokens()
        for batch in self._batches:
            raw = batch["input_ids"].to("cpu", torch.int32).numpy().tobytes()  # [B, T]
            self.order_hash = sha256(self.order_hash.encode() + raw).hexdigest()
            total += _counted({key: value.cpu().numpy() for key, value in batch.items()})
        self._batches.clear()
        self._losses.clear()
        self.grad_norm = None
        return total


def _counted(batch: dict[str, NDArray[np.int64]]) -> Tokens:
    rows, width = batch["labels"].shape
    real = batch.get(REAL)  # [B]; only packed sequences have it
    if real is not None:
        return counted(batch["labels"], real, batch.get("position_ids"))
    mask = batch.get("attention_mask")
    return counted(batch["labels"], np.full(rows, width) if mask is None else mask.sum(1), None)


def build(
    recipe: Recipe,
    resolved: Resolved,
    loaded: Loaded,
    train: Items,
    evaluation: Items,
    *,
    pad_id: int,
    work: Path,
    callbacks: Sequence[Any],
) -> Any:
    """The trainer, with the saving and loading of checkpoints left to `callbacks`."""
    from trl import SFTConfig

    arguments = settings.trainer_arguments(recipe, resolved, str(work))
    trainer = _trainer_class(recipe, resolved)(
        model=loaded.model,
        args=SFTConfig(**arguments),
        train_dataset=train.dataset(),
        eval_dataset=evaluation.dataset() if len(evaluation) else None,
        data_collator=Collator(pad_id, tells_lengths=recipe.engine == "unsloth"),
        processing_class=loaded.tokenizer,
        callbacks=list(callbacks),
    )
    if resolved.batching == "grouped":
        batch_rows = recipe.train.micro_rows
        trainer.order = LikeLengths(train.lengths, batch_rows, seed=recipe.train.seed)
    in_float32(trainer.model)
    return trainer


def _trainer_class(recipe: Recipe, resolved: Resolved) -> Any:
    """SFTTrainer as the engine has it now, which hands us every micro-batch and save.

    Made here, not at import: Unsloth replaces `trl.SFTTrainer` when it is imported.
    """
    from transformers import Trainer
    from trl import SFTTrainer

    class RecordedTrainer(SFTTrainer):  # type: ignore[misc]
        """SFTTrainer that records what each step is fed, and saves through its callback."""

        record: StepRecord
        meter: Meter
        save_through: Any = None
        order: LikeLengths | None = None

        def training_step(
            self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> torch.Tensor:
            self.record.add(inputs)
            inputs.pop(REAL, None)
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            self.record.add_loss(loss)
            return loss

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            """Called before every optimizer step, clipped or not (transformers 5.17)."""
            self.record.grad_norm = super()._get_grad_norm(model, grad_norm)
            return self.record.grad_norm

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            with self.meter.apart("eval"):
                return super().evaluate(*args, **kwargs)

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if self.order is not None:
                return self.order
            return super()._get_train_sampler(train_dataset)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            self.save_through(self)

    class StockLossTrainer(RecordedTrainer):
        """TRL 1.15's fused loss has Triton kernels only; on a CPU the model computes its own."""

        compute_loss = Trainer.compute_loss

    is_stock_cpu = recipe.engine == "reference" and resolved.device.kind == "cpu"
    return StockLossTrainer if is_stock_cpu else RecordedTrainer


def write_state(trainer: Any, folder: Path) -> None:
    """Everything that a resume needs: weights, optimizer, scheduler, random numbers, position."""
    trainer.store_flos()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    else:
        model.save_pretrained(folder, safe_serialization=True)
    trainer._save_optimizer_and_scheduler(str(folder))
    trainer._save_scaler(str(folder))
    trainer._save_rng_state(str(folder))
    trainer.state.save_to_json(str(folder / "trainer_state.json"))


def differing(trainer: Any, arguments: dict[str, Any]) -> dict[str, list[str]]:
    """Each argument that the libraries changed: name -> [requested, effective]."""
    found = {}
    for key, requested in arguments.items():
        effective = getattr(trainer.args, key, "missing")
        effective = getattr(effective, "value", effective)
        if not _same(requested, effective):
            found[key] = [str(requested), str(effective)]
    return found


def _same(requested: Any, effective: Any) -> bool:
    is_none = requested == "none" and not effective
    return bool(is_none or requested == effective)


def refuse_non_finite(trainer: Any) -> None:
    """Raise NonFiniteLoss before the optimizer steps with a loss or gradient that is no number."""
    step = trainer.state.global_step + 1
    hint = (
        "lower train.learning_rate or use model.dtype bfloat16; the last checkpoint is intact: "
        "`fastsft train --resume RUN` goes on from it"
    )
    has_loss, has_gradient = trainer.record.is_finite()
    if not has_loss:
        raise NonFiniteLoss("the loss is not a finite number", where=f"step {step}", hint=hint)
    if not has_gradient and not _scaler_will_skip(trainer):
        raise NonFiniteLoss("a gradient is not a finite number", where=f"step {step}", hint=hint)


def _scaler_will_skip(trainer: Any) -> bool:
    """In float16 the loss scaler finds its scale by overflowing; it skips such steps itself."""
    return trainer.accelerator.scaler is not None
