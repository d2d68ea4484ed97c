"""What the tests do to a training child, after the fork and before the product's own code.

Each function patches this process; none is part of the product.
"""

import errno
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_step(step: int) -> None:
    """SIGKILL as optimizer step `step` begins."""
    _before_step(step, die)


def pause_before_step(step: int) -> None:
    """Hold still for a minute as step `step` begins, with the run's lock held."""
    _before_step(step, lambda: time.sleep(60))


def _before_step(step: int, do: Any) -> None:
    from fastsft.engine.callbacks import Conductor

    begin = Conductor.on_step_begin

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == step:
            do()
        begin(self, args, state, control, **kwargs)

    Conductor.on_step_begin = on_step_begin


def die_before_result() -> None:
    """SIGKILL between the last save and the adapter."""
    from fastsft.engine.session import Session

    Session._finish = lambda *_: die()


def documents_without_positions() -> None:
    """Packed batches no longer say where a document begins."""
    from fastsft.engine.batches import Collator

    packed = Collator._packed

    def without(self: Any, items: Any) -> Any:
        batch = packed(self, items)
        del batch["position_ids"]
        return batch

    Collator._packed = without


def cannot_pack() -> None:
    """The engine cannot keep packed documents apart, as Unsloth's on a CPU."""
    from fastsft.engine import settings

    settings._keeps_apart = lambda *_: False


def nan_loss(step: int) -> None:
    """The loss of a micro-batch of step `step` is NaN."""
    from transformers import Trainer

    compute = Trainer.compute_loss

    def compute_loss(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, model, *args, **kwargs)
        is_due = model.training and self.state.global_step + 1 == step
        return loss * float("nan") if is_due else loss

    Trainer.compute_loss = compute_loss


def gradient(step: int, *, factor: float) -> None:
    """The gradients of step `step` are multiplied: by NaN one of them, else all."""
    from transformers import Trainer

    inner = Trainer.training_step

    def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = inner(self, model, *args, **kwargs)
        if self.state.global_step + 1 == step:
            grads = [w.grad for w in model.parameters() if w.grad is not None]
            for grad in grads[:1] if factor != factor else grads:
                grad.mul_(factor)
        return loss

    Trainer.training_step = training_step


def little_disk(free: int) -> None:
    """The disk says that only `free` bytes are left."""
    real = shutil.disk_usage

    def disk_usage(path: Any) -> Any:
        return real(path)._replace(free=free)

    shutil.disk_usage = disk_usage


def fill_disk(step: int, *, left: int, filler: str) -> None:
    """As the save of step `step` begins, a file takes all but `left` bytes of the disk."""
    from fastsft.engine.callbacks import Conductor

    save = Conductor.save

    def full_save(self: Any, trainer: Any) -> None:
        if trainer.state.global_step == step:
            free = shutil.disk_usage(Path(filler).parent).free
            with Path(filler).open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(free - left, 1))
        save(self, trainer)

    Conductor.save = full_save


def failing_fsync(number: int, *, code: int = errno.EIO) -> None:
    """The `number`-th fsync of the training phase fails."""
    real, count = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    _before_step(1, lambda: setattr(os, "fsync", fsync))


def crash_at(operation: int, *, log: str | None = None) -> None:
    """SIGKILL just before the `operation`-th change of the file system; `log` lists them all.

    Counted: every fsync, rename, mkdir, unlink and rmdir that Python makes, and every file that
    it opens to write.
    """
    count = 0
    real = os.fsync

    def note(what: str) -> None:
        nonlocal count
        count += 1
        if log:
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{what}\n".encode())
            os.close(descriptor)
        if count == operation:
            die()

    def fsync(descriptor: int) -> None:
        note(f"fsync {_descriptor(descriptor)}")
        real(descriptor)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and Path(arguments[0]).is_dir():
            return  # it changes nothing
        if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            note(f"{event} {_path(arguments[0])}")
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = _path(arguments[0])
            if "/checkpoints/" in path or "/.tmp-" in path:
                note(f"open {path}")

    os.fsync = fsync
    sys.addaudithook(hook)


def _path(named: Any) -> str:
    return _descriptor(named) if isinstance(named, int) else os.fsdecode(named)


def _descriptor(number: int) -> str:
    return str(Path(f"/proc/self/fd/{number}").readlink())


def still_optimizer() -> None:
    """The optimizer steps, and changes nothing."""
    import torch

    torch.optim.AdamW.step = lambda *_, **__: None  # type: ignore[method-assign]


def counts_padding() -> None:
    """Padding is counted as if it were tokens of rows."""
    from fastsft.engine import sft

    count = sft._counted

    def counted(batch: dict[str, Any]) -> Any:
        return count({key: value for key, value in batch.items() if key != "attention_mask"})

    sft._counted = counted


def slow_matmul(factor: float) -> None:
    """The matmul that utilisation is measured against seems `factor` times slower."""
    from fastsft.engine import probes

    measure = probes.matmul_flops_per_s
    probes.matmul_flops_per_s = lambda *a: (measure(*a) or 0.0) / factor


def compile_before_step(step: int) -> None:
    """A new graph is compiled as optimizer step `step` begins."""

    def compile_one() -> None:
        import torch

        torch.compile(lambda x: x * 2 + 1, backend="eager")(torch.ones(3))

    _before_step(step, compile_one)


def shaken_adapter(step: int) -> None:
    """Every B of the adapter is moved a little as optimizer step `step` begins."""
    from fastsft.engine.callbacks import Conductor

    begin = Conductor.on_step_begin

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == step:
            for name, weight in self.trainer.model.named_parameters():
                if "lora_B" in name:
                    weight.data.add_(0.05)
        begin(self, args, state, control, **kwargs)

    Conductor.on_step_begin = on_step_begin  # type: ignore[method-assign]


def slow_steps(first: int, last: int, *, seconds: float) -> None:
    """Steps `first` to `last` take `seconds` more."""
    for step in range(first, last + 1):
        _before_step(step, lambda: time.sleep(seconds))
