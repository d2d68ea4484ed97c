"""Another process is watched from outside: its memory, and the GPU as NVML would tell it."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastsft import events, launch, recipe_file, run, sampler
from fastsft.run import Run
from fastsft.sampler import Peaks, Sampler

MIB = 2**20


class Refused(Exception):
    """NVML's error."""


class Nvml:
    """A small NVML: one card, whose processes and memory are as each look is told.

    `looks`: for each, bytes in use on the device and (pid, bytes or None) of who computes there.
    """

    NVMLError = Refused
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, looks: Sequence[tuple[int, Sequence[tuple[int, int | None]]]]) -> None:
        self.looks, self.at, self.asked_for = list(looks), -1, ""
        self.reasons = 0x1
        self.refuses: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.refuses:
            raise Refused("not supported")
        return super().__getattribute__(name)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.asked_for = str(index)
        return "card"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked_for = uuid
        return "card"

    def nvmlDeviceGetMemoryInfo(self, card: str) -> Any:
        self.at += 1
        return SimpleNamespace(used=self._look[0])

    def nvmlDeviceGetComputeRunningProcesses(self, card: str) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self._look[1]]

    def nvmlDeviceGetPowerUsage(self, card: str) -> int:
        return 100_000 + 1000 * self.at

    def nvmlDeviceGetClockInfo(self, card: str, kind: int) -> int:
        return 2520

    def nvmlDeviceGetTemperature(self, card: str, kind: int) -> int:
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: str) -> int:
        return self.reasons

    @property
    def _look(self) -> tuple[int, Sequence[tuple[int, int | None]]]:
        return self.looks[min(self.at, len(self.looks) - 1)]


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The id of a process that does nothing."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def watched(pid: int, nvml: Any, *, looks: int = 4) -> tuple[Peaks, Sampler]:
    found = Sampler(every_s=0.001, nvml=nvml)
    with found.watching(pid):
        while len(found.samples) < looks:
            time.sleep(0.001)
    return found.peaks(), found


def test_the_memory_of_a_process_is_told_by_its_id(sleeper: int):
    looks = [
        (500, [(7, 500)]),
        (900, [(7, 500), (sleeper, 400)]),
        (700, [(7, 500), (sleeper, 200)]),
    ]

    peaks, found = watched(sleeper, Nvml([(v * MIB, who) for v, who in looks]))

    assert peaks.process_vram_bytes == 400
    assert peaks.device_vram_bytes == 900 * MIB
    assert not peaks.is_vram_by_difference
    assert peaks.others == 1
    assert found.samples[0].sm_clock_mhz == 2520


def test_a_container_without_our_ids_gets_the_difference_and_says_so(sleeper: int):
    looks = [(100 * MIB, []), (150 * MIB, [(4711, None)]), (600 * MIB, [(4711, None)])]

    peaks, _ = watched(sleeper, Nvml(looks))

    assert peaks.process_vram_bytes == 500 * MIB
    assert peaks.is_vram_by_difference
    assert peaks.others == 0, "the one that came is ours"


def test_a_process_that_was_there_before_is_another_even_where_ids_do_not_match(sleeper: int):
    looks = [(100, [(1, None)]), (150, [(1, None)]), (600, [(1, None), (2, None)])]

    assert watched(sleeper, Nvml(looks))[0].others == 1


def test_what_the_device_grew_by_before_the_process_came_is_not_its_own(sleeper: int):
    looks = [(0, []), (9000, []), (9000, [(sleeper, 30)])]

    peaks, _ = watched(sleeper, Nvml(looks))

    assert peaks.process_vram_bytes == 30
    assert not peaks.is_vram_by_difference


def test_power_is_a_mean_and_throttling_every_reason_seen(sleeper: int):
    nvml = Nvml([(0, [])])
    nvml.reasons = 0x1 | 0x4 | 0x40

    peaks, found = watched(sleeper, nvml)

    power = [sample.power_w for sample in found.samples]
    assert peaks.mean_power_w == pytest.approx(sum(power) / len(power))
    assert sampler.throttle_names(peaks.throttle) == ("power cap", "thermal, hardware")


def test_an_older_driver_is_asked_by_the_older_name(sleeper: int):
    nvml = Nvml([(0, [])])
    nvml.refuses = {"nvmlDeviceGetCurrentClocksEventReasons"}
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda _: 0x1 | 0x8  # type: ignore[attr-defined]

    assert watched(sleeper, nvml)[0].throttle == 0x8


def test_a_list_without_even_our_process_tells_of_no_others(sleeper: int):
    peaks, _ = watched(sleeper, Nvml([(0, []), (700 * MIB, [])]))

    assert peaks.others is None


def test_an_idle_gpu_is_not_throttled(sleeper: int):
    assert watched(sleeper, Nvml([(0, [])]))[0].throttle == 0


def test_what_a_card_does_not_tell_is_none_and_no_error(sleeper: int):
    nvml = Nvml([(0, [])])
    nvml.refuses = {name for name in dir(Nvml) if name.startswith("nvmlDeviceGet")}
    nvml.refuses -= {"nvmlDeviceGetHandleByIndex"}

    peaks, _ = watched(sleeper, nvml)

    assert peaks == Peaks(host_rss_bytes=peaks.host_rss_bytes)


