"""What an export will take of the disk and the memory, told and refused before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastsft.errors import ExportError
from fastsft.export.staging import require_space
from fastsft.scoring import memory_free

_GIB = 1024**3


@dataclass(frozen=True)
class Step:
    """One step: the bytes that it adds to the disk, and the memory that it holds at once.

    `is_kept` says whether its files are still there at the end.
    """

    name: str
    disk_bytes: int
    ram_bytes: int
    is_kept: bool = True

    def __str__(self) -> str:
        for_a_while = "" if self.is_kept else " for a while"
        disk, ram = self.disk_bytes / _GIB, self.ram_bytes / _GIB
        return f"{self.name}: {disk:.2f} GiB on disk{for_a_while}, {ram:.1f} GiB of memory"


def require(folder: Path, steps: Sequence[Step]) -> None:
    """Raises: ExportError when the steps, one after the other, do not fit disk and memory.

    Nothing that a step writes is freed before the last is done, so the disk needs their sum.
    """
    require_space(folder, sum(step.disk_bytes for step in steps))
    available = memory_free()
    for step in steps:
        if step.ram_bytes > available:
            raise ExportError(
                f"{step.name} needs {step.ram_bytes / _GIB:.1f} GiB of memory, "
                f"{available / _GIB:.1f} GiB are available",
                where="export",
                hint="close other programs, or export on a machine with more memory",
            )
