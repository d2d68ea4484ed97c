"""Writes tensors into safetensors files from several threads, syncing as it goes."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from fastsft.export.blocks import Block, Kernel, blocks
from fastsft.export.plan import Output
from fastsft.export.staging import write_file
from fastsft.weights import INDEX, ITEM_BYTES, SINGLE, Reader, header

# Enough for the disk to be busy, little enough that the last sync is short.
_SYNC_BYTES = 128 * 1024**2


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
    """Fills files block by block: `pool` computes and writes, `syncer` brings it to the disk."""

    reader: Reader
    kernel: Kernel
    pool: ThreadPoolExecutor
    syncer: ThreadPoolExecutor
    ahead: int
    wrote: Callable[[int], None]

    def write(self, path: Path, outputs: Sequence[Output]) -> None:
        """Writes one file; all of it is on the disk when this returns.

        `wrote` hears the bytes of each block, in their order, on this thread.
        """
        head = header((o.name, o.dtype, o.shape) for o in outputs)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        pending: deque[Future[int]] = deque()
        try:
            _write_at(file, memoryview(head), 0)
            self._fill(file, outputs, len(head), pending)
            os.fsync(file)
        finally:  # nobody may write to a number that is free for another file
            for future in pending:
                future.cancel()
            wait(pending)
            os.close(file)

    def _fill(
        self, file: int, outputs: Sequence[Output], start: int, pending: deque[Future[int]]
    ) -> None:
        sync = _Sync(file, self.syncer)
        with sync:
            for block, at in self._placed(outputs, start):
                pending.append(self.pool.submit(self._one, file, block, at))
                if len(pending) > self.ahead:
                    self._finish(pending, sync)
            while pending:
                self._finish(pending, sync)

    def _finish(self, pending: deque[Future[int]], sync: "_Sync") -> None:
        nbytes = pending[0].result()
        pending.popleft()
        sync.after(nbytes)
        self.wrote(nbytes)

    def _placed(self, outputs: Sequence[Output], start: int) -> Iterator[tuple[Block, int]]:
        for output in outputs:
            for block in blocks(output, self.reader):
                yield block, start + block.first * ITEM_BYTES[output.dtype]
            start += output.nbytes

    def _one(self, file: int, block: Block, at: int) -> int:
        raw = self.kernel(block)
        _write_at(file, raw.data, at)
        return raw.size


class _Sync:
    """Starts a sync of the file now and then, so that the disk works while we compute."""

    def __init__(self, file: int, syncer: ThreadPoolExecutor) -> None:
        self._file, self._syncer = file, syncer
        self._running: Future[None] | None = None
        self._waiting = 0

    def after(self, nbytes: int) -> None:
        """Counts what was written.  Raises: OSError when the last sync failed."""
        self._waiting += nbytes
        if self._waiting < _SYNC_BYTES or (self._running and not self._running.done()):
            return
        self._join()
        self._running = self._syncer.submit(os.fdatasync, self._file)
        self._waiting = 0

    def _join(self) -> None:
        if self._running:
            self._running.result()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._join()
        elif self._running:
            wait([self._running])


def _write_at(file: int, data: memoryview, at: int) -> None:
    while data:
        wrote = os.pwrite(file, data, at)
        data, at = data[wrote:], at + wrote


def _aligned(outputs: Sequence[Output]) -> tuple[Output, ...]:
    """Wider types first, as safetensors itself does, so that each starts on its own boundary."""
    return tuple(sorted(outputs, key=lambda output: -ITEM_BYTES[output.dtype]))
