"""On a GPU: peaks by phase, the matmul, the process's memory from outside, a cap that holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastsft import base, cards, events, hardware, launch, meter, recipe_file, start
from fastsft.engine import probes
from fastsft.run import Run
from fastsft.sampler import Sampler

pytestmark = pytest.mark.gpu
DEMO = Path(start.__file__).parent / "demo" / "train.jsonl"
CAP_GIB = 4.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[events.Event], Sampler]:
    """A tiny run under a cap, its events, and what was seen of it from outside."""
    recipe = recipe_file.load(
        "tiny-qwen2.5",
        [f"data.path={DEMO}", "train.steps=12", "eval.share=0.1", "eval.every_steps=6"],
    )
    found = base.resolve(recipe.model)
    rows, runs = start.prepare_rows(recipe, found), tmp_path_factory.mktemp("runs")
    run = start.start(recipe, found, rows, runs=runs, name="metering")
    told: list[events.Event] = []
    sampler = Sampler()
    launch.train(run, told.append, vram_cap_gib=CAP_GIB, sampler=sampler)
    return run, told, sampler


def measured(told: list[events.Event]) -> events.Measured:
    (event,) = (event for event in told if isinstance(event, events.Measured))
    return event


def test_each_phase_has_its_peaks_and_they_are_in_order(trained):
    _, told, _ = trained
    vram = measured(told).vram

    assert set(vram) == {"load", "preflight", "first_step", "steady"}
    for peaks in vram.values():
        assert 0 < peaks["allocated"] <= peaks["active"] <= peaks["reserved"] <= CAP_GIB * 2**30


def test_the_runs_peak_is_the_highest_of_its_phases(trained):
    _, told, _ = trained
    last = [event for event in told if isinstance(event, events.Step)][-1]

    highest = meter.whole(measured(told).vram.values())["reserved"]
    assert last.vram_peak_reserved_bytes is not None
    assert last.vram_peak_reserved_bytes <= highest


def test_the_process_takes_more_than_torch_reserves(trained):
    run, _, sampler = trained
    taken = run.manifest()["measured"]

    assert taken["process_vram_peak_bytes"] > taken["reserved_peak_bytes"]
    assert taken["device_vram_peak_bytes"] >= taken["process_vram_peak_bytes"]
    assert taken["mean_power_w"] > 0
    print(f"{sampler.cpu_s / (len(sampler.samples) * sampler.every_s):.2%} of a core, {taken}")


def test_the_hardware_does_no_more_than_a_matmul(trained):
    _, told, _ = trained
    found = measured(told)

    assert 0 < found.model_flops_per_s <= found.hardware_flops_per_s <= found.matmul_flops_per_s


def test_a_matmul_is_near_the_cards_peak_and_gives_its_memory_back():
    before = torch.cuda.memory_reserved()

    speed = probes.matmul_flops_per_s(torch.bfloat16)

    assert torch.cuda.memory_reserved() - before <= 64 * 2**20  # cuBLAS keeps a workspace
    gpu = hardware.gpu()
    assert gpu is not None
    share = meter.utilisation(speed, cards.of_name(gpu.name, gpu.memory_bytes).peak_flops)
    print(f"{gpu.name}: {speed / 1e12:.1f} TFLOP/s, {share} of its peak")
    assert share is None or 0.4 < share < 1.2


CAPPED = """
import torch
from fastsft.engine import probes
probes.cap_vram(2.0)
print(*torch.cuda.mem_get_info())
torch.empty(2**30, dtype=torch.uint8, device="cuda")
try:
    torch.empty(3 * 2**30, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError:
    print("refused")
"""


def test_a_cap_holds_and_is_what_torch_says_is_free():
    environment = {key: value for key, value in os.environ.items() if "PYTORCH_" not in key}
    done = subprocess.run(
        [sys.executable, "-c", CAPPED], env=environment, capture_output=True, text=True, check=True
    )

    free, card, told = done.stdout.split()
    assert (int(card), told) == (2 * 2**30, "refused")
    assert 2**30 < int(free) < 2 * 2**30  # the context has its share


def test_pinned_memory_is_counted():
    before = probes.pinned_peak() or 0
    held = torch.empty(64 * 2**20, dtype=torch.uint8, pin_memory=True)
    torch.cuda.synchronize()

    assert (probes.pinned_peak() or 0) - before >= held.numel()
