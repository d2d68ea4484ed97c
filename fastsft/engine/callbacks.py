"""Turns the trainer's hooks into events, saves, evaluations and guards."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fastsft import events
from fastsft.engine import checkpoint, probes, sft
from fastsft.engine.checkpoint import Checkpoint
from fastsft.engine.metering import Meter
from fastsft.errors import NothingTrained, TrainError
from fastsft.meter import Lap, Tokens
from fastsft.recipe import Recipe
from fastsft.run import Run

PROGRESS = "fastsft.json"


class Conductor(TrainerCallback):  # type: ignore[misc]
    """Runs the preflight, writes events, decides when to evaluate, save and stop."""

    def __init__(
        self, run: Run, recipe: Recipe, log: events.Log, meta: dict[str, Any], meter: Meter
    ) -> None:
        self.run, self.recipe, self.log, self.meta = run, recipe, log, meta
        self.meter = meter
        self.trainer: Any = None
        self.before_start: Any = None
        self.is_stop_asked = False
        self.order_hash = ""
        self.best_loss: float | None = None
        self.best_step: int | None = None
        self.evaluations_without_gain = 0
        self._lap = Lap(Tokens(), 0.0)
        self._micro_batches = 0
        self._saved_step = -1
        self.is_over = False

    def attach(self, trainer: Any) -> None:
        """Let the trainer's saves and micro-batches come here."""
        self.trainer = trainer
        trainer.record, trainer.meter = sft.StepRecord(self.order_hash), self.meter
        trainer.save_through = self.save

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint's own numbers."""
        kept = json.loads((found.folder / PROGRESS).read_text("utf-8"))
        self.order_hash, self.is_over = kept["order_hash"], kept["is_over"]
        self.best_loss, self.best_step = kept["best_loss"], kept["best_step"]
        self.evaluations_without_gain = kept["evaluations_without_gain"]
        self._saved_step = found.step

    # The trainer's hooks, in the order in which they come.

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Preflight, then the training phase; the first step's clock starts."""
        self.meter.enter("preflight")
        self.before_start()
        self.meter.enter("first_step")
        self.log.write(events.Phase(name="train"))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Nothing that is not a number reaches the weights."""
        with self.meter.ours():
            sft.refuse_non_finite(self.trainer)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the step, and decide what follows it."""
        with self.meter.ours():
            self._micro_batches = self.trainer.record.micro_batches
            tokens = self.trainer.record.close()
        self._lap = self.meter.lap(tokens)
        step, is_last = state.global_step, state.global_step >= state.max_steps
        self.is_over = is_last
        every = self.recipe.eval.every_steps
        control.should_evaluate = self.recipe.eval.has_rows and (
            is_last or (every is not None and step % every == 0)
        )
        is_due = step % self.recipe.train.save_every_steps == 0
        control.should_save = is_due or is_last or self.is_stop_asked
        control.should_training_stop = is_last or self.is_stop_asked

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """One step event for each step."""
        if not logs or "loss" not in logs:
            return
        grad_norm = float(logs.get("grad_norm", float("nan")))
        if state.global_step == 1 and grad_norm == 0:
            raise NothingTrained(
                "every gradient is zero",
                where="step 1",
                hint="check lora.targets; --set engine=reference shows whether it is the engine",
            )
        with self.meter.ours():
            self.log.write(self._step(state, logs, grad_norm))

    def _step(self, state: Any, logs: dict[str, Any], grad_norm: float) -> events.Step:
        tokens, seconds = self._lap.tokens, self._lap.seconds
        trained, real, slots = tokens.per_second(seconds)
        return events.Step(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=float(state.epoch or 0),
            loss=float(logs["loss"]),
            grad_norm=grad_norm,
            learning_rate=float(logs["learning_rate"]),
            trained_tokens_per_s=trained,
            real_tokens_per_s=real,
            slots_per_s=slots,
            vram_peak_reserved_bytes=self.meter.vram_peak(),
            seconds=seconds,
            overhead_s=self._lap.overhead_s,
            trained_tokens=tokens.trained,
            real_tokens=tokens.real,
            slots=tokens.slots,
            documents=tokens.documents,
            attention_pairs=tokens.pairs,
            micro_batches=self._micro_batches,
            recompiles=probes.graphs_compiled(),
        )

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any
    ) -> None:
        """Keep the best, and stop when nothing better comes."""
        loss = float(metrics["eval_loss"])
        is_best = self.best_loss is None or loss < self.best_loss
        self.log.write(events.Evaluated(step=state.global_step, loss=loss, is_best=is_best))
        if is_best:
            self.best_loss, self.best_step = loss, state.global_step
            self.evaluations_without_gain = 0
            control.should_save = control.should_save or self.recipe.eval.keep_best
            return
        self.evaluations_without_gain += 1
        patience = self.recipe.eval.patience
        if patience is not None and self.evaluations_without_gain >= patience:
            control.should_save = control.should_training_stop = self.is_over = True
            self.log.write(
                events.Note(
                    text=f"stopped early: no lower held-out loss in {patience} evaluations; "
                    f"best {self.best_loss:.4f} at step {self.best_step}"
                )
            )

    def save(self, trainer: Any) -> None:
        """Commit a checkpoint of this step, then rotate the older ones.

        Raises TrainError when it cannot be written; earlier checkpoints stay.
        """
        step = int(trainer.state.global_step)
        if step != self._saved_step:
            with self.meter.apart("save"):
                self._save(trainer, step)

    def _save(self, trainer: Any, step: int) -> None:
        began = time.perf_counter()
        final = self.run.checkpoints / checkpoint.name(step)
        try:
            with checkpoint.staged(final, {**self.meta, "step": step}) as staging:
                sft.write_state(trainer, staging)
                (staging / PROGRESS).write_text(json.dumps(self._progress(), indent=2), "utf-8")
        except Exception as error:
            if not checkpoint.is_disk_error(error):
                raise
            raise TrainError(
                f"the checkpoint could not be written: {error}",
                where=str(final),
                hint=checkpoint.DISK_HINT,
            ) from error
        self._saved_step = step
        self.log.sync()
        self._rotate()
        seconds = time.perf_counter() - began
        self.log.write(events.Saved(step=step, checkpoint=final.name, seconds=seconds))

    def _progress(self) -> dict[str, Any]:
        return {
            "is_over": self.is_over,
            "order_hash": self.trainer.record.order_hash,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "evaluations_without_gain": self.evaluations_without_gain,
        }

    def _rotate(self) -> None:
        keep = self.recipe.train.keep_checkpoints
        kept = checkpoint.candidates(self.run.checkpoints)[:keep]
        bests = {_best_of(folder) for folder in kept} if self.recipe.eval.keep_best else set()
        checkpoint.rotate(self.run.checkpoints, keep=keep, protect=bests)


def _best_of(folder: Path) -> str | None:
    """Name of the checkpoint that this one calls the best: it is needed if this one is resumed."""
    try:
        best = json.loads((folder / PROGRESS).read_text("utf-8"))["best_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged; a resume passes it over
    return checkpoint.name(best) if best is not None else None


def copy_sidecars(base: Path, folder: Path) -> None:
    """Put the base's tokenizer and template beside the weights, byte for byte."""
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.model",
    )
    for name in names:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
