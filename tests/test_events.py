"""Events: what is written is what is read, whatever a crash left in the file."""

import json
from pathlib import Path

import pytest

from fastsft import events

STEP = events.Step(
    step=3,
    total_steps=10,
    epoch=0.5,
    loss=1.25,
    grad_norm=0.5,
    learning_rate=2e-4,
    trained_tokens_per_s=10.0,
    real_tokens_per_s=20.0,
    slots_per_s=30.0,
    vram_peak_reserved_bytes=None,
)


MEASURED = events.Measured(
    order_hash="ab",
    phases_s={"import": 3.5, "load": 1.25},
    vram={"load": {"allocated": 1, "active": 2, "reserved": 3}},
    pinned_bytes=None,
    matmul_flops_per_s=4.5e10,
    model_flops_per_s=None,
    hardware_flops_per_s=None,
    trained_tokens_per_s=10.5,
    real_tokens_per_s=20.5,
    slots_per_s=30.5,
    adapter_norm=0.25,
    overhead_share=0.001,
)


@pytest.mark.parametrize(
    "event",
    [
        STEP,
        events.Note(text="zwei Zeilen\nund 中文"),
        events.Settings(device="CPU", differing={"packing": ["True", "False"]}),
        events.Failed(error="TrainError", what="w", where=None, hint="h", exit_code=4),
        MEASURED,
    ],
)
def test_an_event_survives_its_line(event):
    assert events.from_line(events.to_line(event)) == event


def test_a_loss_that_is_no_number_stays_json_and_comes_back():
    line = events.to_line(events.Evaluated(step=1, loss=float("nan"), is_best=False))

    assert json.loads(line)["loss"] == "nan"
    back = events.from_line(line)
    assert isinstance(back, events.Evaluated)
    assert back.loss != back.loss


def test_keys_of_a_later_version_are_passed_over():
    line = json.dumps({**json.loads(events.to_line(STEP)), "new": 1})

    assert events.from_line(line) == STEP


def test_a_step_of_an_earlier_version_is_still_read():
    line = json.loads(events.to_line(STEP))
    later = (
        *("seconds", "overhead_s", "trained_tokens", "real_tokens", "slots", "documents"),
        *("attention_pairs", "micro_batches", "recompiles"),
    )

    earlier = json.dumps({key: value for key, value in line.items() if key not in later})

    assert events.from_line(earlier) == STEP


def test_a_torn_line_is_passed_over_and_an_unfinished_one_waited_for(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "st\n' + events.to_line(STEP) + "\n" + '{"kind": "no')

    found = list(events.read(path))

    assert [event for event, _ in found] == [STEP]
    path.write_text(path.read_text() + 'te", "text": "x"}\n')
    rest = list(events.read(path, offset=found[-1][1]))
    assert [event.kind for event, _ in rest] == ["note"]


def test_reading_a_log_that_is_not_there_gives_nothing(tmp_path: Path):
    assert list(events.read(tmp_path / "none")) == []
