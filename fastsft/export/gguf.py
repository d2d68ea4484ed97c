"""Writes base and adapter as GGUF files of several types in one pass over the base.

No merged copy, no f16 intermediate, no torch; the memory taken does not grow with the model.
What a merged weight is, to the bit, is said in `blocks`; how it is stored, in `ggml`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, Keys

from fastsft.errors import ExportError
from fastsft.export import architecture as architectures
from fastsft.export import ggml, sidecars, stream
from fastsft.export.architecture import Architecture
from fastsft.export.blocks import Block, Kernel, Values, blocks, overflow
from fastsft.export.ggml import FileType, Stored
from fastsft.export.gguf_file import Layout, Part, Value, laid_out, padded, writer_of
from fastsft.export.plan import HEAD, Output, plan
from fastsft.export.rounding import Scratch
from fastsft.weights import Reader

Progress = Callable[[int, int], None]

_ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufReport:
    """What was written; the counts are of tensors of the model, `notes` are for the user."""

    files: Mapping[str, Path]  # by type; one named lora where it is an adapter
    tensors: int
    merged_tensors: int
    unchanged_tensors: int  # LoRA targets whose stored values came out as the base's in some file
    bytes_written: int  # weights only, all files
    seconds: float
    max_abs_delta: float
    notes: tuple[str, ...]


def write(
    base: Path,
    adapter: Path,
    targets: Mapping[FileType, Path],
    *,
    vocabulary: Part,
    general: Mapping[str, Value],
    progress: Progress | None = None,
) -> GgufReport:
    """Writes `adapter` merged into `base` to each of `targets`; all are on the disk at the end.

    `adapter` may be a whole model, where every weight was trained.  `general` are further keys
    of the file's head.  `progress` hears the weights' bytes, done and in all.

    Raises: ExportError when llama.cpp could not run the model as it was trained or something
    does not fit, before a byte is written where it can be known before.  A failure removes
    what it wrote.
    """
    started = time.monotonic()
    model = _model(base, adapter)
    stored = [model.stored(file_type) for file_type in targets]
    writers = [
        _writer(path, file_type, model.architecture, vocabulary, general)
        for file_type, path in targets.items()
    ]
    total = sum(tensor.nbytes for tensors in stored for tensor in tensors)
    with laid_out(writers, stored) as files, Reader() as reader, stream.opened() as threads:
        job = _Pass(model, files, Kernel(reader), {layout.path: set() for layout in files})
        job.write_rope_freqs()
        threads.run([layout.file for layout in files], job.jobs(reader), _counted(progress, total))
        job.check()
    return _report(model, targets, job, total, time.monotonic() - started)


def sizes(base: Path, adapter: Path, types: Iterable[FileType]) -> dict[FileType, int]:
    """Bytes that each file's weights take; its vocabulary adds some megabytes.

    Raises: ExportError as `write` does for what cannot be exported.
    """
    model = _model(base, adapter)
    return {name: sum(padded(tensor.nbytes) for tensor in model.stored(name)) for name in types}


@dataclass(frozen=True)
class _Model:
    """Everything that will be written, decided before anything is."""

    architecture: Architecture
    outputs: tuple[Output, ...]
    notes: tuple[str, ...]

    def stored(self, file_type: FileType) -> list[Stored]:
        """The tensors of a file of this type, in their order."""
        found = [
            Stored(
                self.architecture.gguf_name(output.name),
                ggml.encoding(file_type, output.shape),
                output.shape,
            )
            for output in self.outputs
        ]
        factors = self.architecture.rope.factors
        extra = [] if factors is None else [Stored(_ROPE_FREQS, "F32", factors.shape)]
        return extra + found


def _model(base: Path, adapter: Path) -> _Model:
    config = sidecars.config(base)
    architecture = architectures.read(config)
    planned = plan(base, adapter, config, "F32")
    tied = config.get("tie_word_embeddings") is True and not planned.untied
    left_out = [o.name for o in planned.outputs if architectures.is_recomputed(o.name)]
    left_out += [HEAD for o in planned.outputs if tied and o.name == HEAD]
    outputs = tuple(o for o in planned.outputs if o.name not in left_out)
    architectures.check_tensors(architecture, {o.name: o.shape for o in outputs}, tied=tied)
    notes = (f"{name} is left out: it is made from others" for name in left_out)
    return _Model(architecture, outputs, (*architecture.notes, *notes))


def _writer(
    path: Path,
    file_type: FileType,
    architecture: Architecture,
    vocabulary: Part,
    general: Mapping[str, Value],
) -> GGUFWriter:
    """Raises: ExportError when the vocabulary has another size than the embedding."""
    writer = writer_of(path, architecture.name, general)
    architecture.add_to(writer)
    writer.add_file_type(ggml.LLAMA_FILE_TYPES[file_type])
    writer.add_quantization_version(ggml.QUANTIZATION_VERSION)
    vocabulary.add_to(writer)
    tokens = len(writer.kv_data[0][Keys.Tokenizer.LIST].value)
    if tokens != architecture.vocabulary:
        raise ExportError(
            f"the vocabulary has {tokens} tokens, the embedding {architecture.vocabulary} rows",
            where=str(path),
            hint="export with the tokenizer that was trained",
        )
    return writer


def _counted(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def wrote(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    return wrote


@dataclass(frozen=True)
class _Pass:
    """One pass over the base that fills every file; `changed` are LoRA targets by file."""

    model: _Model
    files: Sequence[Layout]
    kernel: Kernel
    changed: Mapping[Path, set[str]] = field(repr=False)

    def write_rope_freqs(self) -> None:
        """Writes what is no tensor of the base."""
        factors = self.model.architecture.rope.factors
        for layout in self.files if factors is not None else ():
            raw = np.ascontiguousarray(factors, "<f4").view(np.uint8)
            stream.write_at(layout.file, raw.data, layout.starts[_ROPE_FREQS])

    def jobs(self, reader: Reader) -> Iterator[stream.Job]:
        """A job for each block of the base's tensors."""
        for output in self.model.outputs:
            head_rows = self.model.architecture.head_rows(output.name)
            for block in blocks(output, reader, unit_rows=max(1, head_rows)):
                yield partial(self._one, block, head_rows)

    def check(self) -> None:
        """Raises ExportError when the adapter left no trace in a file."""
        if not any(output.delta for output in self.model.outputs):
            return
        for path, changed in self.changed.items():
            if not changed:
                raise ExportError(
                    "the adapter changes nothing: the largest delta is"
                    f" {self.kernel.max_abs_delta:g}",
                    where=path.name,
                    hint="check that training took a step; a delta this small needs type f32",
                )

    def _one(self, block: Block, head_rows: int) -> int:
        values = _turned(self.kernel.values(block), block, head_rows, self.kernel.scratch)
        return sum(self._store(layout, block, values) for layout in self.files)

    def _store(self, layout: Layout, block: Block, values: Values) -> int:
        output, scratch = block.output, self.kernel.scratch
        name = self.model.architecture.gguf_name(output.name)
        encoding = layout.encodings[name]
        raw = ggml.encode(values.merged, encoding, scratch)
        if not ggml.fits(raw, encoding, scratch):
            raise overflow(output.name, encoding)
        changed = self.changed[layout.path]
        if output.delta is not None and output.name not in changed:
            unmerged = ggml.encode(values.base, encoding, Scratch())
            if not ggml.same(raw, unmerged, encoding):
                changed.add(output.name)
        at = layout.starts[name] + ggml.encoded_bytes(encoding, block.first)
        stream.write_at(layout.file, raw.data, at)
        return raw.size