def test_without_a_driver_there_is_nothing_of_a_gpu(sleeper: int):
    nvml = Nvml([(0, [])])
    nvml.refuses = {"nvmlInit"}

    peaks, _ = watched(sleeper, nvml)

    assert peaks == Peaks(host_rss_bytes=peaks.host_rss_bytes)
    assert (peaks.host_rss_bytes or 0) > 0


@pytest.mark.parametrize(
    ("visible", "asked_for"), [("0", "0"), ("2,3", "2"), ("GPU-4f1c,GPU-0", "GPU-4f1c")]
)
def test_the_card_is_the_first_that_the_child_sees(
    sleeper: int, monkeypatch: pytest.MonkeyPatch, visible: str, asked_for: str
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = Nvml([(0, [])])

    watched(sleeper, nvml, looks=1)

    assert nvml.asked_for == asked_for


ALLOCATES = """
import subprocess, sys
inner = "x = bytearray(80 << 20); print(1, flush=True); input()"
subprocess.run([sys.executable, "-c", inner])
"""


def test_the_memory_of_a_process_and_its_child_is_measured():
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", ALLOCATES], **ends) as process:
        process.stdout.readline()  # its child holds its 80 MiB now
        peaks, _ = watched(process.pid, None)
        process.stdin.write(b"\n")

    assert 80 * MIB < peaks.host_rss_bytes < 200 * MIB


def test_a_process_that_is_gone_has_no_memory():
    with subprocess.Popen(["true"]) as process:
        process.wait()

    peaks, _ = watched(process.pid, None, looks=2)

    assert peaks == Peaks()


def test_many_samples_are_thinned_evenly(sleeper: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampler, "MOST_SAMPLES", 8)
    found = Sampler(every_s=0.001, nvml=Nvml([(0, [])]))
    with found.watching(sleeper):
        while found._seen.count < 60:
            time.sleep(0.001)

    times = [sample.time_s for sample in found.samples]
    assert len(times) <= 8
    assert times == sorted(times)


STUB = """\
#!/bin/sh
echo "$@" > {told}
env | grep UNSLOTH >> {told}
cat {events} >> {folder}/events.jsonl
"""
ENDED = [
    events.Measured(
        order_hash="",
        phases_s={},
        vram={
            "load": {"allocated": 5, "active": 6, "reserved": 9},
            "steady": {"allocated": 7, "active": 7, "reserved": 8},
        },
        pinned_bytes=3,
        matmul_flops_per_s=None,
        model_flops_per_s=None,
        hardware_flops_per_s=None,
        trained_tokens_per_s=None,
        real_tokens_per_s=None,
        slots_per_s=None,
        adapter_norm=None,
        overhead_share=0.0,
    ),
    events.Finished(step=1, result="", seconds=1.0, best_step=None),
]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Path]:
    """A run whose child is a shell script, and where that says how it was called."""
    made = run.create(tmp_path, recipe_file.load("tiny-qwen2.5"), name="stub")
    made.update_manifest({})
    lines, told, script = tmp_path / "events", tmp_path / "told", tmp_path / "python"
    lines.write_text("".join(events.to_line(event) + "\n" for event in ENDED))
    script.write_text(STUB.format(told=told, events=lines, folder=made.folder))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return made, told


def test_what_the_process_took_is_in_the_manifest(stub: tuple[Run, Path]):
    made, _ = stub
    own = Sampler(nvml=Nvml([(0, []), (77, [(1, None)])]))

    last = launch.train(made, lambda event: None, sampler=own)

    assert isinstance(last, events.Finished)
    taken = made.manifest()["measured"]
    named = ("allocated_peak_bytes", "active_peak_bytes", "reserved_peak_bytes")
    assert [taken[key] for key in named] == [7, 7, 9]
    assert taken["pinned_peak_bytes"] == 3
    assert taken["sm_clock_mhz"] == [2520, 2520]
    assert own.samples


def test_a_capped_child_is_told_so_and_the_manifest_keeps_what_was_pinned(stub: tuple[Run, Path]):
    made, told = stub

    launch.train(made, lambda event: None, vram_cap_gib=24)

    assert "--vram-cap-gib 24" in told.read_text()
    assert "UNSLOTH_FUSED_LINEAR_FLASH_MIN_ROWS=0" in told.read_text()
    assert "UNSLOTH_CE_LOSS_TARGET_GB" not in told.read_text()
    assert made.manifest()["vram_cap"] == {"gib": 24, "environment": launch.like_a_card_of(24)}


def test_a_cap_as_large_as_a_large_card_keeps_the_large_cards_way():
    assert launch.like_a_card_of(40)["UNSLOTH_FUSED_LINEAR_FLASH_MIN_ROWS"] == "4096"


def test_a_child_without_a_cap_has_nothing_pinned(stub: tuple[Run, Path]):
    made, told = stub

    launch.train(made, lambda event: None)

    assert "vram-cap" not in told.read_text()
    assert "FLASH_MIN_ROWS" not in told.read_text()
    assert "vram_cap" not in made.manifest()


def test_watching_costs_less_than_a_hundredth_of_a_core(sleeper: int):
    found = Sampler()
    with found.watching(sleeper):
        time.sleep(1.5)
        began, seen = found.cpu_s, len(found.samples)
        time.sleep(2.0)
        spent, looks = found.cpu_s - began, len(found.samples) - seen

    print(f"{spent / 2:.2%} of a core, {spent / looks * 1e6:.0f} us a look")
    assert spent / looks < 0.01 * sampler.EVERY_S * 2  # a busy machine's caches cost twice
