"""Asks this process, torch and the device: memory, compiled graphs, the speed of a matmul."""

import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastsft.errors import DeviceError

CUDA: Any = torch.cuda
"""Partly without types in torch 2.10."""
KINDS = ("allocated", "active", "reserved")


def process_age_s() -> float:
    """Seconds since the kernel started this process; 0 where it does not say.

    Both times count from the machine's boot, so that a clock that is set cannot come between.
    Source: proc(5), field 22 of /proc/pid/stat, in clock ticks.
    """
    try:
        told = Path("/proc/self/stat").read_text("utf-8", errors="replace")
        ticks = int(told.rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return max(age, 0.0)


def synchronize() -> None:
    """Wait for the GPU, where one is used."""
    if CUDA.is_initialized():
        torch.cuda.synchronize()


def vram_peaks() -> dict[str, int]:
    """Most bytes since the last reset, by what is counted (`meter.Peaks`); empty on a CPU."""
    if not CUDA.is_initialized():
        return {}
    stats = torch.cuda.memory_stats()
    return {kind: int(stats.get(f"{kind}_bytes.all.peak", 0)) for kind in KINDS}


def reset_vram_peaks() -> None:
    """Count peaks from what is in use now."""
    if CUDA.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def pinned_peak() -> int | None:
    """Most bytes of page-locked host memory that torch's allocator held; None on a CPU.

    Unsloth's buffers of offloaded activations are made with `pin_memory` and so are counted, as
    are pinned batches; bitsandbytes' paged optimizers use managed memory, and are not.
    Source: torch 2.10 `torch.cuda.host_memory_stats`.
    """
    if not CUDA.is_initialized():
        return None
    stats = torch.cuda.host_memory_stats()
    found = [stats.get(f"{kind}_bytes.peak") for kind in ("reserved", "allocated")]
    return max((int(count) for count in found if count is not None), default=None)


def graphs_compiled() -> int:
    """Graphs that torch.compile has made in this process, recompiled ones included.

    Dynamo's own counter; where nothing has imported dynamo, nothing was compiled.  Kernels that
    Triton compiles or tunes outside torch.compile are not among them.
    """
    utils = sys.modules.get("torch._dynamo.utils")
    stats = utils.counters.get("stats", {}) if utils is not None else {}
    return int(stats.get("unique_graphs", 0))


def adapter_norm(model: Any) -> float | None:
    """Euclidean norm of all B matrices together: zero until something is learnt; None of none."""
    found = [w.detach().float() for name, w in model.named_parameters() if ".lora_B." in name]
    if not found:
        return None
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(found))))


MATMUL_SIDES = (8192, 4096, 2048, 1024)
MATMUL_SHARE = 0.125
"""Of the free memory that the three matrices may take."""
MATMUL_SIDE_CPU = 512
MATMUL_WARMUP, MATMUL_TIMES = 2, 8
MATMUL_LONGEST_S = {"cpu": 0.04, "cuda": 0.5}


def matmul_flops_per_s(dtype: torch.dtype) -> float | None:
    """FLOP/s of a square matmul in this dtype, the median of several; None where it fails.

    Call it before the model is loaded: its buffers are given back, and no random number is drawn
    from torch's own generators.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        side = _side(dtype) if device == "cuda" else MATMUL_SIDE_CPU
        seconds = _matmul_s(side, dtype, device)
    except RuntimeError:  # out of memory, or no kernel for the dtype: then it is not known
        return None
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()
            reset_vram_peaks()  # its matrices are no part of training
    return 2 * side**3 / seconds


def _side(dtype: torch.dtype) -> int:
    free, _ = torch.cuda.mem_get_info()
    fitting = (n for n in MATMUL_SIDES if 3 * n * n * dtype.itemsize <= MATMUL_SHARE * free)
    return next(fitting, MATMUL_SIDES[-1])


def _matmul_s(side: int, dtype: torch.dtype, device: str) -> float:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(side, side, generator=generator, dtype=dtype, device=device) for _ in range(2)
    )
    out = torch.empty_like(a)
    once = _by_events if device == "cuda" else _by_clock
    for _ in range(MATMUL_WARMUP):
        once(a, b, out)
    times = [once(a, b, out)]
    while len(times) < MATMUL_TIMES and sum(times) < MATMUL_LONGEST_S[device]:
        times.append(once(a, b, out))
    return median(times)


def _by_events(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
    start, end = (CUDA.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.mm(a, b, out=out)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _by_clock(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.mm(a, b, out=out)
    return time.perf_counter() - began


def cap_vram(gib: float) -> None:
    """Let a large card stand in for one on which torch may hold `gib`.

    The driver's context, made here and measured, is taken from it as it is from that card's memory;
    what libraries take without torch later is on top.  torch's allocator refuses more; whoever asks
    how much is free is told what that card would say.
    Raises DeviceError where there is no GPU.
    """
    if not torch.cuda.is_available():
        raise DeviceError(
            "there is no GPU whose memory could be capped",
            where="--vram-cap",
            hint="leave it out on a CPU",
        )
    CUDA.init()
    free, total = torch.cuda.mem_get_info()
    card = min(int(gib * 2**30), total)
    room = card - (total - free)  # what is in use already is the context, on a card of our own
    torch.cuda.set_per_process_memory_fraction(max(room, 0) / total)
    _tell_less(card)


def _tell_less(card: int) -> None:
    """Unsloth sizes the chunks of its loss, and a second buffer, by what is free."""
    asked = torch.cuda.mem_get_info

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        free, total = asked(device)
        return max(card - (total - free), 0), card

    torch.cuda.mem_get_info = mem_get_info
