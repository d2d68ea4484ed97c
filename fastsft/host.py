"""How much memory the machine itself has for training.  Never imports torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
WSL_MARK = "microsoft"
"""In the kernel's name under WSL.  Source: `/proc/version` of Microsoft's WSL2 kernel."""


@dataclass(frozen=True)
class Host:
    """RAM that this process may use, in bytes: what is free now, and all of it."""

    available_bytes: int
    total_bytes: int
    is_wsl: bool


def here() -> Host:
    """This machine, as the kernel tells it; of a container what its limit leaves."""
    found = psutil.virtual_memory()
    free, total = int(found.available), int(found.total)
    for limit, used in limits(CGROUPS, Path("/proc/self/cgroup")):
        free, total = min(free, max(limit - used, 0)), min(total, limit)
    return Host(free, total, _is_wsl(Path("/proc/version")))


def limits(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Each limit on our memory, and how much of it is used beyond what can be given back.

    `own`: /proc/self/cgroup, which names our group under `root`; every group above may limit too.
    Source: the kernel's cgroup-v2.rst, `memory.max`, `memory.current`, `memory.stat`.
    """
    name = next((line for line in _lines(own) if line.startswith("0::")), "0::/")
    group = root / name.removeprefix("0::").strip("/")
    for folder in (group, *group.parents):
        limit = "".join(_lines(folder / "memory.max")[:1])
        used = "".join(_lines(folder / "memory.current")[:1])
        if limit.isdigit() and used.isdigit():
            yield int(limit), max(int(used) - _cached(folder / "memory.stat"), 0)
        if folder == root:
            return


def _cached(stat: Path) -> int:
    """Bytes of files that the kernel drops when memory is asked for."""
    found = (line.split() for line in _lines(stat))
    return sum(int(words[1]) for words in found if words[0] == "inactive_file")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _is_wsl(version: Path) -> bool:
    try:
        return WSL_MARK in version.read_text("utf-8").lower()
    except (OSError, UnicodeDecodeError):
        return False
