"""Which GPU training will use, asked of a driver that is told here."""

from types import SimpleNamespace

import pytest

from fastsft import hardware


class Nvml:
    """NVML with two cards."""

    cards = ("NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 4090")

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.cards):
            raise RuntimeError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        return {"GPU-aa": 0, "GPU-bb": 1}[name]

    def nvmlDeviceGetName(self, device: int) -> str:
        return self.cards[device]

    def nvmlDeviceGetMemoryInfo(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(total=24 * 2**30, free=20 * 2**30, used=4 * 2**30)

    def nvmlDeviceGetCudaComputeCapability(self, device: int) -> tuple[int, int]:
        return (8, 6 + 3 * device)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        (None, "3060"),
        ("0", "3060"),
        ("1", "4090"),
        ("1,0", "4090"),
        ("GPU-bb", "4090"),
    ],
)
def test_the_gpu_is_the_first_that_cuda_shows(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, name: str
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)

    found = hardware.gpu(Nvml())

    assert found is not None
    assert found.name.endswith(name)
    assert (found.memory_bytes, found.free_bytes) == (24 * 2**30, 20 * 2**30)
    assert found.driver == "580.65"


@pytest.mark.parametrize("shown", ["", "-1", "7", "GPU-cc"])
def test_a_gpu_that_is_hidden_or_not_there_is_none(monkeypatch: pytest.MonkeyPatch, shown: str):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)

    assert hardware.gpu(Nvml()) is None


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch):
    class NoDriver(Nvml):
        def nvmlInit(self) -> None:
            raise RuntimeError("NVML Shared Library Not Found")

    assert hardware.gpu(NoDriver()) is None
