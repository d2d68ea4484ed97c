"""Watches another process from outside: its memory, and its GPU's state.  Costs it nothing.

What cannot be known is None.  The GPU's side comes from NVML through `pynvml`.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from fastsft.hardware import handle

EVERY_S = 0.05
CLOCKS_EVERY, CHILDREN_EVERY = 10, 40
"""In looks: what changes slowly, or is dear to ask (psutil goes through every process)."""
MOST_SAMPLES = 4096
PAGE = os.sysconf("SC_PAGE_SIZE")
THROTTLE = {
    0x2: "applications clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal, software",
    0x40: "thermal, hardware",
    0x80: "power brake",
    0x100: "display clocks",
}
"""Source: nvml.h, nvmlClocksEventReason.  0x1 says that the GPU is idle, which is no throttling."""
IDLE = 0x1


def throttle_names(bits: int) -> tuple[str, ...]:
    """The reasons for which a GPU's clocks are lower than they could be."""
    return tuple(name for bit, name in THROTTLE.items() if bits & bit)


@dataclass(frozen=True)
class Sample:
    """One look at a process; memory in bytes, `time_s` since 1970.

    `host_rss_bytes`: of the process and its children, mapped files included, and pages that
    several share counted for each; `throttle`: NVML's reasons, 0 for none; `others`: other
    processes that compute on the GPU.  What nobody tells is None, never 0.
    """

    time_s: float
    host_rss_bytes: int | None = None
    process_vram_bytes: int | None = None
    device_vram_bytes: int | None = None
    power_w: float | None = None
    sm_clock_mhz: int | None = None
    temperature_c: int | None = None
    throttle: int | None = None
    others: int | None = None


@dataclass(frozen=True)
class Peaks:
    """The most of all that was seen, the mean power, and the clock's lowest and highest.

    `is_vram_by_difference`: the driver did not tell this process's memory (in a container it may
    know other process ids), and `process_vram_bytes` is what the device had in use beyond what
    it had at the start; whoever else came to the GPU is in it.  `throttle`: all reasons seen.
    """

    host_rss_bytes: int | None = None
    process_vram_bytes: int | None = None
    device_vram_bytes: int | None = None
    mean_power_w: float | None = None
    sm_clock_mhz: tuple[int, int] | None = None
    temperature_c: int | None = None
    throttle: int | None = None
    others: int | None = None
    is_vram_by_difference: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For the manifest, where memory is named a peak."""
        return {key.replace("_bytes", "_peak_bytes"): value for key, value in asdict(self).items()}


STOP_S = 5.0


class Sampler:
    """Looks at a process every `every_s` seconds, in a thread, until it is stopped.

    `samples` are thinned evenly once they are many; `peaks` are of all that was seen.
    """

    def __init__(self, *, every_s: float = EVERY_S, nvml: Any = None) -> None:
        """`nvml`: a module like `pynvml`, which is loaded where none is given."""
        self.every_s, self._nvml = every_s, nvml
        self.samples: list[Sample] = []
        self.cpu_s = 0.0
        """What watching has cost this process."""
        self._seen, self._keep_every = _Seen(), 1
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, pid: int) -> None:
        """Begin to watch a process and its children; once for each sampler."""
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; a second time does nothing."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(STOP_S)  # a driver that hangs does not hold the run

    @contextmanager
    def watching(self, pid: int) -> Iterator["Sampler"]:
        """Watch a process while this lasts."""
        self.start(pid)
        try:
            yield self
        finally:
            self.stop()

    def peaks(self) -> Peaks:
        """The most of all that was seen so far."""
        return self._seen.peaks()

    def _watch(self, pid: int) -> None:
        tree, gpu = _Tree(pid), _gpu(self._nvml)
        try:
            self._look_until_over(tree, gpu)
        finally:
            tree.close()

    def _look_until_over(self, tree: "_Tree", gpu: "_Gpu | None") -> None:
        while True:
            if self._seen.count % CHILDREN_EVERY == 0:
                tree.look_for_children()
            if gpu is not None and self._seen.count % CLOCKS_EVERY == 0:
                gpu.look_at_clocks()
            sample = Sample(time.time(), host_rss_bytes=tree.rss_bytes())
            if gpu is not None:
                sample = gpu.completed(sample, tree.pids)
            self._keep(sample, is_told=None if gpu is None else gpu.is_told)
            self.cpu_s = time.thread_time()
            if self._over.wait(self.every_s):
                return

    def _keep(self, sample: Sample, *, is_told: bool | None) -> None:
        if self._seen.count % self._keep_every == 0:
            self.samples.append(sample)
        self._seen.add(sample, is_told=is_told)
        if len(self.samples) > MOST_SAMPLES:
            self.samples = self.samples[::2]
            self._keep_every *= 2


class _Seen:
    """All that was seen, summed up."""

    def __init__(self) -> None:
        self.count = 0
        self._peaks = Peaks()
        self._power_w, self._powers = 0.0, 0
        self._is_told: bool | None = None

    def add(self, sample: Sample, *, is_told: bool | None) -> None:
        """`is_told`: whether the driver tells the process's memory; None without a driver."""
        self.count += 1
        if is_told and not self._is_told:  # what came before was by difference
            self._peaks = replace(self._peaks, process_vram_bytes=None)
        self._is_told = is_told
        if sample.power_w is not None:
            self._power_w, self._powers = self._power_w + sample.power_w, self._powers + 1
        self._peaks = _higher(self._peaks, sample)

    def peaks(self) -> Peaks:
        """The most of everything."""
        power_w = self._power_w / self._powers if self._powers else None
        return replace(
            self._peaks,
            mean_power_w=power_w,
            is_vram_by_difference=self._is_told is False
            and self._peaks.process_vram_bytes is not None,
        )


