"""Hugging Face datasets: what is an id, and what a set that cannot be had is told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastsft.data import hub
from fastsft.data.rows import DataFile

READ = """
import json, sys
from fastsft.data import files, hub
from fastsft.data.rows import parse
from fastsft.errors import DataError
path, config, split = json.loads(sys.argv[1])
try:
    rows = [
        [row.file, row.line, row.value]
        for batch in files.batches(hub.data_file(path, config, split))
        for row in parse(batch)
    ]
    print(json.dumps({"rows": rows, "torch": "torch" in sys.modules}))
except DataError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def read(tmp_path: Path):
    """Reads in a process of its own, without a network and with a cache of its own."""

    def read(path: str, split: str | None, config: str | None = None) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", READ, json.dumps([path, config, split])],
            env={
                "HF_HOME": str(tmp_path / "cache"),
                "HF_HUB_OFFLINE": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "PATH": "/usr/bin:/bin",
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return read


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder of two splits; the first has more rows than a batch."""
    folder = tmp_path / "made"
    folder.mkdir()
    rows = [{"question": f"q{number}", "answer": None} for number in range(299)]
    rows.append({"question": "last", "answer": "yes"})
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "test.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    return folder


@pytest.mark.parametrize("path", ["tatsu-lab/alpaca", "a/b.c-d_e", "org/name.v2"])
def test_an_owner_and_a_name_are_a_dataset(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)

    assert hub.is_dataset_id(path)


@pytest.mark.parametrize(
    "path",
    ["alpaca", "./a/b", "/a/b", "a/b/c", "~/a", "a/train.jsonl", "a/b.CSV.gz", "here/absent"],
)
def test_what_looks_like_a_path_is_none(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()

    assert not hub.is_dataset_id(path)


def test_a_dataset_is_one_file_without_a_path():
    assert hub.data_file("a/b", "c", "train", "main") == DataFile(
        None, "a/b", "hub", config="c", split="train", revision="main"
    )


def test_a_split_is_read_row_by_row_and_without_torch(read: Any, dataset: Path):
    found = read(str(dataset), "train")

    assert found["torch"] is False
    assert len(found["rows"]) == 300
    assert found["rows"][0] == [str(dataset), 1, {"question": "q0"}]
    assert found["rows"][299] == [str(dataset), 300, {"question": "last", "answer": "yes"}]


def test_a_split_must_be_named_and_those_there_are_are_told(read: Any, dataset: Path):
    assert read(str(dataset), None)["error"] == (
        f"{dataset}: no split is named; the dataset has train, test\n"
        f"  hint: name one in data.sources: {{path: {dataset}, split: train}}"
    )


def test_an_unknown_split_is_told_with_those_there_are(read: Any, dataset: Path):
    error = read(str(dataset), "nope")["error"]

    assert error.startswith(f'{dataset}: cannot be loaded: Unknown split "nope". Should be one of')
    assert "hint: name its config, split and revision" in error


def test_an_unknown_config_is_told_with_those_there_are(read: Any, dataset: Path):
    error = read(str(dataset), "train", "nope")["error"]

    assert "cannot be loaded: BuilderConfig 'nope' not found. Available: ['default']" in error


@pytest.mark.parametrize("split", ["train", None])
def test_without_a_network_the_cure_is_told(read: Any, split: str | None):
    assert read("fastsft-tests/absent", split)["error"] == (
        "fastsft-tests/absent: cannot be downloaded, and is not in the cache\n"
        "  hint: connect to the network once, or save it to a file and name that"
    )


def test_a_dataset_that_is_code_is_refused_and_not_run(read: Any, tmp_path: Path):
    (tmp_path / "coded").mkdir()
    (tmp_path / "coded/coded.py").write_text("open('ran', 'w').close()\n")

    error = read(str(tmp_path / "coded"), "train")["error"]

    assert "cannot be loaded: Dataset scripts are no longer supported" in error
    assert "converted to Parquet first" in error
    assert not (tmp_path / "ran").exists()
