"""Benches from the command to the files, sound and sabotaged."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_rows import made

from fastsft import benching, errors, events, launch
from fastsft.bench import row
from fastsft.bench.running import Turn
from fastsft.benching import Asked

STEPS, WARMUP = 6, 3


@pytest.fixture(scope="module")
def benched(
    forked: Callable[[list[Any]], None], recipes: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Two arms, one process each, with export and share: the folder, and what was told."""
    out = tmp_path_factory.mktemp("out")
    told: dict[str, Any] = {"answer": [], "note": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benching.console, "answer", told["answer"].append)
        patch.setattr(benching.console, "note", told["note"].append)
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr("tempfile.tempdir", None)
        asked = Asked(
            against=str(recipes / "recomputing.yaml"),
            steps=STEPS,
            warmup=WARMUP,
            repeats=1,
            with_export=True,
            out=out,
            share=out / "share.json",
        )
        benching.bench(str(recipes / "plain.yaml"), None, [], asked)
        told["left"] = list(Path(os.environ["TMPDIR"]).iterdir())
    folder = Path(told["answer"][0])
    rows, summary = row.read_folder(folder)
    return {**told, "folder": folder, "rows": rows, "summary": summary, "out": out}


def test_both_arms_are_measured_and_valid(benched):
    rows = benched["rows"]

    assert [r.identity.arm for r in rows] == ["plain", "recomputing"]
    assert [r.validity.failed for r in rows] == [[], []]
    assert benched["summary"].ratio is not None


def test_the_window_leaves_the_warm_up_out(benched):
    (plain, _) = benched["rows"]

    assert len(plain.time.steps_s) == STEPS
    assert len(plain.time.warmup_steps_s) == WARMUP
    assert len(plain.losses) == STEPS + WARMUP
    assert plain.work.slots == sum(plain.counts.slots[WARMUP:])
    seconds = sum(plain.time.steps_s)
    assert plain.rates.slots_per_s == pytest.approx(plain.work.slots / seconds)


def test_the_order_is_worked_out_apart_from_the_trainer(benched):
    for found in benched["rows"]:
        assert found.identity.order_hash == found.expected.order_hash
        assert found.counts == found.expected.steps
        gate = next(g for g in found.validity.gates if g.name == "token counts")
        assert gate.measured.startswith("all 9 steps as worked out")


def test_the_tokens_are_those_that_the_process_read(benched):
    found = {r.identity.tokens_sha256 for r in benched["rows"]}

    assert len(found) == 1 and len(found.pop()) == 64
    assert {r.identity.device for r in benched["rows"]} == {"CPU"}


def test_arms_that_recompute_otherwise_are_said_to(benched):
    assert benched["summary"].differences == ["gradient checkpointing none against standard"]


def test_both_arms_trained_the_same_tokens_to_the_same_loss(benched):
    plain, recomputing = benched["rows"]

    assert plain.identity.order_hash == recomputing.identity.order_hash
    assert plain.settings.gradient_checkpointing == "none"
    assert recomputing.settings.gradient_checkpointing == "standard"
    assert plain.losses == pytest.approx(recomputing.losses, rel=1e-5)


def test_a_row_has_its_phases_memory_and_flops(benched):
    plain, recomputing = benched["rows"]

    assert plain.time.preflight_s > 0 and plain.time.save_s > 0
    assert plain.time.to_first_step_s > plain.time.first_step_s
    assert plain.memory.host_rss_bytes > 50e6
    assert list(plain.memory.marks) == ["load", "preflight", "train", "end"]
    assert 2 <= len(plain.memory.samples) <= row.MAX_SAMPLES
    done = [r.rates.hardware_flops_per_s / r.rates.model_flops_per_s for r in (plain, recomputing)]
    assert 1 < done[0] < done[1]  # padding, and what is computed a second time
    assert 0 < plain.rates.hfu_of_matmul < 1
    assert plain.rates.mfu_of_peak is None  # a CPU has no figure to be measured against
    assert plain.memory.predicted is None


def test_the_exports_of_the_first_process_are_timed_or_say_why_not(benched):
    plain, recomputing = benched["rows"]

    assert plain.time.merge_s > 0
    assert plain.time.gguf_s is None  # a tokenizer of bare bytes, which GGUF has no name for
    assert any(note.startswith("gguf: ") for note in plain.notes)
    assert recomputing.time.merge_s is None


def test_a_cpu_row_says_that_it_speaks_of_the_pipeline(benched):
    assert benched["summary"].speaks_of == "pipeline"
    assert "not of kernels: no GPU figure follows" in benched["summary"].statement
    assert any("not of kernels" in note for note in benched["note"])


def test_repeated_rows_of_short_data_are_told(benched):
    assert "the data is short: its rows were trained 1.5 times" in benched["rows"][0].notes


def test_every_file_lies_in_the_folder_and_no_run_is_left(benched):
    folder = benched["folder"]

    assert folder.parent.parent == benched["out"] / "results"
    assert folder.parent.name.startswith("cpu-")
    assert {"plain-1.json", "recomputing-1.json", "summary.json", "index.html"} <= {
        path.name for path in folder.iterdir()
    }
    assert benched["left"] == []


def test_the_shared_file_names_no_recipe_of_ones_own(benched):
    shared = json.loads((benched["out"] / "share.json").read_text())

    assert [r["identity"]["arm"] for r in shared["rows"]] == ["own 1", "own 2"]
    assert all(r["validity"]["is_valid"] for r in shared["rows"])
    assert "rows.jsonl" not in json.dumps(shared)


