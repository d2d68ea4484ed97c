"""The verbs `export` and `verify` as a person types them: answers, refusals, exit codes."""

import subprocess
import sys

import finished_run
import pytest

from fastsft.errors import ExportError
from fastsft.exporting import Asked, export, run_folder_of, verify_export
from fastsft.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run.make(tmp_path_factory.mktemp("exporting"))


def fastsft(*words: object) -> "subprocess.CompletedProcess[str]":
    code = "from fastsft.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_answer_is_the_folder_and_the_gate_is_heard(run, tmp_path):
    out = tmp_path / "gguf"

    done = fastsft("export", run.folder, "--to", "gguf", "--quant", "q8_0", "--out", out)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert "writing q8_0: 0.00 GiB on disk, 0.6 GiB of memory" in done.stderr
    assert "structure: weights\ttiny-qwen2.5-q8_0.gguf\tpassed" in done.stderr
    assert f"ollama create tiny-qwen2.5-q8_0 -f {out / 'Modelfile'}" in done.stderr

    (out / "tiny-qwen2.5-q8_0.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    again = fastsft("verify", out, "--run", run.folder)

    assert again.returncode == 5
    assert "does not behave like what was trained: bytes of tiny-qwen2.5-q8_0.gguf" in again.stderr
    assert "Traceback" not in again.stderr
    assert (out / "UNVERIFIED").is_file()
    assert (out / "tiny-qwen2.5-q8_0.gguf").is_file()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked("onnx"), "--to: onnx is not offered"),
        (Asked("merged", quants="q8_0"), "--quant: says nothing about --to merged"),
        (Asked("gguf", dtype="float16"), "--dtype: says nothing about --to gguf"),
        (
            Asked("gguf-lora", merge_base="stored"),
            "--merge-base: says nothing about --to gguf-lora",
        ),
        (Asked("gguf", quants="q8_0,q8_0"), "--quant: a type is named twice"),
        (Asked("gguf", quants="q8"), "--quant: q8 is not a type that llama.cpp quantises to"),
        (Asked("gguf", merge_base="nf4"), "--merge-base: nf4 is not offered"),
        (Asked("merged", dtype="int8"), "--dtype: int8 is not offered"),
        (Asked("merged", merge_base="dequantised"), "there is nothing to dequantise"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, asked, told):
    run = finished_run.make(tmp_path / "plain", "tiny-qwen2.5", "model.quantization=none")

    with pytest.raises(ExportError) as caught:
        export(run.folder, asked)

    assert told in str(caught.value)
    assert not run.exports.exists()


def test_an_export_outside_its_run_needs_to_be_told_the_run(tmp_path):
    with pytest.raises(ExportError, match="pass --run with the run's folder"):
        run_folder_of(tmp_path)


def test_a_folder_that_is_no_export_is_not_checked(tmp_path):
    with pytest.raises(ExportError, match=r"is not an export: it has no export\.json"):
        verify_export(tmp_path, None, as_json=False)
