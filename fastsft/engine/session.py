"""One training session: load, build, resume if there is something to resume, train, finish."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from fastsft import events, start
from fastsft.base import Base, resolve
from fastsft.data import arrays
from fastsft.engine import checkpoint, load, metering, preflight, probes, settings, sft
from fastsft.engine.batches import Items
from fastsft.engine.callbacks import Conductor, copy_sidecars
from fastsft.engine.checkpoint import Checkpoint
from fastsft.errors import TrainError
from fastsft.run import Run


class Session:
    """Everything that one process does for one run."""

    def __init__(self, run: Run, log: events.Log) -> None:
        self.meter = metering.Meter()
        self.run, self.log, self.recipe = run, log, run.recipe()
        self.manifest = run.manifest()
        self.base: Base = resolve(self.recipe.model)
        self.tokenizer = start.tokenizer(self.recipe, self.base, run)
        self.rows, self.held_out = arrays.load(run.tokens_path)
        identity = {key: self.manifest[key] for key in ("identity",)}
        self.conductor = Conductor(run, self.recipe, log, identity, self.meter)

    def ask_to_stop(self, *_: object) -> None:
        """Save after the step in hand, then stop."""
        self.conductor.is_stop_asked = True

    def train(self, began: float) -> None:
        """Train to the end, or to where it was asked to stop.

        `began`: when the process did, on the clock of `time.perf_counter`.
        """
        self.meter.imported_since(began)
        found = self._newest()
        if found is not None:
            self.conductor.restore(found)
            if self.conductor.is_over:  # killed between the last save and the end
                return self._finish(found.step, time.perf_counter() - began)
        trainer = self._trainer()
        trainer.train(resume_from_checkpoint=str(found.folder) if found else None)
        step, total = int(trainer.state.global_step), int(trainer.state.max_steps)
        if not self.conductor.is_over:
            self._tell_measured()
            self.log.write(events.Stopped(step=step, total_steps=total))
            return None
        return self._finish(step, time.perf_counter() - began)

    def _newest(self) -> Checkpoint | None:
        """The checkpoint to go on from; damaged newer ones are set aside and named."""
        checkpoint.sweep(self.run.checkpoints)
        found, passed_over = checkpoint.newest(self.run.checkpoints)
        if found is None:
            return None
        for entry in passed_over:
            name = entry.split(":", 1)[0]
            aside = self.run.checkpoints / f"damaged-{time.time_ns()}-{name}"
            (self.run.checkpoints / name).rename(aside)
        self.log.write(
            events.Resumed(step=found.step, checkpoint=found.folder.name, passed_over=passed_over)
        )
        return found

    def _trainer(self) -> Any:
        device = load.device()
        batching, budget = settings.batching(self.recipe, device), self.recipe.data.max_tokens
        train = Items.of(self.rows, batching, budget=budget)
        resolved = settings.resolve(self.recipe, device, rows=len(train))
        with self.meter.apart("matmul"):
            dtype = getattr(torch, resolved.dtype)
            self.meter.matmul_flops_per_s = probes.matmul_flops_per_s(dtype)
        self.meter.work = metering.work(self.recipe, resolved, self.base.folder)
        self.log.write(events.Phase(name="load", detail="base model"))
        loaded = load.load(
            self.recipe, resolved, self.base.folder, pad_token=self.tokenizer.pad_token
        )
        trainer = sft.build(
            self.recipe,
            resolved,
            loaded,
            train,
            Items(self.held_out),
            pad_id=self.tokenizer.pad_id,
            work=self.run.folder / ".work",
            callbacks=[self.conductor],
        )
        self.conductor.attach(trainer)
        self.conductor.before_start = lambda: self._before_start(trainer, train, resolved)
        self._tell_differences(trainer, resolved)
        return trainer

    def _tell_differences(self, trainer: Any, resolved: settings.Resolved) -> None:
        requested = settings.trainer_arguments(
            self.recipe, resolved, str(self.run.folder / ".work")
        )
        differing = sft.differing(trainer, requested)
        device = _device_name()
        self.run.update_manifest(
            {
                "device": device,
                "resolved": {
                    "dtype": resolved.dtype,
                    "optimizer": resolved.optimizer,
                    "gradient_checkpointing": resolved.gradient_checkpointing,
                    "batching": resolved.batching,
                    "total_steps": resolved.total_steps,
                    "warmup_steps": resolved.warmup_steps,
                },
                "requested_versus_effective": differing,
            }
        )
        self.log.write(events.Settings(device=device, differing=differing))
        if note := settings.batching_note(self.recipe, resolved.device):
            self.log.write(events.Note(text=note))

    def _before_start(self, trainer: Any, train: Items, resolved: settings.Resolved) -> None:
        self._tell_recomputed(trainer, resolved)
        self._preflight(trainer, train)

    def _tell_recomputed(self, trainer: Any, resolved: settings.Resolved) -> None:
        """What became of the request to recompute: only now have the layers been told."""
        differing = load.differing(trainer.model, self.recipe, resolved)
        if not differing:
            return
        known = self.run.manifest().get("requested_versus_effective", {})
        self.run.update_manifest({"requested_versus_effective": {**known, **differing}})
        for key, (requested, effective) in differing.items():
            self.log.write(events.Note(text=f"train.{key}: {requested} asked, {effective} in use"))

    def _preflight(self, trainer: Any, train: Items) -> None:
        self.log.write(events.Phase(name="preflight"))
        event, notes = preflight.run(
            trainer,
            self.run,
            train,
            Items(self.held_out),
            keep=self.recipe.train.keep_checkpoints,
            merged=self.base.weight_bytes,
        )
        self.log.write(event)
        for note in notes:
            self.log.write(events.Note(text=note))

    def _tell_measured(self) -> None:
        trainer = self.conductor.trainer
        order_hash = self.conductor.order_hash if trainer is None else trainer.record.order_hash
        norm = None if trainer is None else probes.adapter_norm(trainer.model)
        self.log.write(self.meter.measured(order_hash, norm))

    def _finish(self, step: int, seconds: float) -> None:
        """Commit the result: the last weights, or the best where the recipe keeps those."""
        best = self.conductor.best_step if self.recipe.eval.keep_best else None
        source = self._source(step if best is None else best)
        with checkpoint.staged(
            self.run.adapter, {**self.conductor.meta, "step": source.step}
        ) as to:
            for path in source.folder.glob("*"):
                if path.name.startswith(("adapter_", "model", "config.json", "generation_config")):
                    shutil.copyfile(path, to / path.name)
            copy_sidecars(self.base.folder, to)
            if self.run.template_path.is_file():
                shutil.copyfile(self.run.template_path, to / self.run.template_path.name)
            _name_base(to / "adapter_config.json", self.recipe.model.base)
        shutil.rmtree(self.run.folder / ".work", ignore_errors=True)
        self._tell_measured()
        self.log.write(
            events.Finished(
                step=step, result=str(self.run.adapter), seconds=seconds, best_step=best
            )
        )
        self.log.sync()

    def _source(self, step: int) -> Checkpoint:
        """The checkpoint that becomes the result."""
        folder = self.run.checkpoints / checkpoint.name(step)
        try:
            return checkpoint.check(folder)
        except ValueError as error:
            raise TrainError(
                f"the best checkpoint is not whole: {error}",
                where=str(folder),
                hint="restore it from a backup; or, for the last weights, set eval.keep_best to "
                "false in the run's recipe.yaml and resume with --allow-change recipe",
            ) from error


def _name_base(path: Path, name: str) -> None:
    """Let the adapter name its base as the recipe does, not by a folder of this machine."""
    if path.is_file():
        config = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**config, "base_model_name_or_path": name}, indent=2), "utf-8")


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
