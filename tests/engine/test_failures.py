"""What goes wrong is said, costs no checkpoint, and can be resumed to the same end."""

import errno
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from crash_harness import Ended, Server

from fastsft import events, launch
from fastsft.engine import checkpoint
from fastsft.errors import TrainError
from fastsft.run import Run, locked

NewRun = Callable[..., Run]
Digest = Callable[[str], dict[str, Any]]
NAN = {
    "loss": {"nan_loss": {"step": 3}},
    "gradient": {"gradient": {"step": 3, "factor": math.nan}},
}


def refused(ended: Ended, error: str) -> events.Failed:
    """The Failed event of a child that ended with exit code 4."""
    failed = ended.only(events.Failed)
    assert (ended.code, failed.exit_code, failed.error) == (4, 4, error)
    assert failed.hint
    assert ended.events[-1] == failed
    return failed


def last_good(run: Run) -> int:
    """Step of the newest checkpoint, which is whole and holds numbers only."""
    found, passed_over = checkpoint.newest(run.checkpoints)
    assert found is not None and passed_over == []
    weights = safetensors.numpy.load_file(found.folder / "adapter_model.safetensors")
    assert all(math.isfinite(float(abs(tensor).sum())) for tensor in weights.values())
    return found.step


def resumes_to(server: Server, run: Run, expected: dict[str, Any], *, at: int | None) -> None:
    """Resume a run, nothing being wrong any more."""
    ended = server.train(run)

    assert ended.code == 0, run.log_path.read_text()[-3000:]
    assert [event.step for event in ended.all(events.Resumed)] == ([] if at is None else [at])
    assert server.digest(run) == expected


@pytest.mark.parametrize("what", NAN)
def test_a_value_that_is_no_number_stops_before_it_reaches_a_weight(
    server: Server, new_run: NewRun, uninterrupted: Digest, what: str
):
    run = new_run("short")

    ended = server.train(run, NAN[what])

    failed = refused(ended, "NonFiniteLoss")
    assert failed.where == "step 3"
    assert failed.what == f"{'the loss' if what == 'loss' else 'a gradient'} is not a finite number"
    assert ended.steps == [1, 2]
    assert last_good(run) == 2
    assert not run.is_finished
    resumes_to(server, run, uninterrupted("short"), at=2)


def test_a_first_step_without_any_gradient_is_refused(
    server: Server, new_run: NewRun, uninterrupted: Digest
):
    run = new_run("short")

    ended = server.train(run, {"gradient": {"step": 1, "factor": 0.0}})

    assert refused(ended, "NothingTrained").where == "step 1"
    assert checkpoint.newest(run.checkpoints) == (None, [])
    resumes_to(server, run, uninterrupted("short"), at=None)


# The disk.


def test_too_small_a_disk_is_refused_before_the_first_step(server: Server, new_run: NewRun):
    run = new_run("short")

    ended = server.train(run, {"little_disk": {"free": 1000}})

    assert "the checkpoints need up to" in refused(ended, "TrainError").what
    assert ended.steps == []


def test_a_resume_asks_for_no_more_disk_than_its_checkpoints_take(server: Server, new_run: NewRun):
    run = new_run("short")
    server.train(run, {"die_before_step": {"step": 4}})
    found, _ = checkpoint.newest(run.checkpoints)
    assert found is not None
    size = sum(path.stat().st_size for path in found.folder.iterdir())

    ended = server.train(run, {"little_disk": {"free": 5 * size}})  # two kept, one staged, spare

    assert (ended.code, ended.steps) == (0, [4])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def survives_a_full_disk(
    server: Server, run: Run, expected: dict[str, Any], *, left: int, filler: Path
) -> None:
    """The save of step 3 finds only `left` bytes; then there is room again."""
    sabotage = {"fill_disk": {"step": 3, "left": left, "filler": str(filler)}}
    ended = server.train(run, sabotage)

    failed = refused(ended, "TrainError")
    assert "the checkpoint could not be written" in failed.what
    assert failed.hint.startswith("free some space")
    assert last_good(run) == 2
    assert list(run.checkpoints.glob(".tmp-*")) == []
    filler.unlink()
    resumes_to(server, run, expected, at=2)


def test_a_disk_that_fills_up_costs_no_checkpoint(
    server: Server, new_run: NewRun, uninterrupted: Digest, small_disk: Path
):
    run = new_run("short", into=small_disk)

    survives_a_full_disk(
        server, run, uninterrupted("short"), left=60_000, filler=small_disk / "filler"
    )


