"""What a row says of the machine and of the software.  Asks, changes nothing."""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

import fastsft
from fastsft import hardware, start
from fastsft.bench.row import CpuFacts, GpuFacts

PACKAGES = (*start.STACK, "triton", "numpy", "safetensors")
BUSY_SHARE = 0.1
"""Of the machine's processors in others' hands, above which a CPU row says so."""


def gpu(nvml: Any = None) -> GpuFacts | None:
    """The GPU that training will use; None where there is none.  `nvml`: pynvml by default."""
    found = hardware.gpu(nvml)
    if found is None:
        return None
    asked = import_module("pynvml") if nvml is None else nvml
    milliwatts = _told(asked, "nvmlDeviceGetEnforcedPowerLimit")
    generation = _told(asked, "nvmlDeviceGetMaxPcieLinkGeneration")
    width = _told(asked, "nvmlDeviceGetMaxPcieLinkWidth")
    return GpuFacts(
        name=found.name,
        memory_bytes=found.memory_bytes,
        driver=found.driver,
        compute_capability=found.compute_capability,
        power_limit_w=None if milliwatts is None else milliwatts / 1000,
        sm_clock_max_mhz=_told(asked, "nvmlDeviceGetMaxClockInfo", asked.NVML_CLOCK_SM),
        pcie=None if generation is None or width is None else f"{generation} x{width}",
    )


def _told(nvml: Any, name: str, *arguments: Any) -> int | None:
    """What NVML says of the GPU; None where the card or the driver does not tell."""
    try:
        return int(getattr(nvml, name)(hardware.handle(nvml), *arguments))
    except Exception:  # a figure less in the record
        return None


def cpu() -> CpuFacts:
    """The processor's name, the cores that this process may use, the machine's memory."""
    return CpuFacts(
        name=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        ram_bytes=psutil.virtual_memory().total,
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.machine()


def system() -> str:
    """Kernel and release; on WSL the release says so."""
    return f"{platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """The packages that training depends on, those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the clone that fastsft runs from, `+` behind it where files are changed."""
    clone = Path(fastsft.__file__).parent.parent
    if not (clone / ".git").exists() or shutil.which("git") is None:
        return None
    try:
        name = _git(clone, "rev-parse", "HEAD")
        return f"{name}+" if _git(clone, "status", "--porcelain", "--", "fastsft") else name
    except (OSError, subprocess.SubprocessError):
        return None


def _git(clone: Path, *words: str) -> str:
    command = ["git", "-C", str(clone), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


@dataclass(frozen=True)
class Load:
    """Seconds of processor time so far: the machine's, and this process's and its children's."""

    time_s: float
    machine_s: float
    own_s: float

    @classmethod
    def now(cls) -> "Load":
        """As it stands; a child counts once it is gone."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts a guest's time within user and nice.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(
            time.monotonic(),
            sum(times) - idle - guests,
            sum(used.ru_utime + used.ru_stime for used in own),
        )


def others_share(before: Load, after: Load) -> float:
    """The part of all processors that other processes took in between, 0 to 1."""
    room = (after.time_s - before.time_s) * (os.cpu_count() or 1)
    others = (after.machine_s - before.machine_s) - (after.own_s - before.own_s)
    return min(max(others / room, 0.0), 1.0) if room > 0 else 0.0
