"""The history of finished runs: what is kept, what of it corrects a prediction, what is ignored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastsft import events, history
from fastsft.errors import DeviceError
from fastsft.estimate import FORMULAS
from fastsft.history import Correction, Entry
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

    def make(number: int = 0, *, told: tuple[events.Event, ...] = (), **changes: Any) -> Run:
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
                "usable_bytes": 20e9,
            },
            "measured": {"process_vram_peak_bytes": 11e9, "host_rss_peak_bytes": 3e9},
            "identity": {"stack": {"torch": "2.10.0", "unsloth": None}},
        }
        run.update_manifest(manifest | changes)
        steps = [a_step(n, seconds=seconds) for n, seconds in enumerate((60.0, 1.0, 2.0), 1)]
        write(run, *steps, *told, measured())
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
    assert entry.versions == {"formulas": str(FORMULAS), "torch": "2.10.0"}


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


def test_what_the_driver_does_not_tell_of_our_process_alone_is_not_held_against_it(
    finished: Callable[..., Run],
):
    taken = {"process_vram_peak_bytes": 11e9}

    history.record(finished(0, measured={**taken, "is_vram_by_difference": True}))
    history.record(finished(1, measured={**taken, "others": 1}))

    assert [entry.ratio("process_bytes") for entry in history.entries()] == [None, None]


def test_of_a_resumed_run_only_the_last_process_tells_the_speed(finished: Callable[..., Run]):
    resumed = events.Resumed(step=3, checkpoint="step-3", passed_over=[])
    again = [a_step(n, seconds=seconds) for n, seconds in ((4, 90.0), (5, 3.0))]

    history.record(finished(told=(resumed, *again)))

    (entry,) = history.entries()
    assert entry.measured["step_s"] == 3.0


def test_a_run_that_went_on_elsewhere_is_booked_there_without_what_was_planned_for_the_first(
    finished: Callable[..., Run],
):
    history.record(finished(device="NVIDIA L40S"))

    (entry,) = history.entries()
    assert entry.device == "NVIDIA L40S"
    assert entry.ratio("allocated_bytes") is not None
    assert entry.ratio("step_s") is None


@pytest.mark.parametrize("key", ["gradient_checkpointing", "checkpoint_skip_layers"])
def test_what_the_engine_did_otherwise_than_planned_is_not_learnt(
    finished: Callable[..., Run], key: str
):
    history.record(finished(requested_versus_effective={key: ["4", "0"]}))

    assert history.entries() == []


def test_a_run_that_ran_out_of_memory_is_remembered_as_such(finished: Callable[..., Run]):
    run = finished()
    failed = events.Failed(error="OutOfMemory", what="-", hint="-", where=None, exit_code=4)
    write(run, failed)

    history.record(run)

    (entry,) = history.entries()
    assert (entry.ran_out_of_bytes, entry.measured) == (20e9, {})
    run.update_manifest({"device": "NVIDIA L40S"})  # resumed where less could be had, or more
    history.record(run)
    assert len(history.entries()) == 1


def test_only_runs_of_these_formulas_and_this_stack_speak_of_the_next(
    finished: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
):
    history.record(finished())
    here = {"torch": "2.10.0"}
    monkeypatch.setattr(history, "_version", here.get)

    assert len(history.learnt()) == 1
    monkeypatch.setattr(history, "FORMULAS", FORMULAS + 1)
    assert history.learnt() == []
    monkeypatch.setattr(history, "FORMULAS", FORMULAS)
    here["torch"] = "2.11.0"
    assert history.learnt() == []


# The file


def test_a_lock_that_another_holds_is_not_waited_for(finished: Callable[..., Run], own_state: Path):
    own_state.parent.mkdir(parents=True)

    with history._locked(own_state):
        history.record(finished())

    assert history.entries() == []


def test_a_user_without_a_home_trains_all_the_same(
    finished: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", homeless)

    history.record(finished())

    assert history.entries() == []
    with pytest.raises(DeviceError, match="no home folder"):
        history.path()


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


def of_bytes(ratio: float, predicted: float = 10.0, **setting: Any) -> Entry:
    sizes = {"process_bytes": predicted}, {"process_bytes": ratio * predicted}
    return Entry(0.0, "run", GPU, "base", {**SETTING, "rows": 9, **setting}, *sizes)


def corrected_bytes(*known: Entry, predicted: float | None = None) -> Correction:
    return history.correction(
        known, "process_bytes", device=GPU, engine="unsloth", same=SETTING, predicted=predicted
    )


def test_one_absurd_run_neither_corrects_nor_widens_the_margin():
    sane = [of_bytes(1.0), of_bytes(1.02), of_bytes(1.01)]

    assert corrected_bytes(*sane, of_bytes(6.7), of_bytes(0.1)) == corrected_bytes(*sane)
    assert corrected_bytes(*[of_bytes(6.7)] * 3) == Correction()


def test_a_machine_may_be_far_slower_than_the_formulas():
    assert corrected(entry(9.0)).ratio == 9.0
    assert corrected(entry(900.0)) == Correction()


def test_small_runs_say_nothing_of_large_ones():
    small = [of_bytes(1.3, predicted=2.0)] * 3

    assert corrected_bytes(*small, predicted=3.0).ratio == 1.3
    assert corrected_bytes(*small, predicted=20.0) == Correction()


def test_what_is_not_modelled_corrects_nothing():
    assert corrected_bytes(*[of_bytes(1.3, is_dora=True)] * 3) == Correction()


# What ran out of memory


def ran_out(predicted: float = 10.0, **setting: Any) -> Entry:
    return Entry(
        0.0,
        "run",
        GPU,
        "base",
        {**SETTING, **setting},
        {"process_bytes": predicted},
        {},
        ran_out_of_bytes=12.0,
    )


def too_little(*known: Entry, predicted: float = 10.0) -> int:
    return history.proved_too_little(known, device=GPU, same=SETTING, predicted=predicted)


def test_what_ran_out_of_memory_needs_more_than_there_was_and_so_does_what_is_bolder():
    assert too_little(ran_out()) == 13
    assert too_little(ran_out(), predicted=20.0) == 25
    assert too_little(ran_out(), predicted=9.0) == 0
    assert too_little(ran_out(shape="llama-3.1-8b")) == 0


def test_a_run_that_finished_since_takes_it_back():
    assert too_little(ran_out(), of_bytes(1.0)) == 0
    assert too_little(of_bytes(1.0), ran_out()) == 13
