"""What a model says of given tokens: logits, greedy tokens, loss.  Never imports torch.

The model is held by a child, `evaluate/score.py`, through stock transformers, PEFT and
bitsandbytes, on the GPU where it fits there, else on the CPU.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastsft import hardware
from fastsft.child import Child, started
from fastsft.errors import ExportError
from fastsft.hardware import gib
from fastsft.weights import Checkpoint, Floats, Tensor, read_object

Dtype = Literal["float32", "bfloat16", "float16"]
Place = Literal["cuda", "cpu"]

_ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
# What the child takes beside the weights: the libraries and the values in hand.  Measured: 0.7 GiB
# for a tiny model on a CPU (torch 2.10, transformers 5.17); CUDA's context is of like size.
_AROUND_BYTES = 2**30


@dataclass(frozen=True)
class Nf4:
    """The base held in 4 bits, as QLoRA trains on it."""

    double_quant: bool = True


@dataclass(frozen=True)
class Loss:
    """Cross entropy in nats, summed over `tokens` trained tokens."""

    sum: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per trained token; NaN where there is none."""
        return self.sum / self.tokens if self.tokens else math.nan


@dataclass(frozen=True)
class Scorer:
    """One model in a child process; `device` is the GPU's name or `CPU`."""

    child: Child
    number: int
    device: str

    def logits(self, ids: Sequence[int]) -> Floats:
        """What the model says after each token: float32 [T, V]."""
        path = self.child.scratch / f"logits-{self.number}"
        shape = self._ask({"logits": _plain(ids), "path": str(path)})["shape"]
        found = np.fromfile(path, dtype=np.float32).reshape(shape)
        path.unlink()
        return found

    def greedy(self, ids: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """The likeliest token after `ids`, again and again; a stop id is the last one given.

        The model's own generation settings (penalties, sampling) play no part.
        """
        request = {"greedy": _plain(ids), "max_tokens": max_tokens, "stop_ids": _plain(stop_ids)}
        found: list[int] = self._ask(request)["ids"]
        return found

    def loss(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Loss:
        """Next-token cross entropy of rows of ids [T] and labels [T], over labels other than -100.

        One row at a time, so nothing is padded; float32, summed in float64.
        """
        asked = [[_plain(ids), _plain(labels)] for ids, labels in rows]
        found = self._ask({"loss": asked})
        return Loss(found["sum"], found["tokens"])

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self.child.ask({"model": self.number, **request})


@dataclass(frozen=True)
class Process:
    """A child that holds models, several at a time or one after the other.

    It takes ten seconds to start and a model much less, so whoever needs two shares one.
    """

    child: Child
    _numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def opened(
        self, model: Path, *, adapter: Path | None = None, nf4: Nf4 | None = None, dtype: Dtype
    ) -> Iterator[Scorer]:
        """A model folder, with an adapter on it if given, held in `dtype`; let go at the end.

        A folder that is stored in 4 bits keeps them; `dtype` is then what it computes in.

        Raises: ExportError when it fits neither the GPU nor the memory, or cannot be loaded.
        """
        needed = bytes_needed(model, dtype, adapter=adapter, nf4=nf4)
        device = place(needed)
        if device is None:
            raise ExportError(
                f"the model needs {gib(needed)} of memory as {dtype}, {gib(memory_free())} is free",
                where=model.name,
                hint="close other programs, or run this on a machine with more memory",
            )
        request = {
            "model": str(model.resolve()),
            "adapter": str(_safe(adapter).resolve()) if adapter else None,
            "double_quant": nf4.double_quant if nf4 else None,
            "dtype": dtype,
            "device": "cuda:0" if device == "cuda" else "cpu",
        }
        number = next(self._numbers)
        name = self.child.ask({"open": request, "as": number})["device"]
        try:
            yield Scorer(self.child, number, name)
        except Exception:
            with suppress(ExportError):  # that it died is told already
                self.child.ask({"close": number})
            raise
        self.child.ask({"close": number})


@contextmanager
def process() -> Iterator[Process]:
    """A child without a model yet; gone when the block ends."""
    with started("fastsft.evaluate.score", [], name="scoring") as child:
        yield Process(child)


def bytes_needed(
    model: Path, dtype: Dtype, *, adapter: Path | None = None, nf4: Nf4 | None = None
) -> int:
    """Memory that a model takes while it is scored; of the adapter, its file's size."""
    around = _AROUND_BYTES + (_stored(adapter) if adapter else 0)
    if is_four_bit(model):
        return around + _stored(model)
    tensors = Checkpoint.open(model).tensors.values()
    return around + sum(held(tensor, dtype, nf4) for tensor in tensors)


def place(needed: int) -> Place | None:
    """Where so many bytes fit now: the GPU, else the CPU's memory, else nowhere."""
    gpu = hardware.gpu()
    if gpu is not None and needed <= gpu.free_bytes:
        return "cuda"
    return "cpu" if needed <= memory_free() else None


def memory_free() -> int:
    """Bytes of main memory that can be taken without swapping, within the container's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")  # as a container sees its own; version 2 of the interface
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        cached = dict(x.split() for x in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    if limit == "max":
        return free
    return min(free, int(limit) - used + int(cached.get("inactive_file", 0)))


def is_four_bit(model: Path) -> bool:
    """Whether a folder is stored quantised, as `merged-4bit` is."""
    return "quantization_config" in read_object(model / "config.json")


def held(tensor: Tensor, dtype: Dtype | None, nf4: Nf4 | None) -> int:
    """Bytes of one tensor held as `dtype`, or as it is stored if None; in NF4 if it is linear.

    Source: QLoRA (Dettmers et al. 2023) section 3: half a byte each, one absmax for 64.
    """
    if nf4 is None or not is_linear(tensor):
        return tensor.count * _ITEM_BYTES[dtype] if dtype else tensor.nbytes
    absmax = 1 + 4 / 256 if nf4.double_quant else 4  # bytes
    return tensor.count // 2 + math.ceil(tensor.count / 64 * absmax)


def is_linear(tensor: Tensor) -> bool:
    """Whether loading in 4 bits quantises it: every linear layer of a block, not the output's.

    Source: transformers 5.17 `get_keys_to_not_convert`, which Unsloth adds nothing to for our
    three families; a test holds it against the models.
    """
    return len(tensor.shape) == 2 and ".layers." in tensor.name


def _stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _safe(adapter: Path) -> Path:
    """The adapter, if its weights are safetensors: PEFT would unpickle others."""
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ExportError(
            "has no adapter_model.safetensors",
            where=str(adapter),
            hint="pass the adapter's folder of a finished run",
        )
    return adapter


def _plain(ids: Sequence[int]) -> list[int]:
    return [int(token) for token in ids]
