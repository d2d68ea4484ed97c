"""The history of finished runs: what is kept, what of it corrects a prediction, what is ignored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastsft import events, history
from fastsft.history import BOUNDS, Correction, Entry
from fastsft.run import Run

SETTING = {"shape": "qwen2.5-7b", "engine": "unsloth", "rows": 2, "length": 2048}
GPU = "NVIDIA GeForce RTX 4090"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return history.path()


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run folder as a finished run leaves it."""

    def make(number: int = 0, **changes: Any) -> Run:
        run = Run(tmp_path / f"run-{number}")
        run.folder.mkdir()
        manifest = {
            "gpu": {"name": GPU},
            "base": {"name": "Qwen/Qwen2.5-7B-Instruct"},
            "planned": {
                "setting": SETTING,
                "predicted": {
                    "allocated_bytes": 8e9,
                    "reserved_bytes": 9e9,
                    "process_bytes": 10e9,
                    "host_bytes": 4e9,
                    "step_s": 2.0,
                },
            },
            "measured": {"process_vram_peak_bytes": 11e9, "host_rss_peak_bytes": 3e9},
            "identity": {"stack": {"torch": "2.10.0", "unsloth": None}},
        }
        run.update_manifest(manifest | changes)
        steps = [a_step(n, seconds=seconds) for n, seconds in enumerate((60.0, 1.0, 2.0), 1)]
        write(run, *steps, measured())
        return run

    return make


def write(run: Run, *told: events.Event) -> None:
    with run.events_path.open("a", encoding="utf-8") as file:
        file.writelines(f"{events.to_line(event)}\n" for event in told)


def a_step(number: int, *, seconds: float) -> events.Step:
    rates = dict.fromkeys(("trained_tokens_per_s", "real_tokens_per_s", "slots_per_s"), 1.0)
    shown = {"epoch": 0.1, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-4}
    return events.Step(
        step=number,
        total_steps=3,
        vram_peak_reserved_bytes=None,
        seconds=seconds,
        **shown,
        **rates,
    )


def measured(*, load_reserved: int = 1) -> events.Measured:
    rates = ("matmul", "model", "hardware")
    return events.Measured(
        order_hash="",
        phases_s={},
        vram={
            "load": {"allocated": 1, "reserved": load_reserved},
            "preflight": {"allocated": 8_400_000_000, "reserved": 9_300_000_000},
            "steady": {"allocated": 8_200_000_000, "reserved": 9_300_000_000},
        },
        pinned_bytes=None,
        adapter_norm=1.0,
        overhead_share=0.0,
        **{f"{rate}_flops_per_s": None for rate in rates},
        **{f"{kind}_tokens_per_s": None for kind in ("trained", "real")},
        slots_per_s=None,
    )


# What a finished run leaves


def test_a_finished_run_is_remembered_with_what_was_predicted(finished: Callable[..., Run]):
    history.record(finished())

    (entry,) = history.entries()

    assert (entry.device, entry.run, entry.setting) == (GPU, "run-0", SETTING)
    assert entry.measured["allocated_bytes"] == 8.4e9
    assert entry.ratio("process_bytes") == pytest.approx(1.1)
    assert entry.ratio("host_bytes") == pytest.approx(0.75)
    assert entry.ratio("step_s") == pytest.approx(0.75)  # the first step compiles
    assert entry.versions == {"torch": "2.10.0"}


def test_a_peak_of_loading_is_not_held_against_training(finished: Callable[..., Run]):
    run = finished()
    write(run, measured(load_reserved=9_900_000_000))

    history.record(run)

    (entry,) = history.entries()
    assert entry.ratio("process_bytes") is None
    assert entry.ratio("allocated_bytes") is not None


def test_a_run_on_a_cpu_is_remembered_as_such(finished: Callable[..., Run]):
    history.record(finished(gpu=None, measured={"host_rss_peak_bytes": 2e9}))

    (entry,) = history.entries()

    assert entry.device == "CPU"
    assert entry.ratio("host_bytes") == pytest.approx(0.5)


