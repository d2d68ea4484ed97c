"""Runs jobs that each write a block, several at a time, syncing the files as they fill up.

Knows nothing of what is written; the caller opens and closes the files.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from fastsft.export.blas import one_blas_thread

# Enough for the disk to be busy, little enough that the last sync is short.
_SYNC_BYTES = 128 * 1024**2
_MAX_WORKERS = 8

Job = Callable[[], int]
"""Writes something and returns its bytes."""


@dataclass(frozen=True)
class Stream:
    """Threads that compute and write, one that syncs, and how many jobs may wait for them."""

    pool: ThreadPoolExecutor
    syncer: ThreadPoolExecutor
    ahead: int

    def run(self, files: Sequence[int], jobs: Iterable[Job], wrote: Callable[[int], None]) -> None:
        """Runs the jobs; all that they wrote to `files` is on the disk when this returns.

        `wrote` hears each job's bytes, in the jobs' order, on this thread.
        """
        pending: deque[Future[int]] = deque()
        try:
            with _Sync(files, self.syncer) as sync:
                for job in jobs:
                    pending.append(self.pool.submit(job))
                    if len(pending) > self.ahead:
                        _finish(pending, sync, wrote)
                while pending:
                    _finish(pending, sync, wrote)
            for file in files:
                os.fsync(file)
        finally:  # nobody may write to a number that is free for another file
            for future in pending:
                future.cancel()
            wait(pending)


@contextmanager
def opened() -> Iterator[Stream]:
    """A stream with a thread for each core, as far as BLAS can be kept from starting its own."""
    workers = min(len(os.sched_getaffinity(0)), _MAX_WORKERS)
    with (
        one_blas_thread() as held,
        ThreadPoolExecutor(workers if held else 1) as pool,
        ThreadPoolExecutor(1) as syncer,
    ):
        yield Stream(pool, syncer, 4 * workers)


def write_at(file: int, data: memoryview, at: int) -> None:
    """Writes all of `data` from byte `at` of the file."""
    while data:
        wrote = os.pwrite(file, data, at)
        data, at = data[wrote:], at + wrote


def _finish(pending: deque[Future[int]], sync: "_Sync", wrote: Callable[[int], None]) -> None:
    nbytes = pending[0].result()
    pending.popleft()
    sync.after(nbytes)
    wrote(nbytes)


class _Sync:
    """Starts a sync of the files now and then, so that the disk works while we compute."""

    def __init__(self, files: Sequence[int], syncer: ThreadPoolExecutor) -> None:
        self._files, self._syncer = files, syncer
        self._running: Future[None] | None = None
        self._waiting = 0

    def after(self, nbytes: int) -> None:
        """Counts what was written.  Raises: OSError when the last sync failed."""
        self._waiting += nbytes
        if self._waiting < _SYNC_BYTES or (self._running and not self._running.done()):
            return
        self._join()
        self._running = self._syncer.submit(self._sync)
        self._waiting = 0

    def _sync(self) -> None:
        for file in self._files:
            os.fdatasync(file)

    def _join(self) -> None:
        if self._running:
            self._running.result()

    def __enter__(self) -> "_Sync":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self._join()
        elif self._running:
            wait([self._running])
