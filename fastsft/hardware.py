"""Which GPU is here, as its driver tells.  Never imports torch."""

import os
from dataclasses import asdict, dataclass
from importlib import import_module
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


def gpu(nvml: Any = None) -> Gpu | None:
    """The GPU that training will use: the first that CUDA shows; None when there is none.

    `nvml`: the module to ask, pynvml by default.
    """
    try:
        asked = import_module("pynvml") if nvml is None else nvml
        asked.nvmlInit()
        device = handle(asked)
        return None if device is None else _told(asked, device)
    except Exception:  # a driver that does not answer is no GPU for us; doctor says so
        return None


def handle(nvml: Any) -> Any:
    """NVML's handle of the first GPU that CUDA shows; None where CUDA_VISIBLE_DEVICES hides all.

    NVML counts in the order of the PCI bus, and so do our children (CUDA_DEVICE_ORDER, `launch`).
    Raises NVML's own error where there is no such GPU.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if shown is None else shown.split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    return nvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else None


def _told(nvml: Any, device: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(device)
    return Gpu(
        name=str(nvml.nvmlDeviceGetName(device)),
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        driver=str(nvml.nvmlSystemGetDriverVersion()),
        compute_capability=f"{major}.{minor}",
    )


def gib(count: float | None) -> str:
    """`15.2 GiB`, `6.6 MiB` below a tenth of one, or `n/a` for what is not known."""
    if count is None:
        return "n/a"
    return f"{count / 2**30:.1f} GiB" if count >= 0.1 * 2**30 else f"{count / 2**20:.1f} MiB"