@pytest.mark.slow
def test_a_disk_may_fill_up_at_any_byte_of_a_checkpoint(
    server: Server, new_run: NewRun, uninterrupted: Digest, small_disk: Path
):
    whole = new_run("short")
    server.train(whole)
    newest = whole.checkpoints / "step-000004"
    pages = sum(-(-path.stat().st_size // 4096) for path in newest.iterdir())

    for page in range(pages):
        run = new_run("short", f"page-{page}", into=small_disk)
        survives_a_full_disk(
            server, run, uninterrupted("short"), left=4096 * page, filler=small_disk / "filler"
        )
        shutil.rmtree(run.folder)
    print(f"{pages} places")


# One save: eight files, the manifest, the folder; after the rename its parent, then the events.
SAVE_FSYNCS = 12
FSYNCS = [
    pytest.param(1, errno.EIO, 1, id="first file", marks=pytest.mark.slow),
    pytest.param(9, errno.ENOSPC, 1, id="manifest"),
    pytest.param(10, errno.EIO, 1, id="folder", marks=pytest.mark.slow),
    pytest.param(11, errno.EIO, 2, id="parent"),
]


@pytest.mark.parametrize(("number", "code", "good"), FSYNCS)
def test_a_failed_fsync_fails_the_save(
    server: Server, new_run: NewRun, uninterrupted: Digest, number: int, code: int, good: int
):
    run = new_run("short")

    ended = server.train(run, {"failing_fsync": {"number": SAVE_FSYNCS + number, "code": code}})

    failed = refused(ended, "TrainError")
    assert "the checkpoint could not be written" in failed.what
    assert ended.steps == [1, 2]
    assert last_good(run) == good
    resumes_to(server, run, uninterrupted("short"), at=good)


def test_a_disk_that_fills_up_elsewhere_is_named_with_its_cure(server: Server, new_run: NewRun):
    run = new_run("short")

    # The adapter's fsyncs come after the four saves.
    ended = server.train(
        run, {"failing_fsync": {"number": 4 * SAVE_FSYNCS + 1, "code": errno.ENOSPC}}
    )

    failed = refused(ended, "TrainError")
    assert "No space left on device" in failed.what
    assert failed.hint.startswith("free some space")
    assert last_good(run) == 4


# Other processes.


def test_a_second_process_is_refused_by_the_first_ones_number(
    server: Server, new_run: NewRun, uninterrupted: Digest
):
    run = new_run("short")
    first = server.start(run, {"pause_before_step": {"step": 3}})
    assert first.until(lambda event: isinstance(event, events.Saved) and event.step == 2)
    before = run.events_path.read_bytes()

    second = server.train(run)

    assert second.code == 4
    assert f"process {first.pid} is working on this run" in run.log_path.read_text()
    assert run.events_path.read_bytes() == before, "the stream has one writer"
    first.signal(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    resumes_to(server, run, uninterrupted("short"), at=2)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_run_that_is_asked_to_stop_saves_first(
    server: Server, new_run: NewRun, uninterrupted: Digest, number: int
):
    run = new_run("best")
    child = server.start(run)
    assert child.until(lambda event: isinstance(event, events.Step) and event.step == 4)

    child.signal(number)
    ended = child.wait()

    assert ended.code == 0
    stopped = ended.events[-1]
    assert isinstance(stopped, events.Stopped)
    assert 4 <= stopped.step < stopped.total_steps == 12
    assert last_good(run) == stopped.step == ended.steps[-1]
    resumes_to(server, run, uninterrupted("best"), at=stopped.step)


def test_the_parent_names_the_process_that_holds_the_run(new_run: NewRun):
    run = new_run("short")

    with locked(run), pytest.raises(TrainError, match=f"process {os.getpid()} is working"):
        launch.train(run, lambda event: None)


def test_an_event_that_was_cut_short_takes_no_other_with_it(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "note", "te')

    log = events.Log(path)
    log.write(events.Note(text="whole"))
    log._file.close()

    assert [event.text for event, _ in events.read(path)] == ["whole"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 8128 vs 8016"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_a_full_disk_is_known_in_the_words_of_every_library(error: Exception):
    assert checkpoint.is_disk_error(error)
    assert not checkpoint.is_disk_error(RuntimeError("shape mismatch"))