def _higher(peaks: Peaks, sample: Sample) -> Peaks:
    clock, clocks = sample.sm_clock_mhz, peaks.sm_clock_mhz
    if clock is not None:
        low, high = clocks or (clock, clock)
        clocks = (min(low, clock), max(high, clock))
    return replace(
        peaks,
        host_rss_bytes=_most(peaks.host_rss_bytes, sample.host_rss_bytes),
        process_vram_bytes=_most(peaks.process_vram_bytes, sample.process_vram_bytes),
        device_vram_bytes=_most(peaks.device_vram_bytes, sample.device_vram_bytes),
        sm_clock_mhz=clocks,
        temperature_c=_most(peaks.temperature_c, sample.temperature_c),
        throttle=either(peaks.throttle, sample.throttle),
        others=_most(peaks.others, sample.others),
    )


def either(one: int | None, other: int | None) -> int | None:
    """The bits of both; None where neither is known."""
    return None if one is None and other is None else (one or 0) | (other or 0)


def _most(one: int | None, other: int | None) -> int | None:
    return max((count for count in (one, other) if count is not None), default=None)


class _Tree:
    """A process and its children."""

    def __init__(self, pid: int) -> None:
        self._memory: dict[int, BinaryIO] = {}
        self._root: Any = None
        with suppress(psutil.Error):  # gone already
            self._root = psutil.Process(pid)
            self._hold({pid})

    @property
    def pids(self) -> set[int]:
        return set(self._memory)

    def look_for_children(self) -> None:
        """Find who belongs to it now; goes through every process of the machine."""
        if self._root is not None:
            with suppress(psutil.Error):
                found = self._root.children(recursive=True)
                self._hold({self._root.pid, *(child.pid for child in found)})

    def _hold(self, pids: set[int]) -> None:
        """Keep a file open for each, which a look then only reads again: 1 us, psutil's 17."""
        for gone in self.pids - pids:
            self._memory.pop(gone).close()
        for pid in pids - self.pids:
            with suppress(OSError):
                self._memory[pid] = Path(f"/proc/{pid}/statm").open("rb", buffering=0)  # noqa: SIM115  closed above

    def rss_bytes(self) -> int | None:
        """Their resident memory; None when all are gone."""
        return sum(map(_rss, self._memory.values())) or None

    def close(self) -> None:
        """Let go of them."""
        self._hold(set())


def _rss(statm: BinaryIO) -> int:
    """Source: proc(5), field 2 of /proc/pid/statm, in pages."""
    try:
        statm.seek(0)
        return int(statm.read().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0  # gone


class _Gpu:
    """The first GPU that the child sees, asked through NVML."""

    def __init__(self, nvml: Any) -> None:
        """Raises whatever NVML does where there is no driver or no GPU."""
        self._nvml = nvml
        nvml.nvmlInit()
        self._handle = handle(nvml)
        if self._handle is None:
            raise LookupError("every GPU is hidden")
        self._before = self._used() or 0
        self._others_before = len(self._computing() or [])
        self._clocks: dict[str, Any] = {}
        self.is_told = False

    def look_at_clocks(self) -> None:
        """Note what changes slowly, for the samples that follow."""
        nvml = self._nvml
        reasons = self._asked("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # a driver before 535 knows the old name only
            reasons = self._asked("nvmlDeviceGetCurrentClocksThrottleReasons")
        self._clocks = {
            "sm_clock_mhz": self._asked("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "temperature_c": self._asked("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            "throttle": None if reasons is None else int(reasons) & ~IDLE,
        }

    def completed(self, sample: Sample, pids: set[int]) -> Sample:
        """The sample with the GPU's side of these processes."""
        used, milliwatts = self._used(), self._asked("nvmlDeviceGetPowerUsage")
        ours, others = self._process(pids, used)
        return replace(
            sample,
            process_vram_bytes=ours,
            device_vram_bytes=used,
            power_w=None if milliwatts is None else milliwatts / 1000,
            others=others,
            **self._clocks,
        )

    def _process(self, pids: set[int], used: int | None) -> tuple[int | None, int | None]:
        """Bytes of these processes, and how many others compute here.

        A list on which nobody is, not even ours, tells of no others: drivers have such ones.
        """
        computing = self._computing() or []
        mine = [one.usedGpuMemory for one in computing if one.pid in pids]
        told = [int(count) for count in mine if count is not None]
        if told:
            self.is_told = True
            return sum(told), len(computing) - len(mine)
        by_difference = None if used is None else max(used - self._before, 0)
        # Not seen by its id: one of those that came since is it.
        came = max(len(computing) - max(len(mine), 1), 0)
        return by_difference, max(self._others_before, came) if computing else None

    def _computing(self) -> list[Any] | None:
        return self._asked("nvmlDeviceGetComputeRunningProcesses")  # type: ignore[no-any-return]

    def _used(self) -> int | None:
        """Bytes in use on the device, by whomever."""
        info = self._asked("nvmlDeviceGetMemoryInfo")
        return None if info is None else int(info.used)

    def _asked(self, name: str, *arguments: Any) -> Any:
        """What NVML answers; None where this card or driver does not tell."""
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError):
            return None


def _gpu(nvml: Any) -> _Gpu | None:
    """The GPU; None where there is no NVML, no driver or no card."""
    try:
        return _Gpu(import_module("pynvml") if nvml is None else nvml)
    except Exception:  # whatever NVML's trouble is, training does not hang on it
        return None
