"""The verbs `export`, `verify` and `push`: make, check, say what happened."""

import json
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from fastsft import console, run, scoring
from fastsft.errors import ExportError
from fastsft.export import honesty, make, make_gguf, ollama, push, record, trained, verify
from fastsft.export.make import Order
from fastsft.export.merge import TargetDtype
from fastsft.export.record import Kind, MergeBase
from fastsft.export.trained import Trained
from fastsft.hardware import gib
from fastsft.scoring import Process

LOSSES = "losses.json"
"""Beside merged weights: the loss of the model as trained and as merged."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Asked:
    """What the command line says of an export; None is what the recipe says."""

    to: str
    quants: str | None = None
    imatrix: Path | None = None
    out: Path | None = None
    dtype: str | None = None
    max_shard_gib: float | None = None
    merge_base: str | None = None
    overwrite: bool = False
    check: bool = True
    allow_synthetic: bool = False


def export(folder: Path, asked: Asked, *, answer: bool = True) -> None:
    """Write a finished run's weights in the form asked for, and prove them."""
    kind = cast(Kind, _one_of(asked.to, KINDS, "--to"))
    _refuse_unused(kind, asked)
    _refuse_unknown(asked)
    found = trained.opened(run.open_run(folder))
    _refuse_synthetic(found, allowed=asked.allow_synthetic)
    order = _order(found, asked, kind)
    with scoring.process() if asked.check else nullcontext() as process:
        notes = _make(found, order, kind, asked)
        _notes(notes)
        if process:
            _prove(found, order.out, process, told=notes)
            if kind == "merged" and found.is_nf4:
                _tell_losses(found, order, process)
    if not asked.check:
        console.note(f"not checked; `fastsft verify {order.out}` does it")
    _tell_ollama(order.out)
    if answer:
        console.answer(str(order.out))


def _refuse_synthetic(found: Trained, *, allowed: bool) -> None:
    """Raises: ExportError when the base's weights are random, unless that is allowed."""
    if not found.base.is_synthetic:
        return
    if not allowed:
        raise ExportError(
            "the base is synthetic: its weights are random, and so is what was trained on it",
            where=str(found.run.folder),
            hint="train on a real base; to time or test an export, pass --allow-synthetic",
        )
    if found.base.is_nf4:
        raise ExportError(
            "the base is stored in 4 bits, and an export is made from 16-bit weights",
            where=found.recipe.model.base,
            hint="train on the plain synthetic base of the same shape",
        )
    console.note("note: the base is synthetic: the export is for timing and tests only")


def _order(found: Trained, asked: Asked, kind: Kind) -> Order:
    out = asked.out or found.run.exports / kind
    merge_base = asked.merge_base or found.recipe.export.merge_base
    if kind == "gguf-lora":
        merge_base = "stored"  # nothing is merged
    if merge_base == "dequantised" and not found.is_nf4:
        raise ExportError(
            "the base was not held in 4 bits in training, so there is nothing to dequantise",
            where="--merge-base",
            hint="--merge-base stored",
        )
    return Order(
        out.absolute(),
        asked.overwrite,
        cast(MergeBase, merge_base),
        bar=console.byte_bar,
        tell=console.note,
    )


def _refuse_unused(kind: Kind, asked: Asked) -> None:
    """Raises: ExportError when an option is given that this kind of export has no use for."""
    options = {
        "--quant": (asked.quants, ("gguf",)),
        "--imatrix": (asked.imatrix, ("gguf",)),
        "--dtype": (asked.dtype, ("merged",)),
        "--max-shard": (asked.max_shard_gib, ("merged",)),
        "--merge-base": (asked.merge_base, ("merged", "merged-4bit", "gguf")),
    }
    for option, (value, kinds) in options.items():
        if value is not None and kind not in kinds:
            raise ExportError(
                f"says nothing about --to {kind}",
                where=option,
                hint=f"leave it out; it belongs to --to {' and --to '.join(kinds)}",
            )


def _refuse_unknown(asked: Asked) -> None:
    """Raises: ExportError when an option has a value that nothing knows."""
    for option, value, known in (
        ("--dtype", asked.dtype, get_args(TargetDtype)),
        ("--merge-base", asked.merge_base, get_args(MergeBase)),
    ):
        if value is not None:
            _one_of(value, known, option)
    make_gguf.check(_quants(asked), imatrix=asked.imatrix)


def _quants(asked: Asked) -> list[str]:
    return [name.strip().lower() for name in asked.quants.split(",")] if asked.quants else []


