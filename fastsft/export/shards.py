"""Writes tensors into safetensors files from several threads, syncing as it goes."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastsft.export.blocks import Block, Kernel, blocks
from fastsft.export.plan import Output
from fastsft.export.staging import write_file
from fastsft.export.stream import Job, Stream, write_at
from fastsft.weights import INDEX, ITEM_BYTES, SINGLE, Reader, header


@dataclass(frozen=True)
class Shard:
    """One file's name, and its outputs in the order of their bytes."""

    name: str
    outputs: tuple[Output, ...]


def split(outputs: Sequence[Output], max_bytes: int) -> list[Shard]:
    """The outputs in as few files as their order allows; a tensor is never cut in two."""
    groups: list[list[Output]] = [[]]
    room = max_bytes
    for output in outputs:
        if groups[-1] and output.nbytes > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(output)
        room -= output.nbytes
    many = len(groups)
    names = [f"model-{i:05}-of-{many:05}.safetensors" for i in range(1, many + 1)]
    names = names if many > 1 else [SINGLE]
    return [Shard(name, _aligned(group)) for name, group in zip(names, groups, strict=True)]


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """The index that goes with several shards; nothing for one."""
    if len(shards) == 1:
        return
    index = {
        "metadata": {"total_size": sum(o.nbytes for s in shards for o in s.outputs)},
        "weight_map": {o.name: s.name for s in shards for o in s.outputs},
    }
    write_file(folder / INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())


@dataclass(frozen=True)
class Writer:
    """Fills files block by block."""

    reader: Reader
    kernel: Kernel
    stream: Stream
    wrote: Callable[[int], None]

    def write(self, path: Path, outputs: Sequence[Output]) -> None:
        """Writes one file; all of it is on the disk when this returns.

        `wrote` hears the bytes of each block, in their order, on this thread.
        """
        head = header((o.name, o.dtype, o.shape) for o in outputs)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            write_at(file, memoryview(head), 0)
            self.stream.run([file], self._jobs(file, outputs, len(head)), self.wrote)
        finally:
            os.close(file)

    def _jobs(self, file: int, outputs: Sequence[Output], start: int) -> Iterator[Job]:
        for output in outputs:
            for block in blocks(output, self.reader):
                yield partial(self._one, file, block, start + block.first * _width(output))
            start += output.nbytes

    def _one(self, file: int, block: Block, at: int) -> int:
        raw = self.kernel(block)
        write_at(file, raw.data, at)
        return raw.size


def _width(output: Output) -> int:
    return ITEM_BYTES[output.dtype]


def _aligned(outputs: Sequence[Output]) -> tuple[Output, ...]:
    """Wider types first, as safetensors itself does, so that each starts on its own boundary."""
    return tuple(sorted(outputs, key=lambda output: -ITEM_BYTES[output.dtype]))
