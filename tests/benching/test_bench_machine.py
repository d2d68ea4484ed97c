"""What a row says of the GPU, asked of a driver that is told here."""

from types import SimpleNamespace
from typing import Any

from fastsft.bench import machine

CLOCK = 1


class Nvml:
    """NVML with one card, which tells no PCIe width."""

    NVML_CLOCK_SM = CLOCK

    def nvmlInit(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetHandleByIndex": 0,
            "nvmlDeviceGetName": "NVIDIA GeForce RTX 4090",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * 2**30, free=23 * 2**30),
            "nvmlDeviceGetCudaComputeCapability": (8, 9),
            "nvmlSystemGetDriverVersion": "580.65",
            "nvmlDeviceGetEnforcedPowerLimit": 450_000,
            "nvmlDeviceGetMaxClockInfo": 3105,
            "nvmlDeviceGetMaxPcieLinkGeneration": 4,
        }
        if name not in answers:
            raise AttributeError(name)
        return lambda *_: answers[name]


def test_a_card_is_told_with_its_limits_and_what_is_unknown_is_none():
    found = machine.gpu(Nvml())

    assert found is not None
    assert (found.power_limit_w, found.sm_clock_max_mhz, found.pcie) == (450, 3105, None)
    assert found.compute_capability == "8.9"
