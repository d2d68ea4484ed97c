"""The verb `plan`: the answer to type, the table for people, JSON, what it refuses and how."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import planning_cases as cases
import pytest

from fastsft import (
    commands,
    estimate,
    hardware,
    history,
    plan_words,
    planning,
    recipe_file,
    request,
    shapes,
)
from fastsft.base import Base
from fastsft.data.prepare import Prepared
from fastsft.demo.tiny import BASE
from fastsft.errors import DeviceError, FastsftError, RecipeError
from fastsft.hardware import Gpu
from fastsft.history import Entry

CODE = """
import sys
from fastsft.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "unsloth", "datasets"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No runs remembered, and no GPU, whatever is here."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(hardware, "gpu", lambda: None)


def with_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    monkeypatch.setattr(hardware, "gpu", lambda: gpu)


def plan(
    name: str | None = "qwen2.5-7b",
    *sets: str,
    data: Path | None = None,
    gpu: str | None = None,
    vram: float | None = None,
    as_json: bool = False,
) -> None:
    planning.plan(name, data, sets, gpu=gpu, vram_gib=vram, json=as_json)


# The answer


def test_the_answer_is_what_to_type_and_makes_the_best_plan(capsys: pytest.CaptureFixture[str]):
    plan(gpu="rtx-4090")

    words = capsys.readouterr().out.split()
    assert words[::2] == ["--set"] * (len(words) // 2)
    better = words[1::2]
    assert "train.gradient_checkpointing=none" in better
    recipe = recipe_file.load("qwen2.5-7b", better)
    assert recipe.train.step_rows == recipe_file.load("qwen2.5-7b").train.step_rows
    plan("qwen2.5-7b", *better, gpu="rtx-4090")
    assert capsys.readouterr().out == ""  # nothing is better than the best


def test_people_are_told_the_facts_and_why_others_lost(capsys: pytest.CaptureFixture[str]):
    plan(gpu="4090")

    told = capsys.readouterr().err
    assert told.startswith("qwen2.5-7b on NVIDIA GeForce RTX 4090; every figure is an estimate\n")
    for fact in ("as it is ", "best ", "memory ", "a million tokens ", "RAM ", "rests on "):
        assert f"\n{fact}" in told
    assert "formulas alone" in told
    assert "% slower" in told
    assert " GiB over" in told


def test_what_does_not_fit_says_what_would_and_exits_with_3(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        plan("mistral-small-24b", vram=16)

    shown = capsys.readouterr()
    assert left.value.code == 3
    assert shown.out == ""
    assert "would fit with: a card with 24 GiB (rtx-3090), or a smaller base" in shown.err


def test_a_base_whose_weights_alone_are_too_much_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe, _ = cases.llama_70b()
    path = tmp_path / "llama.yaml"
    path.write_text(recipe_file.dump(recipe), "utf-8")

    with pytest.raises(SystemExit) as left:
        plan(str(path), vram=24)

    told = capsys.readouterr().err.splitlines()
    assert left.value.code == 3
    assert "the weights alone take 36.8 GiB, 23.3 GiB can be had" in told
    assert told[-1] == "would fit with: a card with 48 GiB (l40s), or a smaller base (llama-3.1-8b)"


def test_json_has_the_whole_plan(capsys: pytest.CaptureFixture[str]):
    plan(gpu="rtx-4090", as_json=True)

    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["fits"] is True
    assert (
        found["best"]["need_bytes"] + found["best"]["spare_bytes"]
        == (found["card"]["usable_bytes"])
    )
    assert found["set"]["train.gradient_checkpointing"] == "none"
    assert sum(candidate["lost"] == "" for candidate in found["considered"]) == 1
    assert shown.err == ""


def test_the_rows_are_read_where_they_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "question", "response": "answer"}
    rows.write_text(f"{json.dumps(row)}\n" * 40, "utf-8")

    plan("tiny-qwen2.5", "data.checks.duplicates=off", data=rows, gpu="rtx-4090")

    told = capsys.readouterr().err
    assert re.search(r"\nrows +40, ", told)
    assert re.search(r"\nan epoch +\d", told)


# Which card


def test_the_gpu_that_is_here_is_planned_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with_gpu(monkeypatch, cases.gpu(free=9.0))

    plan()

    assert "9.0 GiB of them free now" in capsys.readouterr().err


def test_without_a_gpu_the_cards_are_listed():
    with pytest.raises(DeviceError) as refused:
        plan()

    assert refused.value.exit_code == 3
    assert "--gpu rtx-3060-12gb, rtx-3090" in refused.value.hint
    assert "--vram GIB" in refused.value.hint


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"gpu": "rtx-4091"}, "rtx-4090"),
        ({"gpu": "rtx-4090", "vram": 24.0}, "leave one out"),
        ({"name": None, "vram": 24.0}, "fastsft recipes"),
        ({"name": "qwen2.5-7", "vram": 24.0}, "fastsft recipes"),
    ],
)
def test_what_cannot_be_planned_says_what_can(asked: dict[str, object], told: str):
    with pytest.raises(RecipeError) as refused:
        plan(**asked)  # type: ignore[arg-type]

    assert refused.value.exit_code == 2
    assert told in refused.value.hint


