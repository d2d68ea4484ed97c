"""A scored model says what transformers says of the same tokens, and its failures are told."""

import json
import shutil
from pathlib import Path

import finished_run
import numpy as np
import pytest
import torch
from tiny_models import quietly
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastsft import scoring
from fastsft.child import started
from fastsft.demo import tiny
from fastsft.errors import ExportError
from fastsft.export.merge import merge
from fastsft.scoring import Loss, Nf4, Process

IDS = [5, 300, 12, 900, 44, 71, 8, 1500]
LABELS = [-100, -100, -100, 900, 44, -100, 8, 1500]
GIB = 2**30


@pytest.fixture(scope="module")
def base() -> Path:
    return tiny.folder("llama")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "adapter"
    finished_run.write_adapter(folder, base)
    return folder


def model(folder: Path) -> torch.nn.Module:
    return quietly(AutoModelForCausalLM.from_pretrained, folder, dtype=torch.float32).eval()


def test_logits_are_those_of_transformers_for_every_position(scoring_process: Process, base: Path):
    with torch.no_grad():
        expected = model(base)(input_ids=torch.tensor([IDS])).logits[0].numpy()

    with scoring_process.opened(base, dtype="float32") as scorer:
        found = scorer.logits(IDS)

    assert (found.dtype, found.shape) == (np.float32, (len(IDS), 2048))
    assert np.abs(found - expected).max() < 1e-4


def test_the_loss_is_that_of_transformers_over_the_trained_labels(
    scoring_process: Process, base: Path
):
    ids, labels = torch.tensor([IDS]), torch.tensor([LABELS])
    with torch.no_grad():
        expected = float(model(base)(input_ids=ids, labels=labels).loss)

    with scoring_process.opened(base, dtype="float32") as scorer:
        one = scorer.loss([(IDS, LABELS)])
        none = scorer.loss([(IDS, [7, *[-100] * 7])])  # nothing comes before the first token

    assert one.tokens == 4
    assert one.mean == pytest.approx(expected, rel=1e-5)
    assert none == Loss(0.0, 0)


def test_greedy_tokens_are_the_likeliest_whatever_the_generation_config_says(
    scoring_process: Process, base: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    settings = {"repetition_penalty": 9.0, "do_sample": True, "temperature": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))

    with scoring_process.opened(folder, dtype="float32") as scorer:
        found = scorer.greedy(IDS, max_tokens=12, stop_ids=[])
        said = scorer.logits([*IDS, *found])

    likeliest = said[len(IDS) - 1 : -1].argmax(axis=1).tolist()
    assert found == likeliest
    assert len(found) == 12


def test_greedy_tokens_end_with_the_first_stop_id(scoring_process: Process, base: Path):
    with scoring_process.opened(base, dtype="float32") as scorer:
        free = scorer.greedy(IDS, max_tokens=8, stop_ids=[])
        stopped = scorer.greedy(IDS, max_tokens=8, stop_ids=[free[3]])

    assert stopped == free[: free.index(free[3]) + 1]


def test_an_adapter_on_its_base_says_what_the_merged_model_says(
    scoring_process: Process, base: Path, adapter: Path, tmp_path: Path
):
    merge(base, adapter, tmp_path / "merged", stop_ids=[2039], dtype="float32")

    with (
        scoring_process.opened(base, dtype="float32") as plain,
        scoring_process.opened(base, adapter=adapter, dtype="float32") as adapted,
        scoring_process.opened(tmp_path / "merged", dtype="float32") as merged,
    ):
        without, on_base, as_merged = (s.logits(IDS) for s in (plain, adapted, merged))

    assert np.abs(on_base - as_merged).max() < 1e-3
    assert np.abs(on_base - without).max() > 0.1


def test_a_merged_folder_loads_in_transformers_as_it_stands(
    base: Path, adapter: Path, tmp_path: Path
):
    merge(base, adapter, tmp_path / "merged", stop_ids=[2039], pad_id=2040)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")

    chat = [{"role": "user", "content": "hello"}]
    original = AutoTokenizer.from_pretrained(base).apply_chat_template(chat, tokenize=False)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == original
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.eos_token_id == [2039]


def test_a_model_is_let_go_and_the_process_with_its_block(base: Path):
    with scoring.process() as process:
        pass

    assert process.child.process.returncode is not None
    assert not process.child.scratch.exists()


def test_a_model_that_fits_nowhere_is_refused_with_the_sizes(
    base: Path, scoring_process: Process, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fastsft.hardware.gpu", lambda: None)
    monkeypatch.setattr("fastsft.scoring.memory_free", lambda: GIB)

    with (
        pytest.raises(ExportError, match=r"needs 1\.0 GiB of memory as float32, 1\.0 GiB is free"),
        scoring_process.opened(base, dtype="float32"),
    ):
        pass


def test_memory_is_that_of_the_weights_as_they_are_held(base: Path, adapter: Path):
    held = {
        name: scoring.bytes_needed(base, *options) - scoring._AROUND_BYTES
        for name, options in {"float32": ("float32",), "bfloat16": ("bfloat16",)}.items()
    }
    nf4 = scoring.bytes_needed(base, "bfloat16", nf4=Nf4()) - scoring._AROUND_BYTES
    adapted = scoring.bytes_needed(base, "float32", adapter=adapter) - scoring._AROUND_BYTES

    assert held["float32"] == 2 * held["bfloat16"]
    assert nf4 < 0.5 * held["bfloat16"]  # its embedding is a seventh, and stays
    assert adapted == held["float32"] + (adapter / "adapter_model.safetensors").stat().st_size


def test_a_process_that_is_killed_is_told(base: Path):
    with scoring.process() as process, pytest.raises(ExportError, match="SIGKILL") as caught:
        process.child.process.kill()
        with process.opened(base, dtype="float32"):
            pass

    assert caught.value.where == "scoring"
    assert "memory" in caught.value.hint


def test_the_last_line_of_a_child_that_died_is_told():
    with (
        started("fastsft.no_such_module", [], name="a child") as child,
        pytest.raises(ExportError, match=r"a child: the process ended with code 1: .*No module"),
    ):
        child.read()


def test_an_adapter_that_would_be_unpickled_is_refused(
    base: Path, scoring_process: Process, tmp_path: Path
):
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")

    with (
        pytest.raises(ExportError, match=r"has no adapter_model\.safetensors"),
        scoring_process.opened(base, adapter=tmp_path, dtype="float32"),
    ):
        pass