def _make(found: Trained, order: Order, kind: Kind, asked: Asked) -> Sequence[str]:
    """What the user should know of what was written."""
    settings = found.recipe.export
    match kind:
        case "merged":
            dtype = asked.dtype or settings.dtype
            merged(found, order, cast(TargetDtype, dtype), asked.max_shard_gib)
        case "merged-4bit":
            four = make.merged_4bit(found, order)
            _told("quantised", four.tensors, four.bytes_written, four.seconds)
        case "gguf":
            quants = _quants(asked) or settings.quants
            made = make_gguf.gguf_files(found, order, quants=quants, imatrix=asked.imatrix)
            report = made.report
            _told("wrote", report.tensors, report.bytes_written, report.seconds)
            for path in made.files.values():
                console.note(f"{path.name}: {gib(path.stat().st_size)}")
            return made.notes
        case "gguf-lora":
            report = make_gguf.lora(found, order)
            _told("wrote", report.tensors, report.bytes_written, report.seconds)
            return report.notes
    return ()


def merged(
    found: Trained, order: Order, dtype: TargetDtype, max_shard_gib: float | None = None
) -> None:
    """Merge, and say how it went."""
    shard = max_shard_gib or found.recipe.export.max_shard_gib
    report = make.merged(found, order, dtype=dtype, max_shard_bytes=int(shard * 2**30))
    of = f"merged {report.merged_tensors} of"
    _told(of, report.tensors, report.bytes_written, report.seconds)
    if report.unchanged_tensors:
        console.note(f"{report.unchanged_tensors} of them round to the base's own values")


def _told(what: str, tensors: int, nbytes: int, seconds: float) -> None:
    speed = nbytes / max(seconds, 1e-9) / 1e9
    console.note(f"{what} {tensors} tensors, {gib(nbytes)} in {seconds:.1f} s ({speed:.2f} GB/s)")


def _notes(notes: Sequence[str]) -> None:
    for text in notes:
        console.note(f"note: {text}")


def _prove(
    found: Trained,
    out: Path,
    process: Process,
    *,
    told: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    """Check an export, show what was found, and raise where it failed."""
    with console.Phases() as phases:
        verdict = verify.verify(out, found, process=process, say=phases.say, progress=phases)
    if as_json:
        console.as_json(verdict.as_dict())
    else:
        console.checks(verdict.rows())
        console.note(verdict.summary)
    _notes([text for text in verdict.notes if text not in told])
    verdict.require()


def _tell_losses(found: Trained, order: Order, process: Process) -> None:
    """What merging onto other weights than those trained on cost, measured on held-out rows."""
    places = {order.merge_base: order.out}
    with console.spinner("held-out loss as trained and as merged"):
        told = honesty.measured(
            process, found, places.get("stored"), dequantised=places.get("dequantised")
        )
    run.write_atomically(order.out / LOSSES, json.dumps(told.as_dict(), indent=2) + "\n")
    console.note(told.verdict())


def verify_export(path: Path, run_folder: Path | None, *, as_json: bool) -> None:
    """Check an export by hand."""
    folder = path.absolute()
    folder = folder.parent if folder.is_file() else folder
    record.read(folder)
    found = trained.opened(
        run_folder_of(folder) if run_folder is None else run.open_run(run_folder)
    )
    with scoring.process() as process:
        _prove(found, folder, process, as_json=as_json)
    if not as_json:
        console.answer(str(folder))


def run_folder_of(folder: Path) -> run.Run:
    """The run in whose folder an export lies.

    Raises: ExportError when it lies elsewhere.
    """
    for parent in folder.resolve().parents:
        if (parent / "manifest.json").is_file() and (parent / "recipe.yaml").is_file():
            return run.open_run(parent)
    raise ExportError(
        "lies in no run folder, and is checked against the run that it was made from",
        where=str(folder),
        hint="pass --run with the run's folder",
    )


def push_export(path: Path, repository: str, *, private: bool, unverified: bool) -> None:
    """Upload an export to the Hugging Face Hub; prints its address."""
    with console.byte_bar(f"uploading to {repository}") as progress:
        url = push.push(path, repository, private=private, unverified=unverified, progress=progress)
    console.answer(url)


def _tell_ollama(out: Path) -> None:
    made = record.read(out)
    if made.kind == "gguf":
        name = next(iter(made.files)).removesuffix(".gguf")
        console.note(f"ollama create {name} -f {shlex.quote(str(out / ollama.NAME))}")


def _one_of(value: str, known: Sequence[str], option: str) -> str:
    if value not in known:
        raise ExportError(
            f"{value} is not offered", where=option, hint=f"one of {', '.join(known)}"
        )
    return value
