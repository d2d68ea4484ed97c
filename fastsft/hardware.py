"""Which GPU is here, as its driver tells.  Never imports torch."""

import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; memory in bytes."""

    name: str
    memory_bytes: int
    free_bytes: int
    driver: str
    compute_capability: str

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def gpu() -> Gpu | None:
    """The first GPU that `nvidia-smi` lists; None when there is none.

    Source: `nvidia-smi --help-query-gpu`; memory is given in MiB.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = "name,memory.total,memory.free,driver_version,compute_cap"
    command = [tool, f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        name, total, free, driver, capability = done.stdout.splitlines()[0].split(", ")
        return Gpu(name, int(total) * 2**20, int(free) * 2**20, driver, capability)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None  # a driver that does not answer is no GPU for us; doctor says so


def gib(count: float | None) -> str:
    """`15.2 GiB`, `6.6 MiB` below a tenth of one, or `n/a` for what is not known."""
    if count is None:
        return "n/a"
    return f"{count / 2**30:.1f} GiB" if count >= 0.1 * 2**30 else f"{count / 2**20:.1f} MiB"