# The base


def test_the_sizes_of_a_known_base_need_no_network():
    recipe = request.load("llama-3.1-8b", None, [], verb="plan")

    assert planning.shape_of(recipe).name == "llama-3.1-8b"


def test_the_sizes_of_a_folder_are_those_of_its_config():
    recipe = request.load("tiny-mistral", None, [], verb="plan")

    assert planning.shape_of(recipe).model_type == "mistral"


def test_the_weights_of_a_folder_are_those_of_its_files(capsys: pytest.CaptureFixture[str]):
    plan("tiny-mistral", f"model.base={BASE}", "model.family=qwen2.5", vram=24, as_json=True)

    found = json.loads(capsys.readouterr().out)
    recipe = request.load("tiny-mistral", None, [], verb="plan")
    stored = estimate.stored_weights(BASE, recipe)
    assert stored
    assert {c["memory_bytes"]["weights"] for c in found["considered"]} <= set(stored.values())


def test_a_config_without_sizes_is_an_error_not_a_traceback(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    sets = (f"model.base={tmp_path}", "model.family=llama")

    with pytest.raises(FastsftError) as refused:
        plan("qwen2.5-7b", *sets, vram=24)

    assert refused.value.hint


# The past


def test_without_runs_the_history_says_what_fills_it(capsys: pytest.CaptureFixture[str]):
    planning.history(json=False)

    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no finished run yet; `fastsft train` writes each one into" in shown.err


def test_predicted_and_measured_stand_beside_each_other_with_the_signed_error(
    capsys: pytest.CaptureFixture[str],
):
    setting = {"quantization": "nf4", "checkpointing": "unsloth", "rows": 2, "length": 2048}
    sizes = {"process_bytes": 11 * 2.0**30, "step_s": 2.0}
    taken = {"process_bytes": 10 * 2.0**30, "step_s": 2.5}
    history._append(Entry(0.0, "run-1", "NVIDIA L40S", "base", setting, sizes, taken))

    planning.history(json=False)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    planning.history(json=True)
    (record,) = json.loads(capsys.readouterr().out)

    assert lines == [
        ["run-1", "L40S", "process", "11.0 GiB", "10.0 GiB", "+10.0%"],
        ["run-1", "L40S", "s a step", "2 s", "2.5 s", "-20.0%"],
    ]
    assert record["ratio"]["step_s"] == 1.25


# Before training


def prepared(length: int) -> Prepared:
    """As much of prepared rows as settling looks at."""
    report = SimpleNamespace(tokens=40 * length, trained_tokens=20 * length)
    rows = SimpleNamespace(lengths=np.full(40, length))
    return cast("Prepared", SimpleNamespace(train=rows, report=report))


def base_in(folder: Path, config: dict[str, object]) -> Base:
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return cast("Base", SimpleNamespace(folder=folder))


def test_a_run_is_settled_for_the_gpu_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_gpu(monkeypatch, cases.gpu())
    recipe, shape = cases.shipped("llama-3.1-8b")

    found = commands.settle(recipe, base_in(tmp_path, shapes.config_of(shape)), prepared(500))

    assert found.recipe.train.gradient_checkpointing == "none"
    facts = plan_words.settled(found)
    assert facts["gradient checkpointing"].startswith("none: every layer's activations fit, ")
    assert re.fullmatch(r"up to \d+\.\d GiB of 23\.3 GiB \(estimate\)", facts["memory"])


def test_a_base_that_the_planner_cannot_read_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_gpu(monkeypatch, cases.gpu())
    recipe, _ = cases.shipped("llama-3.1-8b")

    found = commands.settle(recipe, base_in(tmp_path, {"model_type": "llama"}), prepared(900))

    assert found.recipe == recipe
    assert plan_words.settled(found) == {}


def test_on_a_cpu_nothing_is_decided_that_was_not_open(tmp_path: Path):
    recipe, shape = cases.shipped("qwen2.5-0.5b")

    found = commands.settle(recipe, base_in(tmp_path, shapes.config_of(shape)), prepared(100))

    assert found.recipe == recipe
    assert plan_words.settled(found) == {}
    assert found.planned["predicted"]["host_bytes"] > 2**30


# As a command


def test_the_command_needs_no_torch_and_tells_errors_in_a_line(tmp_path: Path):
    command = [sys.executable, "-c", CODE, "plan", "qwen2.5-7b", "--gpu", "rtx-4091"]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr.startswith("error: --gpu: ")
    assert "Traceback" not in done.stderr
