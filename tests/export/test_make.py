"""Whole exports of a finished run: what lies in the folder, what is kept, what is refused."""

import json
from pathlib import Path

import finished_run
import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from fastsft.errors import ExportError
from fastsft.export import llamacpp, make, make_gguf, quantize, record, trained
from fastsft.export.make import Order
from fastsft.export.trained import Trained


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained.opened(finished_run.make(tmp_path_factory.mktemp("made")))


def write(found: Trained, out: Path, *quants: str, overwrite: bool = False) -> make_gguf.GgufMade:
    order = Order(out, overwrite=overwrite)
    return make_gguf.gguf_files(found, order, quants=quants, imatrix=None)


def refusal(found: Trained, out: Path, *quants: str, overwrite: bool = False) -> str:
    with pytest.raises(ExportError) as caught:
        write(found, out, *quants, overwrite=overwrite)
    return str(caught.value)


def test_an_export_says_what_it_is_and_that_it_is_unchecked(found, tmp_path):
    made = write(found, tmp_path / "gguf", "q8_0")

    names = sorted(path.name for path in made.out.iterdir())
    assert names == [
        *("Modelfile", "README.md", "UNVERIFIED", "export.json"),
        "tiny-qwen2.5-q8_0.gguf",
    ]
    told = record.read(made.out)
    file = told.files["tiny-qwen2.5-q8_0.gguf"]
    assert (told.kind, told.run, file.type) == ("gguf", found.run.folder.name, "q8_0")
    assert file == record.file_of(made.files["q8_0"], "q8_0")
    assert "FROM ./tiny-qwen2.5-q8_0.gguf\n" in (made.out / "Modelfile").read_text()


def test_another_type_joins_those_that_are_there(found, tmp_path):
    write(found, tmp_path / "gguf", "q8_0")
    before = record.read(tmp_path / "gguf").files

    made = write(found, tmp_path / "gguf", "f16", "bf16")

    after = record.read(tmp_path / "gguf").files
    assert {file.type for file in after.values()} == {"q8_0", "f16", "bf16"}
    assert before.items() <= after.items()
    assert record.file_of(made.out / "tiny-qwen2.5-q8_0.gguf", "q8_0") in before.values()


def test_a_type_that_is_there_is_replaced_only_when_asked(found, tmp_path):
    write(found, tmp_path / "gguf", "q8_0", "f16")

    assert "has tiny-qwen2.5-q8_0.gguf already" in refusal(found, tmp_path / "gguf", "q8_0")

    write(found, tmp_path / "gguf", "q8_0", overwrite=True)
    assert len(record.read(tmp_path / "gguf").files) == 2


def test_a_folder_that_is_no_export_is_never_touched(found, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")

    told = refusal(found, tmp_path / "photos", "q8_0", overwrite=True)

    assert "is not an exported model, so it is not overwritten" in told
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"


def test_another_runs_export_is_never_replaced(found, tmp_path):
    other = trained.opened(finished_run.make(tmp_path / "other", "tiny-llama"))
    write(other, tmp_path / "gguf", "q8_0")

    told = refusal(found, tmp_path / "gguf", "f16", overwrite=True)

    assert "holds an export of another run or kind" in told


def test_a_type_that_nobody_has_is_refused_with_the_nearest(found, tmp_path):
    told = refusal(found, tmp_path / "gguf", "q5_km")

    assert "q5_km is not a type that llama.cpp quantises to" in told
    assert "did you mean q5_k_m?" in told
    assert list(tmp_path.iterdir()) == []


def test_a_template_that_ollama_cannot_have_is_refused_before_anything_is_written(
    found, tmp_path, monkeypatch
):
    def refused(*_: object, **__: object) -> None:
        raise ExportError("cannot be said", where="Modelfile", hint="serve it with llama.cpp")

    monkeypatch.setattr(make_gguf.ollama, "modelfile", refused)
    monkeypatch.setattr(make_gguf.gguf, "write", lambda *_, **__: pytest.fail("it was written"))

    assert "cannot be said" in refusal(found, tmp_path / "gguf", "q8_0")
    assert list(tmp_path.iterdir()) == []


def test_k_quants_without_llama_cpp_say_what_to_type(found, tmp_path, monkeypatch):
    monkeypatch.setattr(llamacpp, "installed", lambda: None)
    monkeypatch.setenv("PATH", "")

    told = refusal(found, tmp_path / "gguf", "q8_0", "q4_k_m")

    assert "uv sync --extra gguf" in told
    assert "pip install llama-cpp-python==" in told
    assert "or --quant q8_0, which needs neither" in told
    assert list(tmp_path.iterdir()) == []


def test_k_quants_are_made_from_a_passing_file_that_is_as_ours(found, tmp_path, llama_cpp):
    made = write(found, tmp_path / "gguf", "q4_k_m")

    assert [path.name for path in made.out.glob("*.gguf")] == ["tiny-qwen2.5-q4_k_m.gguf"]
    source = write(found, tmp_path / "f16", "f16").files["f16"]
    quantize.run(source, tmp_path / "again.gguf", "q4_k_m")
    assert (tmp_path / "again.gguf").read_bytes() == made.files["q4_k_m"].read_bytes()


def test_merging_onto_the_dequantised_base_gives_other_weights(tmp_path):
    run = finished_run.make(tmp_path / "nf4", "tiny-qwen2.5", "model.quantization=nf4")
    found = trained.opened(run)

    for merge_base in ("stored", "dequantised"):
        order = Order(tmp_path / merge_base, merge_base=merge_base)
        make.merged(found, order, dtype="float32", max_shard_bytes=2**30)

    stored, seen = (
        load_file(tmp_path / n / "model.safetensors") for n in ("stored", "dequantised")
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert 0 < np.abs(stored[name] - seen[name]).max() < 0.2 * np.abs(stored[name]).max()
    assert np.array_equal(stored["model.norm.weight"], seen["model.norm.weight"])
    assert record.read(tmp_path / "dequantised").merge_base == "dequantised"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dequantised", "nf4", "stored"]


def test_a_merged_folder_has_the_record_and_a_card(found, tmp_path):
    make.merged(found, Order(tmp_path / "merged"), dtype="base", max_shard_bytes=2**30)

    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"README.md", "UNVERIFIED", "export.json", "model.safetensors"} <= names
    assert record.read(tmp_path / "merged").files["model.safetensors"].type == "base"


def test_the_gguf_says_whose_child_it_is(found, tmp_path):
    made = write(found, tmp_path / "gguf", "f16")

    fields = gguf.GGUFReader(made.files["f16"]).fields
    assert fields["general.name"].contents() == "tiny-qwen2.5"
    assert fields["general.base_model.0.name"].contents() == "tiny:qwen2.5"
    assert fields["general.tags"].contents() == ["fastsft", "sft"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("{}", "is damaged"), ("[1]", "is not a JSON object"), ("{", "is not JSON")],
)
def test_a_damaged_record_is_refused_by_name(tmp_path, text, why):
    (tmp_path / record.NAME).write_text(text)

    with pytest.raises(ExportError, match=why):
        record.read(tmp_path)


def test_a_record_that_leads_out_of_its_folder_is_refused(found, tmp_path):
    write(found, tmp_path / "gguf", "q8_0")
    path = tmp_path / "gguf" / record.NAME
    told = json.loads(path.read_text())
    told["files"] = {"../../etc/passwd": next(iter(told["files"].values()))}
    path.write_text(json.dumps(told))

    with pytest.raises(ExportError, match="no plain file name"):
        record.read(tmp_path / "gguf")
