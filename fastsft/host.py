"""How much memory the machine itself has for training.  Never imports torch."""

from dataclasses import dataclass
from pathlib import Path

import psutil

WSL_MARK = "microsoft"
"""In the kernel's name under WSL.  Source: `/proc/version` of Microsoft's WSL2 kernel."""


@dataclass(frozen=True)
class Host:
    """The machine's RAM in bytes: what is free to use now, and all of it."""

    available_bytes: int
    total_bytes: int
    is_wsl: bool


def here() -> Host:
    """This machine, as the kernel tells it."""
    found = psutil.virtual_memory()
    return Host(int(found.available), int(found.total), _is_wsl(Path("/proc/version")))


def _is_wsl(version: Path) -> bool:
    try:
        return WSL_MARK in version.read_text("utf-8").lower()
    except (OSError, UnicodeDecodeError):
        return False