@pytest.mark.parametrize(
    "changes", [{"planned": {}}, {"planned": None}, {"base": None}, {"planned": {"setting": 3}}]
)
def test_a_manifest_that_lacks_something_fails_no_run(
    finished: Callable[..., Run], changes: dict[str, Any]
):
    history.record(finished(**changes))

    assert history.entries() == []


def test_a_run_without_a_folder_fails_nothing(tmp_path: Path):
    history.record(Run(tmp_path / "none"))

    assert history.entries() == []


def test_a_state_folder_that_cannot_be_written_fails_no_run(
    finished: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))

    history.record(finished())

    assert history.entries() == []


# The file


def test_torn_and_foreign_lines_are_passed_over(finished: Callable[..., Run], own_state: Path):
    history.record(finished(0))
    whole = own_state.read_bytes()
    own_state.write_bytes(b'[1]\nnull\n{"time_s": "x"}\n\xff\xfe\n' + whole + whole[:40])

    history.record(finished(1))

    assert [entry.run for entry in history.entries()] == ["run-0", "run-1"]


def test_only_the_last_runs_are_kept(
    finished: Callable[..., Run], own_state: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(history, "KEPT", 5)

    for number in range(8):
        history.record(finished(number))

    assert [entry.run for entry in history.entries()] == [f"run-{n}" for n in range(2, 7)] + [
        "run-7"
    ]


def test_without_the_variable_it_lies_under_the_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_STATE_HOME")

    assert history.path() == Path.home() / ".local" / "state" / "fastsft" / "history.jsonl"


def test_a_line_holds_nothing_of_the_data(finished: Callable[..., Run], own_state: Path):
    history.record(finished())

    (line,) = own_state.read_text("utf-8").splitlines()

    assert set(json.loads(line)) == set(Entry.__dataclass_fields__)
    assert str(Path.home()) not in line


# What corrects


def entry(ratio: float, *, device: str = GPU, engine: str = "unsloth", rows: int = 2) -> Entry:
    setting = {**SETTING, "engine": engine, "rows": rows}
    return Entry(0.0, "run", device, "base", setting, {"step_s": 1.0}, {"step_s": ratio})


def corrected(*known: Entry) -> Correction:
    return history.correction(known, "step_s", device=GPU, engine="unsloth", same=SETTING)


def test_without_runs_nothing_is_corrected():
    assert corrected() == Correction(1.0, None, 0, False)
    assert "formulas alone" in corrected().words


def test_the_same_setting_is_corrected_by_its_first_run():
    found = corrected(entry(1.1), entry(0.8, rows=9))

    assert (found.ratio, found.runs, found.is_same_setting) == (1.1, 1, True)
    assert found.words == "1 measured run of this very setting"


def test_others_are_corrected_by_the_median_of_at_least_three():
    few = corrected(entry(1.1, rows=3), entry(1.2, rows=4))
    enough = corrected(entry(1.1, rows=3), entry(1.2, rows=4), entry(0.9, rows=5))

    assert few.runs == 0
    assert (enough.ratio, enough.runs, enough.is_same_setting) == (1.1, 3, False)


def test_the_margin_shrinks_as_runs_agree_and_grows_as_they_do_not():
    def margin(*ratios: float) -> float:
        found = corrected(*(entry(ratio, rows=9) for ratio in ratios)).margin
        assert found is not None
        return found

    assert margin(1, 1, 1) > margin(*[1] * 12) > 0
    assert margin(0.9, 1, 1.1) > margin(0.99, 1, 1.01)


def test_a_cpu_corrects_no_gpu_nor_another_card_nor_another_engine():
    others = [entry(1.3, device="CPU"), entry(1.3, device="NVIDIA L40S")]
    others += [entry(1.3, engine="reference")] * 5

    assert corrected(*others * 5).runs == 0


def test_an_absurd_ratio_is_bounded():
    assert corrected(entry(9.0)).ratio == BOUNDS[1]
    assert corrected(entry(0.01)).ratio == BOUNDS[0]
