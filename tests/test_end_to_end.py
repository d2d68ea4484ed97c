"""One small run through the public commands: train, resume, export, chat."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastsft import base, events, launch, start
from fastsft.errors import ExportError, TrainError
from fastsft.export.trained import opened
from fastsft.run import Run, locked, open_run
from fastsft.sampling import Sampler, sampler

DEMO = Path(start.__file__).parent / "demo" / "train.jsonl"
SETS = ("engine=reference", "train.steps=3", "train.micro_batch_rows=4", "train.save_every_steps=2")


def fastsft(*words: object, text: str = "") -> "subprocess.CompletedProcess[str]":
    code = "from fastsft.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, input=text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A finished run, and what `fastsft train` printed on stdout."""
    folder = tmp_path_factory.mktemp("run")
    data = shutil.copy(DEMO, folder / "rows.jsonl")
    sets = [word for key in SETS for word in ("--set", key)]
    done = fastsft("train", "tiny-qwen2.5", "--data", data, *sets, "--runs", folder / "runs")
    assert done.returncode == 0, done.stderr
    return open_run(Path(done.stdout.strip())), done.stdout


def contents(run: Run) -> dict[str, bytes]:
    files = (path for path in run.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in files}


def unfinished(run: Run, folder: Path) -> Run:
    """The run as it was when it had been killed after step 2."""
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    return Run(folder)


def test_stdout_is_the_run_folder_alone(trained):
    run, out = trained

    assert out == f"{run.folder}\n"


def test_the_run_folder_tells_what_happened(trained):
    run, _ = trained

    kinds = [event.kind for event, _ in events.read(run.events_path)]
    assert [kind for kind in kinds if kind not in ("phase", "saved")] == [
        "settings",
        "preflight",
        *["step"] * 3,
        "measured",
        "finished",
    ]
    manifest = run.manifest()
    assert manifest["requested_versus_effective"] == {}
    assert manifest["identity"]["stack"]["trl"] == "1.15.0"
    ledger = json.loads((run.folder / "ledger.json").read_text())
    assert ledger["rows_in"] == ledger["train"] == 600


def test_the_adapter_names_its_base_as_the_recipe_does(trained):
    run, _ = trained

    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny:qwen2.5"
    assert (run.adapter / "tokenizer.json").is_file()


def test_resuming_a_finished_run_three_times_changes_nothing(trained):
    run, _ = trained
    before = contents(run)

    told = [fastsft("train", "--resume", run.folder) for _ in range(3)]

    assert all(done.returncode == 0 for done in told)
    assert all("finished already; nothing to do" in done.stderr for done in told)
    assert contents(run) == before


def test_a_killed_run_resumes_to_the_same_adapter(trained, tmp_path: Path):
    run, _ = trained
    killed = unfinished(run, tmp_path / "killed")

    done = fastsft("train", "--resume", killed.folder)

    assert done.returncode == 0, done.stderr
    assert "resuming from step-000002" in done.stderr
    name = "adapter_model.safetensors"
    assert (killed.adapter / name).read_bytes() == (run.adapter / name).read_bytes()


def change_recipe(run: Run) -> None:
    text = run.recipe_path.read_text()
    run.recipe_path.write_text(text.replace("learning_rate: 0.002", "learning_rate: 0.001"))


def change_data(run: Run) -> None:
    Path(run.recipe().data.path or "").write_text("other")


def change_stack(run: Run) -> None:
    identity = run.manifest()["identity"]
    stack = {**identity["stack"], "trl": "0.1"}
    run.update_manifest({"identity": {**identity, "stack": stack}})


def change_base(run: Run) -> None:
    run.update_manifest({"identity": {**run.manifest()["identity"], "base": "other"}})


CHANGES = {
    "recipe": change_recipe,
    "stack": change_stack,
    "base": change_base,
    "data": change_data,
}


