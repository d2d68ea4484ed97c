"""Looks at the machine: versions against the pins, GPU and driver, what is missing and its cure."""

import importlib.metadata
import os
import re
import shutil
import sys
from dataclasses import dataclass
from typing import Literal

from fastsft import __version__, hardware
from fastsft.export import llamacpp, quantize

State = Literal["ok", "warn", "bad"]
SYNC = "uv sync"
LICENCES = {
    "unsloth": "unsloth: Apache-2.0 with AGPL-3.0 and LGPL files; "
    "loaded only in the training child",
    "unsloth_zoo": "unsloth_zoo: LGPL-3.0-or-later with AGPL-3.0 files; "
    "loaded only in the training child",
    "reference": "engine reference (transformers, peft, trl, bitsandbytes): Apache-2.0 and MIT; "
    "never loads Unsloth",
    "llama.cpp": "llama-cpp-python with llama.cpp: MIT; an extra, loaded only in export's children",
    "fastsft": "fastsft: Apache-2.0",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `cure` is what to type where it is not ok."""

    name: str
    state: State
    what: str
    cure: str = ""


def examine() -> list[Finding]:
    """Every finding, in the order in which to read them."""
    return [_python(), *_packages(), _llama_cpp(), _gpu(), _disk()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    is_ok = (3, 11) <= sys.version_info[:2] < (3, 14)
    cure = "" if is_ok else "uv python install 3.12"
    return Finding("python", "ok" if is_ok else "bad", version, cure)


def _packages() -> list[Finding]:
    """Each pinned or required package of fastsft's own metadata."""
    try:
        required = importlib.metadata.requires("fastsft") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("fastsft", "bad", f"{__version__}, not installed", SYNC)]
    return [_package(line) for line in required if "extra ==" not in line]


def _package(requirement: str) -> Finding:
    wanted = requirement.split(";")[0].strip()
    name = re.split(r"[<>=!~ ]", wanted, maxsplit=1)[0]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "bad", f"missing, wants {wanted}", SYNC)
    is_ok = _satisfies(version, wanted.removeprefix(name))
    told = version if is_ok else f"{version}, tested with {wanted.removeprefix(name).strip()}"
    return Finding(name, "ok" if is_ok else "bad", told, "" if is_ok else SYNC)


def _satisfies(version: str, bounds: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(bounds).contains(version, prereleases=True)


def _llama_cpp() -> Finding:
    """The extra for K-quants and for the gate's look through llama.cpp; f16 and q8_0 need none."""
    version = llamacpp.installed()
    if version == llamacpp.VERSION:
        return Finding(llamacpp.PACKAGE, "ok", version)
    if version:
        told = f"{version}, tested with {llamacpp.VERSION}"
    elif found := quantize.available():
        told = f"none; {found.program} makes K-quants, GGUF files are checked without llama.cpp"
    else:
        told = "none; no K-quants, and GGUF files are checked without llama.cpp"
    return Finding(llamacpp.PACKAGE, "warn", told, llamacpp.INSTALL)


def _gpu() -> Finding:
    gpu = hardware.gpu()
    if gpu is not None:
        told = (
            f"{gpu.name}, {hardware.gib(gpu.memory_bytes)} ({hardware.gib(gpu.free_bytes)} free), "
            f"driver {gpu.driver}, compute capability {gpu.compute_capability}"
        )
        if float(gpu.compute_capability) < 7.0:
            return Finding("gpu", "bad", told, "a GPU of compute capability 7.0 or later")
        if int(gpu.driver.split(".")[0]) < 570:
            return Finding("gpu", "bad", told, "a driver of 570 or later (CUDA 12.8)")
        return Finding("gpu", "ok", told)
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return Finding(
            "gpu", "warn", "hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES"
        )
    if shutil.which("nvidia-smi"):
        return Finding(
            "gpu", "bad", "the driver does not answer", "reboot, or reinstall the driver"
        )
    return Finding("gpu", "warn", "none; tiny recipes train on the CPU", "install NVIDIA's driver")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    is_ok = free > 20 * 2**30
    cure = "" if is_ok else "a 7B run with its export needs about 35 GiB: free some space"
    return Finding("disk", "ok" if is_ok else "warn", f"{hardware.gib(free)} free here", cure)
