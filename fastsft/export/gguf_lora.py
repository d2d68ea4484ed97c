"""Writes a LoRA adapter as a GGUF that llama.cpp puts on the base at run time.  Merges nothing.

llama.cpp adds `alpha / rank * B @ A` with one alpha for all modules; what that cannot say is
refused.  Source: llama.cpp b10605, src/llama-adapter.cpp.
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import Keys

from fastsft.errors import ExportError
from fastsft.export import architecture as architectures
from fastsft.export import ggml, sidecars, stream
from fastsft.export.architecture import Architecture
from fastsft.export.ggml import Stored
from fastsft.export.gguf import GgufReport
from fastsft.export.gguf_file import Layout, Value, laid_out, writer_of
from fastsft.export.lora import Adapter, Delta, open_adapter
from fastsft.export.plan import HEAD, equal, is_whole, plan_outputs
from fastsft.weights import Checkpoint, Reader, Tensor

_ROWS = 256


def write(base: Path, adapter: Path, out: Path, *, general: Mapping[str, Value]) -> GgufReport:
    """Writes the adapter to `out` as float32, every value as it was trained.

    `general` are further keys of the file's head.

    Raises: ExportError when the format cannot say what the adapter does, before a byte is
    written.
    """
    started = time.monotonic()
    architecture = architectures.read(sidecars.config(base))
    found = _adapter(base, adapter)
    writer = writer_of(out, architecture.name, {**general, Keys.Adapter.TYPE: "lora"})
    writer.add_float32(Keys.Adapter.LORA_ALPHA, _alpha(found))
    parts = _parts(architecture, found)
    furthest = _furthest(found)
    stored = [part.stored for part in parts]
    with laid_out([writer], [stored]) as (layout,), Reader() as reader:
        for part in parts:
            _write(part, layout, reader)
        os.fsync(layout.file)
    return GgufReport(
        files={"lora": out},
        tensors=len(parts),
        merged_tensors=len(found.deltas),
        unchanged_tensors=0,
        bytes_written=sum(part.stored.nbytes for part in parts),
        seconds=time.monotonic() - started,
        max_abs_delta=furthest,
        notes=architecture.notes,
    )


@dataclass(frozen=True)
class _Part:
    """One matrix to write; `head_rows` as in `Architecture`, for B alone."""

    stored: Stored
    source: Tensor
    head_rows: int


def _adapter(base: Path, folder: Path) -> Adapter:
    """The adapter, seen to fit the base and to be nothing but LoRA."""
    if is_whole(folder):
        raise _refused(folder, "every weight was trained, there is no adapter")
    adapter, weights = open_adapter(folder), Checkpoint.open(base)
    for name, delta in adapter.deltas.items():
        if delta.magnitude:
            raise _refused(folder, f"{name} has a DoRA magnitude")
        if name == HEAD and HEAD not in weights.tensors:
            raise _refused(folder, f"{name} is trained, but tied to the embedding in the base")
    for name, tensor in adapter.replaced.items():  # PEFT saves a trained head's base beside it
        if name not in weights.tensors or not equal(tensor, weights.tensors[name]):
            raise _refused(folder, f"{name} was trained whole")
    plan_outputs(weights, adapter, tied=False, dtype=None)
    return adapter


def _parts(architecture: Architecture, adapter: Adapter) -> list[_Part]:
    """A and B of each module, in the adapter's order."""
    known, parts = architecture.shapes(tied=False), []
    for name, delta in adapter.deltas.items():
        if name not in known:
            raise _refused(adapter.folder, f"{name} is no tensor of {architecture.name}")
        plain, rows = architecture.gguf_name(name), architecture.head_rows(name)
        parts.append(_Part(Stored(f"{plain}.lora_a", "F32", delta.a.shape), delta.a, 0))
        parts.append(_Part(Stored(f"{plain}.lora_b", "F32", delta.b.shape), delta.b, rows))
    return parts


def _alpha(adapter: Adapter) -> float:
    """The alpha that gives each module its scale at its own rank; rsLoRA has one of its own."""
    alphas = {name: _alpha_of(delta) for name, delta in adapter.deltas.items()}
    (first, alpha), *others = alphas.items()
    for name, other in others:
        if not math.isclose(other, alpha, rel_tol=1e-12):
            raise _refused(
                adapter.folder, f"{first} needs alpha {alpha:g}, {name} {other:g}: there is one"
            )
    if alpha == 0:  # which llama.cpp takes for a scale of 1
        raise _refused(adapter.folder, "lora_alpha is 0")
    return alpha


def _alpha_of(delta: Delta) -> float:
    return delta.scale * delta.a.shape[0]


def _furthest(adapter: Adapter) -> float:
    """The largest change of a weight, found a few rows of B at a time.

    Raises: ExportError when there is none.
    """
    with Reader() as reader:
        furthest = max(_furthest_of(delta, reader) for delta in adapter.deltas.values())
    if furthest == 0:
        raise ExportError(
            "the adapter changes nothing: the largest delta is 0",
            where=str(adapter.folder),
            hint="check that training took a step",
        )
    return furthest


def _furthest_of(delta: Delta, reader: Reader) -> float:
    a = reader.floats(delta.a).reshape(delta.a.shape)
    b = reader.floats(delta.b).reshape(delta.b.shape)
    found = (np.abs(rows @ a).max() for rows in np.array_split(b, -(-len(b) // _ROWS)))
    return abs(delta.scale) * float(max(found))


def _write(part: _Part, layout: Layout, reader: Reader) -> None:
    values = reader.floats(part.source)
    if part.head_rows:
        turned = np.empty_like(values)
        ggml.interleave(values, part.head_rows, width=part.source.row_length, out=turned)
        values = turned
    stream.write_at(layout.file, values.view(np.uint8).data, layout.starts[part.stored.name])


def _refused(folder: Path, what: str) -> ExportError:
    return ExportError(
        f"{what}, which a GGUF adapter cannot say",
        where=str(folder),
        hint="export with --to gguf, which holds the whole merged model",
    )
