"""Runs the stage over many batches, in worker processes where the data is large.  In order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from fastsft.data.stage import Chunk, Settings, Stage, Task
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError

Run = Callable[[Iterable[Task]], Iterator[Chunk]]

SMALL_BYTES = 3 * 2**20
"""Below this, starting processes takes longer than the work.  Source: measured, 2 cores."""
MOST_WORKERS = 16
AHEAD = 3
"""Batches in flight for each worker; with the batches' own bound, what bounds the memory."""


def workers_for(size: int) -> int:
    """Worker processes for so many bytes of input; 0 is none, the work is done here."""
    return 0 if size < SMALL_BYTES else min(os.cpu_count() or 1, MOST_WORKERS)


@contextmanager
def stages(settings: Settings, tokenizer: ChatTokenizer, workers: int) -> Iterator[Run]:
    """What turns tasks into chunks, in the tasks' order, reading ahead no further than it must."""
    if workers == 0:
        stage = Stage(settings, tokenizer)
        yield lambda tasks: map(stage, tasks)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(settings,),
    )
    try:
        yield lambda tasks: _in_order(pool, tasks, workers * AHEAD)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, tasks: Iterable[Task], ahead: int) -> Iterator[Chunk]:
    waiting: deque[Future[Chunk]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_work, task))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died while it prepared rows",
            hint="the machine may be out of memory: close other programs and try again",
        ) from error


_stage: Stage


def _begin(settings: Settings) -> None:
    """A worker's start: leaves Ctrl-C to the parent, ends with it, and loads the tokenizer."""
    global _stage
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _stage = Stage(settings)
    _stage.tokenizer.quicken()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Task) -> Chunk:
    return _stage(task)
