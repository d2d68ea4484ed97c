"""Makes the GGUF files of a finished run, with Modelfile, card and record.  Verifies nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from fastsft.errors import ExportError
from fastsft.export import (
    general,
    gguf,
    gguf_lora,
    ollama,
    quant_types,
    quantize,
    record,
    vocabulary,
)
from fastsft.export.estimate import Step
from fastsft.export.ggml import FileType
from fastsft.export.gguf import GgufReport
from fastsft.export.make import (
    MERGE_RAM,
    Order,
    adapter_sha256,
    base_of,
    base_steps,
    describe,
    require,
)
from fastsft.export.ollama import Modelfile
from fastsft.export.staging import disk_errors, refuse_existing, staged, write_file
from fastsft.export.trained import Trained
from fastsft.weights import Checkpoint

DIRECT: tuple[FileType, ...] = get_args(FileType)
"""Types that are written straight from base and adapter; the others come from llama.cpp."""


@dataclass(frozen=True)
class GgufMade:
    """What was written: files by their type, the pass over the base, what the user should know."""

    out: Path
    files: dict[str, Path]
    report: GgufReport
    notes: tuple[str, ...]


def gguf_files(
    trained: Trained, order: Order, *, quants: Sequence[str], imatrix: Path | None
) -> GgufMade:
    """The merged model as GGUF, once for each of `quants`, from one pass over the base.

    Files of other types that the same adapter was exported to stay in the folder.

    Raises: ExportError when a type is unknown or cannot be made here, or something does not
    fit, before a byte is written.
    """
    check(quants, imatrix=imatrix)
    direct, quantised = _sorted_out(quants)
    keep = _kept(trained, order, quants)
    words = vocabulary.of(trained)
    modelfile = ollama.modelfile(trained, gguf_name=file_name(trained, quants[0]))
    require(order, [*base_steps(trained, order), *_steps(trained, direct, quantised)])
    with disk_errors(order.out), staged(order.out, keep=keep) as staging:
        targets = {name: staging / file_name(trained, name) for name in direct}
        if quantised:
            targets["f16"] = _source(staging, trained, direct)
        with base_of(trained, order) as base, order.bar("writing") as progress:
            report = gguf.write(
                base,
                trained.adapter,
                targets,
                vocabulary=words,
                general=general.fields(trained, kind="model"),
                progress=progress,
            )
        notes = [*report.notes, *words.notes, *_told(modelfile)]
        source = _source(staging, trained, direct)
        for name in quantised:
            with order.bar(f"quantising to {name}") as progress:
                out = staging / file_name(trained, name)
                told = quantize.run(source, out, name, imatrix=imatrix, progress=progress)
                notes += [f"{name}: {note}" for note in told]
        if "f16" not in direct:
            source.unlink(missing_ok=True)
        _finish(staging, trained, order, quants, modelfile)
    files = {name: order.out / file_name(trained, name) for name in quants}
    return GgufMade(order.out, files, report, tuple(notes))


def file_name(trained: Trained, quant: str) -> str:
    """Such as `qwen2.5-7b-q4_k_m.gguf`."""
    return f"{general.model_name(trained)}-{quant}.gguf"


def check(quants: Sequence[str], *, imatrix: Path | None) -> None:
    """Raises: ExportError for types that nothing knows, or that cannot be made here."""
    for name in quants:
        if name not in DIRECT:
            quant_types.named(name)
    if len(set(quants)) < len(quants):
        raise ExportError("a type is named twice", where="--quant", hint="name each once")
    quantize.check(_sorted_out(quants)[1], imatrix=imatrix)


def _sorted_out(quants: Sequence[str]) -> tuple[tuple[FileType, ...], tuple[str, ...]]:
    """Types written directly, and types that llama.cpp makes."""
    direct = tuple(name for name in DIRECT if name in quants)
    return direct, tuple(name for name in quants if name not in DIRECT)


def _kept(trained: Trained, order: Order, quants: Sequence[str]) -> list[str]:
    """The files of `out` that stay beside the new ones.

    Raises: ExportError when `out` is something else, or has one of `quants` already.
    """
    if not order.out.exists():
        return []
    refuse_existing(order.out, overwrite=True, marks=(record.NAME,))
    before = record.read(order.out)
    if (before.kind, before.run) != ("gguf", trained.run.folder.name):
        raise ExportError(
            f"holds an export of another run or kind ({before.kind} of {before.run})",
            where=str(order.out),
            hint="pass --out with a new folder",
        )
    asked = {file_name(trained, quant) for quant in quants}
    there = sorted(asked & before.files.keys())
    if there and not order.overwrite:
        raise ExportError(
            f"has {', '.join(there)} already", where=str(order.out), hint="pass --overwrite"
        )
    now = (adapter_sha256(trained), trained.base.fingerprint, order.merge_base)
    if now != (before.adapter_sha256, before.base_fingerprint, before.merge_base):
        if order.overwrite:
            return []
        raise ExportError(
            "holds files of another adapter or way of merging",
            where=str(order.out),
            hint="pass --overwrite to replace them all, or --out with a new folder",
        )
    return [record.NAME, *sorted(before.files.keys() - asked)]


def _steps(trained: Trained, direct: Sequence[FileType], quantised: Sequence[str]) -> list[Step]:
    source: tuple[FileType, ...] = ("f16",) if quantised and "f16" not in direct else ()
    sizes = gguf.sizes(trained.base.folder, trained.adapter, (*direct, *source))
    steps = [
        Step(f"writing {name}", nbytes, MERGE_RAM, is_kept=name not in source)
        for name, nbytes in sizes.items()
    ]
    tensors = Checkpoint.open(trained.base.folder).tensors.values()
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    ram = quantize.ram_bytes(max(tensor.count for tensor in tensors))
    return steps + [
        Step(f"quantising to {name}", quantize.estimate(shapes, name), ram) for name in quantised
    ]


def _source(staging: Path, trained: Trained, direct: Sequence[FileType]) -> Path:
    """The f16 file that llama.cpp quantises; a passing one where f16 was not asked for."""
    return staging / (file_name(trained, "f16") if "f16" in direct else ".source-f16.gguf")


def _finish(
    staging: Path, trained: Trained, order: Order, quants: Sequence[str], modelfile: Modelfile
) -> None:
    """Writes everything beside the weights."""
    known = record.read(staging).files if (staging / record.NAME).exists() else {}
    kinds = {name: file.type for name, file in known.items()}
    kinds |= {file_name(trained, quant): quant for quant in quants}
    write_file(staging / ollama.NAME, modelfile.text.encode())
    describe(staging, trained, order, "gguf", kinds)


def _told(modelfile: Modelfile) -> tuple[str, ...]:
    return tuple(f"Ollama: {note}" for note in modelfile.notes)


def lora(trained: Trained, order: Order) -> GgufReport:
    """The adapter alone as GGUF, to load beside the base in llama.cpp and Ollama.

    Raises: ExportError when the format cannot say what the adapter does.
    """
    refuse_existing(order.out, overwrite=order.overwrite, marks=(record.NAME,))
    require(order, [Step("writing the adapter", _adapter_bytes(trained), MERGE_RAM)])
    name = f"{general.model_name(trained)}-lora.gguf"
    modelfile = ollama.modelfile(trained, gguf_name="BASE.gguf", adapter_name=name)
    with disk_errors(order.out), staged(order.out) as staging:
        report = gguf_lora.write(
            trained.base.folder,
            trained.adapter,
            staging / name,
            general=general.fields(trained, kind="adapter"),
        )
        write_file(staging / ollama.NAME, modelfile.text.encode())
        describe(staging, trained, order, "gguf-lora", {name: "lora"})
    return replace(report, notes=(*report.notes, *_told(modelfile)))


def _adapter_bytes(trained: Trained) -> int:
    return sum(path.stat().st_size for path in trained.adapter.glob("*.safetensors"))