@pytest.fixture
def data_kept(trained) -> Iterator[None]:
    path = Path(trained[0].recipe().data.path)
    kept = path.read_bytes()
    yield
    path.write_bytes(kept)


@pytest.mark.parametrize("part", CHANGES)
def test_a_change_since_the_run_began_is_refused_by_name(
    trained, tmp_path: Path, data_kept, part: str
):
    run = unfinished(trained[0], tmp_path / "changed")
    CHANGES[part](run)

    with pytest.raises(TrainError, match=f"{part} changed since the run began"):
        start.check_unchanged(run, allowed=[])
    assert start.check_unchanged(run, allowed=[part]) == [part]


def test_a_run_that_another_process_holds_is_refused_by_its_pid(trained, tmp_path: Path):
    run = unfinished(trained[0], tmp_path / "held")

    with locked(run):
        done = fastsft("train", "--resume", run.folder)

    assert done.returncode == 4
    assert f"process {os.getpid()} is working on this run" in done.stderr
    assert (run.folder / "lock").read_text() == str(os.getpid())


def test_damaged_token_arrays_are_refused(trained, tmp_path: Path):
    run = unfinished(trained[0], tmp_path / "damaged")
    raw = bytearray(run.tokens_path.read_bytes())
    raw[-1] ^= 1
    run.tokens_path.write_bytes(raw)

    done = fastsft("train", "--resume", run.folder)

    assert done.returncode == 2
    assert "tokens.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_export_writes_weights_that_transformers_loads(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, _ = trained
    done = fastsft("export", run.folder, "--to", "merged", "--no-verify")

    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    _, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in generation["eos_token_id"]
    again = fastsft("export", run.folder)
    assert again.returncode == 5
    assert "exists already" in again.stderr


def test_export_of_another_base_is_refused(trained, tmp_path: Path):
    shutil.copytree(trained[0].folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    change_base(run)

    with pytest.raises(ExportError, match="the base is not the one that was trained"):
        opened(run)


def test_export_of_an_unfinished_run_is_refused(trained, tmp_path: Path):
    run = unfinished(trained[0], tmp_path / "unfinished")

    done = fastsft("export", run.folder)

    assert done.returncode == 4
    assert "the run is not finished" in done.stderr


def test_chat_answers_each_line_and_stops_at_the_stop_token(trained):
    run, _ = trained

    done = fastsft("chat", run.folder, "--max-tokens", 8, text="hello\n\n/new\nwhere?\n")

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
    assert "<|im_end|>" not in done.stdout


@pytest.fixture(scope="module")
def answering() -> Iterator[Sampler]:
    from fastsft.data.tokenizer import ChatTokenizer

    folder = base.resolve(_model()).folder
    with sampler(folder, ChatTokenizer.load(folder)) as opened:
        yield opened


def _model():
    from fastsft.recipe import Model

    return Model.model_validate({"base": "tiny:qwen2.5", "family": "qwen2.5"})


def test_streamed_and_batched_answers_are_the_same(answering: Sampler):
    chats = [[{"role": "user", "content": text}] for text in ("Hello.", "我想退款，订单1234。")]

    batched = answering.answers(chats, max_tokens=12)

    streamed = ["".join(answering.stream(c, max_tokens=12, temperature=0)) for c in chats]
    assert batched == streamed


def test_a_child_that_dies_is_named_with_the_way_on(trained):
    run, _ = trained

    with pytest.raises(TrainError, match="ended by SIGKILL") as error:
        launch._verdict(None, -9, run)
    assert "--resume" in error.value.hint


def test_the_child_gets_no_secrets_and_no_network(monkeypatch, tmp_path: Path):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "MY_SECRET", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "canary")

    plain = launch.environment(tmp_path)

    assert "canary" not in plain.values()
    assert plain["HF_HUB_OFFLINE"] == "1"
    assert plain["UNSLOTH_AUTO_INSTALL"] == "0"
    assert launch.environment(tmp_path, trackers=True)["WANDB_API_KEY"] == "canary"
