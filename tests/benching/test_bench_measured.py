"""A process becomes a row of what was seen of it, and nothing that was not seen is a figure."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_rows import GPU

from fastsft import events, launch
from fastsft.bench import measured, ready, row, running
from fastsft.sampler import Peaks, Sample

MIB = 2**20


def process(samples: list[Sample], **peaks: Any) -> Any:
    """What `measured` reads of a process that wrote no events."""
    subject = SimpleNamespace(gpu=row.GpuFacts(**GPU), shape=None, warmup=1)
    return SimpleNamespace(
        subject=subject,
        measured=None,
        steps=[],
        told=[],
        samples=samples,
        peaks=Peaks(**peaks),
        began_s=0.0,
        expected=None,
    )


def test_what_the_driver_never_told_is_none():
    state = measured._gpu_state(process([Sample(0.0), Sample(1.0)]))

    assert state == row.GpuState(
        mean_power_w=None,
        sm_clock_mhz=None,
        temperature_c=None,
        throttle=None,
        other_processes=None,
    )


def test_what_the_driver_told_once_is_known():
    samples = [Sample(0.0), Sample(1.0, throttle=0x8, others=0), Sample(2.0, throttle=0x4)]

    state = measured._gpu_state(process(samples))

    assert state is not None
    assert (state.throttle, state.other_processes) == (["power cap", "hardware slowdown"], 0)


def test_peaks_are_of_all_that_was_seen_and_say_how():
    samples = [Sample(0.0, device_vram_bytes=300), Sample(1.0, process_vram_bytes=900)]
    seen = {"process_vram_bytes": 40, "device_vram_bytes": 1300, "host_rss_bytes": 7}

    memory = measured._memory(process(samples, **seen, is_vram_by_difference=True))

    assert (memory.process_bytes, memory.device_bytes, memory.host_rss_bytes) == (40, 1300, 7)
    assert memory.is_vram_by_difference
    assert memory.device_before_bytes == 300


@pytest.mark.parametrize(
    ("config", "stored"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float32"}, "float32"),
        ({"dtype": "bfloat16", "quantization_config": {}}, "nf4"),
        ({"dtype": "/home/me"}, None),
        ({}, None),
    ],
)
def test_a_base_tells_how_it_is_stored(tmp_path: Path, config: Any, stored: str | None):
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert ready.stored_in(tmp_path) == stored
    assert ready.stored_in(tmp_path / "none") is None


def test_random_weights_are_called_by_their_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    shape = SimpleNamespace(name="qwen2.5-7b")
    monkeypatch.setattr(ready, "shape_of", lambda _: shape)
    base = SimpleNamespace(folder=tmp_path, is_synthetic=True)
    order = ready.Order("my-recipe.yaml", None, ("lora.rank=8",), None, 3, 1, 1)

    subject = ready._subject(order, None, base, "bench")  # type: ignore[arg-type]

    assert subject.base_name == "synthetic:qwen2.5-7b"
    assert (subject.overrides, subject.has_data) == (("lora.rank=8",), False)
    named = replace(order, data=Path("rows.jsonl"))
    real = SimpleNamespace(folder=tmp_path, is_synthetic=False)
    recipe = SimpleNamespace(model=SimpleNamespace(base="me/mine"))
    assert ready._subject(named, recipe, real, "bench").has_data  # type: ignore[arg-type]


@pytest.mark.parametrize("is_failed", [False, True])
def test_ctrl_c_counts_though_the_child_finished_or_failed_after_it(
    monkeypatch: pytest.MonkeyPatch, is_failed: bool
):
    shown: list[events.Event] = []

    def train(run: Any, show: Any, **_: Any) -> events.Event:
        show(events.Note(text=launch.STOPPING))
        if is_failed:
            raise launch.TrainError("it failed while it was stopped", where="run", hint="")
        return events.Finished(step=3, result="", seconds=1.0, best_step=None)

    monkeypatch.setattr(running.launch, "train", train)
    bench: Any = SimpleNamespace(subject=SimpleNamespace(vram_cap_gib=None))

    with pytest.raises(KeyboardInterrupt):
        running._trained(bench, None, None, None, shown.append)  # type: ignore[arg-type]

    assert [event.kind for event in shown] == ["note"]
