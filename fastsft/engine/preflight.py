"""Proves before step 1 what would otherwise go wrong unseen, or at night.

Memory, evaluation, saving, the disk, and that packed documents do not see each other.
"""

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastsft import events
from fastsft.data import pack
from fastsft.engine.batches import REAL, Items, packed_item
from fastsft.engine.checkpoint import STAGED
from fastsft.engine.sft import write_state
from fastsft.errors import NonFiniteLoss, TrainError
from fastsft.hardware import gib
from fastsft.run import Run

PROOF_DOCUMENTS = 3
PROOF_TOKENS = 256
FLOAT_TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-2
"""Of the largest logit.  Source: ten times what is seen in float32 with the same sums in another
order (tests/engine/test_packing.py); bfloat16 keeps 8 bits through every layer."""
CONTRAST = 4
"""How much farther documents without boundaries must be, or the proof could not fail."""


def run(
    trainer: Any, folder: Run, train: Items, evaluation: Items, *, keep: int, merged: int
) -> tuple[events.Preflight, list[str]]:
    """Proof of packing, longest items forward and backward, one evaluation batch, one save, the
    disk; state untouched.

    `keep`: checkpoints kept; `merged`: bytes of a merged export.  Returns the event, and notes.
    """
    began = time.perf_counter()
    with _untouched(trainer):
        notes = [_prove_apart(trainer, train)] if train.bins is not None else []
        _forward_backward(trainer, train)
        eval_loss = _evaluate(trainer, evaluation) if len(evaluation) else None
    size = _save(trainer, folder)
    whole = size if trainer.optimizer.state else 3 * size  # Adam's two moments come with step 1
    notes += _check_disk(folder.folder, whole, keep=keep, merged=merged)
    event = events.Preflight(
        longest_row_tokens=int(train.lengths.max()),
        eval_loss=eval_loss,
        save_bytes=size,
        vram_peak_reserved_bytes=trainer.meter.vram_peak(),
        seconds=time.perf_counter() - began,
    )
    return event, notes


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


def _batch(trainer: Any, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The items as the model gets them."""
    batch = trainer.data_collator(items)
    batch.pop(REAL, None)
    prepared: dict[str, Any] = trainer._prepare_inputs(batch)
    return prepared


def _longest(trainer: Any, items: Items, count: int) -> dict[str, Any]:
    """A batch of the longest items."""
    order = np.argsort(-items.lengths, kind="stable")[:count]
    return _batch(trainer, [items[int(index)] for index in order])


def _forward_backward(trainer: Any, items: Items) -> None:
    inputs = _longest(trainer, items, trainer.args.per_device_train_batch_size)
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


def _evaluate(trainer: Any, items: Items) -> float:
    inputs = _longest(trainer, items, trainer.args.per_device_eval_batch_size)
    trainer.model.eval()
    loss, _, _ = trainer.prediction_step(trainer.model, inputs, prediction_loss_only=True)
    return float(loss)


def _prove_apart(trainer: Any, train: Items) -> str:
    """Says how near the logits of packed documents are to those of each document alone.

    Raises TrainError where they are not, measured by the model's precision and by how far the
    same documents without boundaries are.
    """
    documents = [train.rows[index % len(train.rows)] for index in range(PROOF_DOCUMENTS)]
    short = [(ids[:PROOF_TOKENS], labels[:PROOF_TOKENS]) for ids, labels in documents]
    items = [packed_item(pack.join(short)), packed_item(pack.join(short[:1]))]
    batch = _batch(trainer, items[: trainer.args.per_device_train_batch_size])
    batch.pop("labels")
    trainer.model.eval()
    alone = torch.cat([_logits(trainer, _unpacked(trainer, ids)) for ids, _ in short])  # [T, V]
    mixed = _logits(trainer, _unpacked(trainer, np.concatenate([ids for ids, _ in short])))
    apart = _logits(trainer, batch)
    return _judge(trainer, alone=alone, apart=apart, mixed=mixed)


def _unpacked(trainer: Any, ids: NDArray[np.int32]) -> dict[str, Any]:
    """A sequence as one document, with nothing of ours about it."""
    row = torch.as_tensor(ids, dtype=torch.long)[None]  # [1, T]
    inputs: dict[str, Any] = trainer._prepare_inputs({"input_ids": row, "use_cache": False})
    return inputs


def _logits(trainer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits of the batch's first sequence  # [T, V]."""
    with torch.no_grad(), trainer.compute_loss_context_manager():
        logits: torch.Tensor = trainer.model_wrapped(**inputs).logits[0]
    return logits.float()


def _judge(trainer: Any, *, alone: torch.Tensor, apart: torch.Tensor, mixed: torch.Tensor) -> str:
    difference, without = _largest(apart - alone), _largest(mixed - alone)
    is_half = trainer.args.bf16 or trainer.args.fp16
    bound = (HALF_TOLERANCE if is_half else FLOAT_TOLERANCE) * _largest(alone)
    told = f"largest logit difference {difference:.1e}, without boundaries {without:.1e}"
    if difference <= bound and CONTRAST * difference < without:
        return f"packed documents are kept apart: {told}"
    raise TrainError(
        f"packed documents are not kept apart: {told}",
        where="train.packing",
        hint="--set train.packing=false trains each row by itself",
    )


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max())


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