def _turned(values: Values, block: Block, head_rows: int, scratch: Scratch) -> Values:
    """The values with each head's two halves of rows interleaved; unchanged for 0 rows."""
    if not head_rows:
        return values
    width = block.output.source.row_length
    base = scratch.take("turned base", block.count, np.float32)
    ggml.interleave(values.base, head_rows, width=width, out=base)
    if values.merged is values.base:
        return Values(base, base)
    merged = scratch.take("turned merged", block.count, np.float64)
    ggml.interleave(values.merged, head_rows, width=width, out=merged)
    return Values(base, merged)


def _report(
    model: _Model, targets: Mapping[FileType, Path], job: _Pass, total: int, seconds: float
) -> GgufReport:
    merged = {output.name for output in model.outputs if output.delta}
    changed = set.intersection(*job.changed.values()) if job.changed else set()
    return GgufReport(
        files={str(name): path for name, path in targets.items()},
        tensors=len(model.outputs),
        merged_tensors=len(merged),
        unchanged_tensors=len(merged - changed),
        bytes_written=total,
        seconds=seconds,
        max_abs_delta=job.kernel.max_abs_delta,
        notes=(*model.notes, *_fallback_notes(job.files)),
    )


def _fallback_notes(files: Sequence[Layout]) -> Iterator[str]:
    for layout in files:
        kinds = set(layout.encodings.values())
        count = sum(kind == "F16" for kind in layout.encodings.values())
        if "Q8_0" in kinds and count:
            yield (
                f"{layout.path.name}: {count} tensors have rows that are no multiple of"
                f" {ggml.Q8_VALUES} and are f16"
            )
