"""Merges a LoRA adapter into its 16-bit base: a new model folder, whole or not at all.

Needs no torch, no GPU and less than half a GiB of memory.  What a merged weight is, to the bit,
is said in `blocks`; a tensor that the adapter leaves alone is copied byte for byte.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastsft.errors import ExportError
from fastsft.export import sidecars, stream
from fastsft.export.blocks import Kernel
from fastsft.export.plan import EMBEDDING, Plan, plan
from fastsft.export.shards import Shard, Writer, split, write_index
from fastsft.export.staging import (
    copy_file,
    disk_errors,
    refuse_existing,
    require_space,
    staged,
    write_file,
)
from fastsft.weights import INDEX, SINGLE, Checkpoint, Dtype, Reader

TargetDtype = Literal["base", "bfloat16", "float16", "float32"]
Progress = Callable[[int, int], None]

_STORED: dict[TargetDtype, Dtype | None] = {
    "base": None,
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
}


@dataclass(frozen=True)
class MergeReport:
    """What was written; the counts are of tensors."""

    out: Path
    files: int
    tensors: int
    merged_tensors: int
    unchanged_tensors: int  # LoRA targets whose stored values came out as the base's
    replaced_tensors: int
    untied: bool
    bytes_written: int  # weights only
    seconds: float
    max_abs_delta: float


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    *,
    stop_ids: Sequence[int],
    pad_id: int | None = None,
    bos_id: int | None = None,
    dtype: TargetDtype = "base",
    max_shard_bytes: int = 4 * 1024**3,
    overwrite: bool = False,
    finish: Callable[[Path], object] | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Writes `adapter` merged into `base` to the folder `out`.

    `finish` may add files to the folder before it appears under its name.
    `progress` is called with the bytes done and in all, on the calling thread.

    Raises: ExportError when anything does not fit, before a byte is written where it can be
    known before; `out` then does not exist, or is what it was.
    """
    started = time.monotonic()
    refuse_existing(out, overwrite=overwrite, marks=(SINGLE, INDEX))
    _refuse_sources(out, base, adapter)
    with disk_errors(out):
        job = _prepare(base, adapter, dtype, sidecars.Tokens(stop_ids, pad_id, bos_id))
        shards = split(job.plan.outputs, max_shard_bytes)
        kernel = _write(out, job, shards, finish, progress)
    return _report(out, job.plan, kernel, len(shards), time.monotonic() - started)


@dataclass(frozen=True)
class _Job:
    """Everything that will be written, decided before anything is."""

    plan: Plan
    texts: Mapping[str, bytes]
    copies: Mapping[str, Path]

    @property
    def nbytes(self) -> int:
        copied = sum(path.stat().st_size for path in self.copies.values())
        return self.plan.nbytes + sum(map(len, self.texts.values())) + copied


def _prepare(base: Path, adapter: Path, dtype: TargetDtype, tokens: sidecars.Tokens) -> _Job:
    config = sidecars.config(base)
    planned = plan(base, adapter, config, _STORED[dtype])
    rows = next((o.shape[0] for o in planned.outputs if o.name == EMBEDDING), None)
    texts = {
        sidecars.CONFIG: sidecars.adapted(config, dtype, untied=planned.untied),
        sidecars.GENERATION: sidecars.generation(base, tokens, rows),
    }
    return _Job(
        planned,
        {name: sidecars.as_json(value) for name, value in texts.items()},
        sidecars.tokenizer(adapter, base),
    )


def _write(
    out: Path,
    job: _Job,
    shards: Sequence[Shard],
    finish: Callable[[Path], object] | None,
    progress: Progress | None,
) -> Kernel:
    out.parent.mkdir(parents=True, exist_ok=True)
    with staged(out) as staging:
        require_space(out.parent, job.nbytes)
        kernel = _write_weights(staging, shards, job.plan.nbytes, progress)
        write_index(staging, shards)
        _write_sidecars(staging, job)
        _check(staging, job.plan, kernel)
        if finish:
            finish(staging)
    return kernel


def _write_weights(
    staging: Path, shards: Sequence[Shard], total: int, progress: Progress | None
) -> Kernel:
    done = 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    with Reader() as reader, stream.opened() as threads:
        writer = Writer(reader, Kernel(reader), threads, wrote)
        for shard in shards:
            writer.write(staging / shard.name, shard.outputs)
    return writer.kernel


def _write_sidecars(staging: Path, job: _Job) -> None:
    for name, text in job.texts.items():
        write_file(staging / name, text)
    for name, path in job.copies.items():
        copy_file(path, staging / name)


def _check(staging: Path, plan: Plan, kernel: Kernel) -> None:
    """Reads back what was written.

    Raises: ExportError when a tensor is missing or another, or no LoRA target changed.
    """
    written = {t.name: (t.dtype, t.shape) for t in Checkpoint.open(staging).tensors.values()}
    planned = {o.name: (o.dtype, o.shape) for o in plan.outputs}
    if written != planned:
        wrong = sorted(dict(written.items() ^ planned.items()))
        raise ExportError(
            f"reads back differently: {', '.join(wrong[:3])}",
            where="export",
            hint="export again; if it repeats, check the disk",
        )
    if not kernel.changed and any(output.delta for output in plan.outputs):
        raise ExportError(
            f"the adapter changes nothing: the largest delta is {kernel.max_abs_delta:g}",
            where="export",
            hint="check that training took a step; a delta this small needs dtype float32",
        )


def _report(out: Path, plan: Plan, kernel: Kernel, files: int, seconds: float) -> MergeReport:
    merged = sum(output.delta is not None for output in plan.outputs)
    return MergeReport(
        out=out,
        files=files,
        tensors=len(plan.outputs),
        merged_tensors=merged,
        unchanged_tensors=merged - len(kernel.changed),
        replaced_tensors=sum(output.replaced for output in plan.outputs),
        untied=plan.untied,
        bytes_written=plan.nbytes,
        seconds=seconds,
        max_abs_delta=kernel.max_abs_delta,
    )


def _refuse_sources(out: Path, base: Path, adapter: Path) -> None:
    """Raises ExportError when writing `out` would touch what it is made from."""
    target = out.resolve()
    for source in (base.resolve(), adapter.resolve()):
        if target == source or target in source.parents:
            raise ExportError(
                f"would replace {source}, which it is made from",
                where=str(out),
                hint="pass --out with a new folder",
            )