SABOTAGES = {
    "zero gradient": ({"gradient": {"step": 5, "factor": 0.0}}, "gradients"),
    "NaN": ({"nan_loss": {"step": 4}}, "finished"),
    "unchanged adapter": ({"still_optimizer": {}}, "adapter"),
    "padding counted": ({"counts_padding": {}}, "token counts"),
    "wrong peak": ({"slow_matmul": {"factor": 1e4}}, "utilisation"),
    "recompilation": ({"compile_before_step": {"step": 7}}, "recompilation"),
    "short warm-up": ({"slow_steps": {"first": 4, "last": 5, "seconds": 0.8}}, "warm-up"),
    "loss off": ({"shaken_adapter": {"step": 5}}, "loss"),
}


@pytest.fixture(scope="module")
def sabotaged(
    forked: Callable[[list[Any]], None], recipes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[row.Row]]:
    """Gives the rows of a bench whose first process is sabotaged, and whose second is not."""

    def run(case: str) -> list[row.Row]:
        out = tmp_path_factory.mktemp("sabotaged")
        forked([SABOTAGES[case][0], {}])
        asked = Asked(
            against=str(recipes / "recomputing.yaml"),
            steps=STEPS,
            warmup=WARMUP,
            repeats=1,
            out=out,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(benching.plots, "draw", lambda *_: None)
            patch.setattr(benching.page, "write", lambda *_: None)
            with pytest.raises(errors.TrainError, match="no row of plain is valid"):
                benching.bench(str(recipes / "plain.yaml"), None, [], asked)
        (folder,) = out.glob("results/*/*")
        return row.read_folder(folder)[0]

    return run


@pytest.mark.parametrize(
    "case",
    [
        case if case == "unchanged adapter" else pytest.param(case, marks=pytest.mark.slow)
        for case in SABOTAGES
    ],
)
def test_a_real_run_that_violates_a_gate_fails_it(sabotaged, case: str):
    bad, good = sabotaged(case)

    assert SABOTAGES[case][1] in [gate.name for gate in bad.validity.failed]
    assert good.validity.is_valid


def test_the_order_of_packed_sequences_is_worked_out_too(forked, recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(benching.plots, "draw", lambda *_: None)
    monkeypatch.setattr(benching.page, "write", lambda *_: None)
    forked([])
    asked = Asked(steps=STEPS, warmup=WARMUP, repeats=1, out=tmp_path)

    benching.bench(str(recipes / "plain.yaml"), None, ["train.packing=true"], asked)

    (packed,), _ = row.read_folder(next(tmp_path.glob("results/*/*")))
    assert packed.settings.batching == "packed"
    assert packed.identity.order_hash == packed.expected.order_hash
    assert packed.validity.is_valid


def test_trouble_with_the_shared_file_costs_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def full(*_: object) -> None:
        raise errors.DataError("cannot be written", where="share.json", hint="")

    folder, told = tmp_path / "bench", []
    folder.mkdir()
    monkeypatch.setattr(benching.ready, "plans_of", lambda *_: [])
    monkeypatch.setattr(benching.ready, "folder_for", lambda *_: folder)
    monkeypatch.setattr(
        benching.ready, "ready", lambda *_, **__: nullcontext(SimpleNamespace(arms=[]))
    )
    monkeypatch.setattr(benching, "_tell", lambda *_: None)
    monkeypatch.setattr(benching, "_run", lambda *_: ([made()], False))
    monkeypatch.setattr(benching.plots, "draw", lambda *_: None)
    monkeypatch.setattr(benching.console, "answer", told.append)
    monkeypatch.setattr(benching.share, "write", full)

    with pytest.raises(errors.DataError, match="cannot be written"):
        benching.bench("tiny-qwen2.5", None, [], Asked(share=tmp_path / "share.json"))

    assert told == [str(folder)]
    assert {"summary.json", "index.html"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_becomes_of_ctrl_c_is_seen(monkeypatch: pytest.MonkeyPatch, is_terminal: bool):
    seen: list[str] = []
    view = nullcontext(lambda event: seen.append(getattr(event, "text", event.kind)))
    monkeypatch.setattr(benching.console, "err", SimpleNamespace(is_terminal=is_terminal))
    monkeypatch.setattr(benching.console, "TrainView", lambda: view)
    monkeypatch.setattr(benching.console, "note", seen.append)

    with benching._watch(Turn(1, 1, "unsloth", 1)) as show:
        show(events.Note(text=launch.STOPPING))

    assert seen == ["process 1 of 1: unsloth, repeat 1", launch.STOPPING]


def command(*words: object) -> list[str]:
    code = "from fastsft.cli import main; main()"
    return [sys.executable, "-c", code, "bench", *map(str, words)]


@pytest.mark.slow
def test_unsloth_against_the_reference_in_fresh_processes(tmp_path: Path):
    done = subprocess.run(
        command("tiny-qwen2.5", "--against", "reference", "--repeats", 2, "--out", tmp_path),
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    rows, summary = row.read_folder(Path(done.stdout.strip()))
    assert [r.identity.engine for r in rows] == ["unsloth", "reference"] * 2
    assert all(r.validity.is_valid for r in rows)
    assert summary.aa_band is not None
    assert rows[0].time.import_s > 0.5  # the stack, imported by each process


@pytest.mark.slow
def test_ctrl_c_keeps_the_rows_that_are_done_and_leaves_no_run(tmp_path: Path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = ("tiny-qwen2.5", "--set", "engine=reference", "--out", tmp_path / "out")
    child = subprocess.Popen(
        command(*words),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("out/results/*/*/reference-1.json")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.2)
    time.sleep(2)

    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=300)

    assert child.returncode == 130, err
    rows, _ = row.read_folder(Path(out.strip()))
    assert [r.identity.repeat for r in rows] == [1]
    assert "the rows of the processes that were done are kept" in err
    assert list(temporary.iterdir()) == []
