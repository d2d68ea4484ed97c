"""Keeps OpenBLAS to one thread while threads of ours call it.  Touches nothing else.

numpy has no call for this, and the environment variables are read before any import.
Two threads that both start OpenBLAS's own threads are slower than one: measured 95 million
weights merged a second against 205 on two cores.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Source: numpy 2 wheels prefix the names with scipy_ and end them with 64_; distributions do not.
_NAMES = [(prefix, end) for prefix in ("scipy_openblas", "openblas") for end in ("64_", "")]


@dataclass(frozen=True)
class _OpenBlas:
    """A loaded OpenBLAS: its two functions, whatever they are called there."""

    threads: Callable[[], int]
    set_threads: Callable[[int], None]


@contextmanager
def one_blas_thread() -> Iterator[bool]:
    """Holds every loaded OpenBLAS at one thread; False where none was found to hold."""
    before = [(library, library.threads()) for library in _loaded()]
    for library, _ in before:
        library.set_threads(1)
    try:
        yield bool(before)
    finally:
        for library, threads in before:
            library.set_threads(threads)


def _loaded() -> list[_OpenBlas]:
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    paths = sorted({line.split(maxsplit=5)[-1] for line in lines})
    found = [_bind(ctypes.CDLL(path)) for path in paths if "openblas" in Path(path).name]
    return [library for library in found if library]


def _bind(library: ctypes.CDLL) -> _OpenBlas | None:
    for prefix, end in _NAMES:
        getter = getattr(library, f"{prefix}_get_num_threads{end}", None)
        setter = getattr(library, f"{prefix}_set_num_threads{end}", None)
        if getter and setter:
            setter.restype = None
            return _OpenBlas(getter, setter)
    return None
