"""Makes merged model folders of a finished run, with card and record.  Verifies nothing."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from fastsft.export import card, estimate, four_bit, public, record
from fastsft.export.estimate import Step
from fastsft.export.four_bit import FourBitReport
from fastsft.export.merge import MergeReport, Progress, TargetDtype, merge
from fastsft.export.record import Kind, MergeBase, Record
from fastsft.export.staging import disk_errors, refuse_existing, staged, write_file
from fastsft.export.trained import Trained

Bar = Callable[[str], AbstractContextManager[Progress]]

MERGE_RAM = 600 * 1024**2
"""Bytes that a streamed merge holds at most.  Source: bench/export/results."""

_UNCHECKED = "Not checked yet, or not completely: `fastsft verify` on this folder does it.\n"


def no_bar(_: str) -> AbstractContextManager[Progress]:
    """Shows nothing."""
    return nullcontext(lambda done, total: None)


def _nobody(_: str) -> None:
    """Hears nothing."""


@dataclass(frozen=True)
class Order:
    """Where an export goes, what may be replaced there, and who shows how far it is.

    `tell` hears, before anything is written, what each step will take.
    """

    out: Path
    overwrite: bool = False
    merge_base: MergeBase = "stored"
    bar: Bar = no_bar
    tell: Callable[[str], None] = _nobody


def merged(
    trained: Trained, order: Order, *, dtype: TargetDtype, max_shard_bytes: int
) -> MergeReport:
    """The adapter merged onto the base: a folder that transformers and vLLM load.

    Raises: ExportError when it does not fit, before a byte is written.
    """
    refuse_existing(order.out, overwrite=order.overwrite, marks=(record.NAME,))
    require(order, [*base_steps(trained, order), _merge_step(trained, dtype)])

    def finish(staging: Path) -> None:
        describe(staging, trained, order, "merged", {path.name: dtype for path in weights(staging)})

    with base_of(trained, order) as base, order.bar("merging") as progress:
        return merge(
            base,
            trained.adapter,
            order.out,
            stop_ids=trained.tokenizer.stop_ids,
            pad_id=trained.tokenizer.pad_id,
            bos_id=trained.tokenizer.bos_id,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            overwrite=order.overwrite,
            finish=finish,
            progress=progress,
        )


def merged_4bit(trained: Trained, order: Order) -> FourBitReport:
    """The merged model held in NF4 by bitsandbytes: a folder that transformers and vLLM load.

    Raises: ExportError when it does not fit, before a byte is written.
    """
    refuse_existing(order.out, overwrite=order.overwrite, marks=(record.NAME,))
    merging = _merge_step(trained, "base")
    quantising = Step(
        "quantising to NF4", trained.base.weight_bytes // 2, four_bit.ram_bytes(trained.base.folder)
    )
    require(order, [*base_steps(trained, order), merging, quantising])
    order.out.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(order.out), staged(order.out) as staging:
        whole = order.out.parent / f".tmp-{order.out.name}-merged"
        shutil.rmtree(whole, ignore_errors=True)
        try:
            merged(trained, _inner(order, whole), dtype="base", max_shard_bytes=4 * 1024**3)
            with order.bar("quantising to NF4") as progress:
                report = four_bit.write(
                    whole,
                    staging,
                    double_quant=trained.recipe.model.double_quant,
                    progress=progress,
                )
        finally:
            shutil.rmtree(whole, ignore_errors=True)
        kinds = {path.name: "nf4" for path in weights(staging)}
        describe(staging, trained, order, "merged-4bit", kinds)
    return report


def _inner(order: Order, out: Path) -> Order:
    return Order(out, merge_base=order.merge_base, bar=order.bar)


@contextmanager
def base_of(trained: Trained, order: Order) -> Iterator[Path]:
    """The folder to merge onto: the base's own, or a copy as 4-bit training saw it."""
    if order.merge_base == "stored":
        yield trained.base.folder
        return
    copy = order.out.parent / f".tmp-{order.out.name}-base"
    shutil.rmtree(copy, ignore_errors=True)
    try:
        with disk_errors(order.out), order.bar("dequantising the base") as progress:
            four_bit.dequantised_base(
                trained.base.folder,
                copy,
                double_quant=trained.recipe.model.double_quant,
                progress=progress,
            )
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def base_steps(trained: Trained, order: Order) -> list[Step]:
    """What `base_of` takes."""
    if order.merge_base == "stored":
        return []
    ram = four_bit.ram_bytes(trained.base.folder)
    return [Step("dequantising the base", trained.base.weight_bytes, ram, is_kept=False)]


def _merge_step(trained: Trained, dtype: TargetDtype) -> Step:
    """An upper bound: a 16-bit base may grow to 32 bits, and a tied head may come loose."""
    factor = 2 if dtype == "float32" else 1
    return Step("merging", trained.base.weight_bytes * factor, MERGE_RAM)


def require(order: Order, steps: list[Step]) -> None:
    """Tells what the steps take.

    Raises: ExportError when that does not fit the disk and the memory.
    """
    for step in steps:
        order.tell(str(step))
    with disk_errors(order.out):
        order.out.parent.mkdir(parents=True, exist_ok=True)
        estimate.require(order.out.parent, steps)


def weights(folder: Path) -> list[Path]:
    """The safetensors files of a folder."""
    return sorted(folder.glob("*.safetensors"))


def describe(
    staging: Path, trained: Trained, order: Order, kind: Kind, kinds: dict[str, str]
) -> Record:
    """Writes what an export says of itself; `kinds` has the type of each file with weights.

    A file that the folder's record knows already is not read again.
    """
    known = record.read(staging).files if (staging / record.NAME).exists() else {}
    total = sum((staging / name).stat().st_size for name in kinds if name not in known)
    done = 0
    with order.bar("hashing") as progress:

        def read(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(done, total)

        files = {
            name: known.get(name) or record.file_of(staging / name, of, read)
            for name, of in kinds.items()
        }
    made = Record(
        kind=kind,
        run=trained.run.folder.name,
        base=public.place(trained.recipe.model.base),
        base_fingerprint=trained.base.fingerprint,
        adapter_sha256=adapter_sha256(trained),
        merge_base=order.merge_base,
        stop_ids=trained.tokenizer.stop_ids,
        files=files,
        versions=record.versions(),
        is_synthetic=trained.base.is_synthetic,
    )
    for name in (record.UNVERIFIED, record.VERDICT, "README.md"):
        (staging / name).unlink(missing_ok=True)
    record.write(staging, made)
    write_file(staging / record.UNVERIFIED, _UNCHECKED.encode())
    write_file(staging / "README.md", card.text(trained, made).encode())
    return made


def adapter_sha256(trained: Trained) -> str:
    """One hash over the trained weights."""
    return record.folder_sha256(trained.adapter.glob("*.safetensors"))
