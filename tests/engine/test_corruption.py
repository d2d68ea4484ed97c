"""Whatever happens to a checkpoint's files is seen: an older one is used, or none."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_harness import Server

from fastsft import events
from fastsft.engine import checkpoint
from fastsft.run import Run

FILES = (
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "fastsft.json",
    "manifest.json",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
)
NewRun = Callable[..., Run]
Digest = Callable[[str], dict[str, Any]]


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path: Path, bit: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    bit = 4 * len(data) if bit is None else bit  # the middle
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGES = (delete, empty, halve, flip)
CELLS = [pytest.param(f, d, id=f"{f}-{d.__name__}") for f in FILES for d in DAMAGES]


@pytest.fixture(scope="session")
def halfway(
    server: Server, ready: Callable[[str], Run], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A run that died with the checkpoints of steps 6 and 7."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    run = Run(Path(shutil.copytree(ready("nf4").folder, folder)))
    server.train(run, {"die_before_step": {"step": 8}})
    assert [path.name for path in checkpoint.candidates(run.checkpoints)] == [
        "step-000007",
        "step-000006",
    ]
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_matrix_names_every_file_of_a_checkpoint(halfway: Run):
    newest = halfway.checkpoints / "step-000007"

    assert tuple(sorted(path.name for path in newest.iterdir())) == FILES


@pytest.mark.parametrize(("file", "damage"), CELLS)
def test_damage_is_seen_and_the_file_is_named(
    halfway: Run, new_run: NewRun, file: str, damage: Callable[[Path], None]
):
    run = new_run(halfway)
    damage(run.checkpoints / "step-000007" / file)

    found, passed_over = checkpoint.newest(run.checkpoints)

    assert found is not None and found.step == 6
    (told,) = passed_over
    assert told.startswith(f"step-000007: {file} ")


def test_no_flipped_bit_is_overlooked(halfway: Run, new_run: NewRun):
    folder = new_run(halfway).checkpoints / "step-000007"
    dice = random.Random(1)

    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for bit in dice.sample(range(8 * len(whole)), 300 if path.name == "manifest.json" else 20):
            flip(path, bit)
            with pytest.raises(ValueError):
                checkpoint.check(folder)
            path.write_bytes(whole)

    assert checkpoint.check(folder).step == 7


def resume_identical(server: Server, run: Run, expected: dict[str, Any], file: str) -> None:
    """Resume a run whose newest checkpoint is damaged; it must fall back and end the same."""
    ended = server.train(run)

    assert ended.code == 0, run.log_path.read_text()[-3000:]
    resumed = ended.only(events.Resumed)
    assert resumed.step == 6
    assert [entry.split(" ")[:2] for entry in resumed.passed_over] == [["step-000007:", file]]
    assert ended.steps == list(range(7, 13))
    assert len(list(run.checkpoints.glob("damaged-*-step-000007"))) == 1
    assert server.digest(run) == expected


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param("rng_state.pth", delete, id="missing-random-state"),
        pytest.param("adapter_model.safetensors", flip, id="flipped-weight"),
    ],
)
def test_a_resume_falls_back_and_ends_the_same(
    server: Server,
    halfway: Run,
    new_run: NewRun,
    uninterrupted: Digest,
    file: str,
    damage: Callable[[Path], None],
):
    run = new_run(halfway)
    damage(run.checkpoints / "step-000007" / file)

    resume_identical(server, run, uninterrupted("nf4"), file)


@pytest.mark.slow
def test_every_damage_to_every_file_ends_the_same(
    server: Server, halfway: Run, new_run: NewRun, uninterrupted: Digest, tmp_path: Path
):
    began = time.monotonic()
    for file in FILES:
        for damage in DAMAGES:
            run = new_run(halfway, f"{file}-{damage.__name__}")
            damage(run.checkpoints / "step-000007" / file)

            resume_identical(server, run, uninterrupted("nf4"), file)
    count = len(FILES) * len(DAMAGES)
    report = {"cells": count, "identical": count, "seconds": round(time.monotonic() - began, 1)}
    folder = Path(os.environ.get("FASTSFT_REPORT", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corruption.json").write_text(json.dumps(report))
    print(report)


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(
    server: Server, halfway: Run, new_run: NewRun
):
    run = new_run(halfway)
    halve(run.checkpoints / "step-000007" / "optimizer.pt")
    delete(run.checkpoints / "step-000006" / "scheduler.pt")
    before = content(run.checkpoints)

    ended = server.train(run)

    failed = ended.only(events.Failed)
    assert (ended.code, failed.error, failed.exit_code) == (4, "TrainError", 4)
    assert "step-000007: optimizer.pt has" in failed.what
    assert "step-000006: scheduler.pt is missing" in failed.what
    assert content(run.checkpoints) == before


def test_a_run_killed_before_its_result_is_finished_without_training(
    server: Server, new_run: NewRun, uninterrupted: Digest
):
    run = new_run("short")
    server.train(run, {"die_before_result": {}})
    assert not run.is_finished

    ended = server.train(run)

    assert (ended.code, ended.steps) == (0, [])
    assert ended.only(events.Finished).step == 4
    assert server.digest(run) == uninterrupted("short")


def test_a_finished_run_stays_as_it_is_however_often_it_is_trained(server: Server, new_run: NewRun):
    run = new_run("short")
    server.train(run)
    before = content(run.adapter), content(run.checkpoints)

    for _ in range(3):
        ended = server.train(run)

        assert (ended.code, ended.steps) == (0, [])
        assert (content(run.adapter), content(run.checkpoints)) == before


def test_a_damaged_best_checkpoint_is_named_at_the_end(
    server: Server, new_run: NewRun, uninterrupted: Digest
):
    run = new_run("best")
    best = uninterrupted("best")["progress"]["best_step"]
    server.train(run, {"die_before_result": {}})
    flip(run.checkpoints / checkpoint.name(best) / "adapter_model.safetensors")

    ended = server.train(run)

    failed = ended.only(events.Failed)
    assert (ended.code, failed.error) == (4, "TrainError")
    assert failed.what == "the best checkpoint is not whole: adapter_model.safetensors is damaged"
    assert failed.where == str(run.checkpoints / checkpoint.name(best))
    assert not run.is_finished


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path):
    for step in (999_998, 1_000_000, 999_999):
        (tmp_path / checkpoint.name(step)).mkdir()

    checkpoint.rotate(tmp_path, keep=2, protect=())

    assert [path.name for path in checkpoint.candidates(tmp_path)] == [
        "step-1000000",
        "step-999999",
    ]


def test_the_best_of_every_kept_checkpoint_is_kept(
    server: Server, new_run: NewRun, uninterrupted: Digest
):
    run = new_run("best")
    server.train(run, {"die_before_step": {"step": 10}})  # best: 5 until 9 was lower
    kept = [checkpoint.check(path).step for path in checkpoint.candidates(run.checkpoints)]
    flip(run.checkpoints / "step-000009" / "optimizer.pt")

    ended = server.train(run)

    assert kept == [9, 8, 5]
    assert ended.only(events.Resumed).step == 8
    assert server.digest(run) == uninterrupted("best")
