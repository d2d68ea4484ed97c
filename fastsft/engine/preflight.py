"""Proves before step 1 what would otherwise fail at night: memory, evaluation, saving, disk."""

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastsft import events
from fastsft.data.arrays import TokenRows
from fastsft.engine.checkpoint import STAGED
from fastsft.engine.sft import write_state
from fastsft.errors import NonFiniteLoss, TrainError
from fastsft.hardware import gib
from fastsft.run import Run


def run(
    trainer: Any, folder: Run, train: TokenRows, evaluation: TokenRows, *, keep: int, merged: int
) -> tuple[events.Preflight, list[str]]:
    """Longest rows forward and backward, one evaluation batch, one save, the disk; state untouched.

    `keep`: checkpoints kept; `merged`: bytes of a merged export.  Returns the event, and notes.
    """
    began = time.perf_counter()
    with _untouched(trainer):
        _forward_backward(trainer, train)
        eval_loss = _evaluate(trainer, evaluation) if len(evaluation) else None
    size = _save(trainer, folder)
    whole = size if trainer.optimizer.state else 3 * size  # Adam's two moments come with step 1
    notes = _check_disk(folder.folder, whole, keep=keep, merged=merged)
    event = events.Preflight(
        longest_row_tokens=int(train.lengths.max()),
        eval_loss=eval_loss,
        save_bytes=size,
        vram_peak_reserved_bytes=vram_peak(),
        seconds=time.perf_counter() - began,
    )
    return event, notes


def vram_peak() -> int | None:
    """Most bytes that torch reserved on the GPU so far; None on a CPU."""
    return int(torch.cuda.max_memory_reserved()) if torch.cuda.is_available() else None


@contextmanager
def _untouched(trainer: Any) -> Iterator[None]:
    """Random numbers, gradients and mode afterwards as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    was_training = trainer.model.training
    try:
        yield
    finally:
        trainer.model.zero_grad(set_to_none=True)
        trainer.model.train(was_training)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
            torch.cuda.empty_cache()


def _longest(trainer: Any, rows: TokenRows, count: int) -> dict[str, Any]:
    """A batch of the longest rows, on the trainer's device."""
    order = np.argsort(-rows.lengths, kind="stable")[:count]
    pairs = [rows[int(index)] for index in order]
    batch = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]
    prepared: dict[str, Any] = trainer._prepare_inputs(trainer.data_collator(batch))
    return prepared


def _forward_backward(trainer: Any, rows: TokenRows) -> None:
    inputs = _longest(trainer, rows, trainer.args.per_device_train_batch_size)
    trainer.model.train()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model_wrapped, inputs)
    if not torch.isfinite(loss):
        raise NonFiniteLoss(
            "the loss of the longest rows is not a finite number",
            where="preflight",
            hint="use model.dtype bfloat16 or float32, and check the base's weights",
        )
    trainer.accelerator.backward(loss)


def _evaluate(trainer: Any, rows: TokenRows) -> float:
    inputs = _longest(trainer, rows, trainer.args.per_device_eval_batch_size)
    trainer.model.eval()
    loss, _, _ = trainer.prediction_step(trainer.model, inputs, prediction_loss_only=True)
    return float(loss)


def _save(trainer: Any, folder: Run) -> int:
    """Bytes of one checkpoint, from saving one and taking it away."""
    staging = folder.checkpoints / f"{STAGED}preflight"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write_state(trainer, staging)
        return sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(staging)


def _check_disk(folder: Path, size: int, *, keep: int, merged: int) -> list[str]:
    """Notes on the disk; raises TrainError where the run's own checkpoints do not fit."""
    needed = (keep + 2) * size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainError(
            f"the checkpoints need up to {gib(needed)}, {gib(free)} free",
            where=str(folder),
            hint="free some space, or pass --runs with a folder on another disk",
        )
    if free < needed + merged:
        return [
            f"a merged export will need {gib(merged)}; after the checkpoints {gib(free - needed)} "
            "are left on this disk: export to another with --out"
        ]
    return []
