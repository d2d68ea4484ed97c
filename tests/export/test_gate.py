"""The parity gate passes what was trained, and each way to lie about it fails loudly."""

import dataclasses
import json
import shutil
from pathlib import Path

import finished_run
import gate_exports as exports
import numpy as np
import pytest

from fastsft import scoring
from fastsft.data import arrays
from fastsft.errors import ExportError
from fastsft.export import make, make_gguf, record, trained, verify, vocabulary
from fastsft.export.gate import behaviour, layout, speakers, structure, text
from fastsft.export.gate.expected import head_dim
from fastsft.export.gate.verdict import Check, Checks, Verdict
from fastsft.export.merge import merge
from fastsft.export.trained import Trained
from fastsft.weights import read_object


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained.opened(finished_run.make(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained.opened(finished_run.make(tmp_path_factory.mktemp("llama"), "tiny-llama"))


@pytest.fixture(scope="module")
def written(found: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exports.write(found, tmp_path_factory.mktemp("written") / "gguf", "q8_0")


@pytest.fixture(scope="module")
def texts(found: Trained) -> text.Texts:
    return text.Texts(found)


@pytest.fixture
def out(written: Path, tmp_path: Path) -> Path:
    """An honest q8_0 export, to tamper with."""
    return Path(shutil.copytree(written, tmp_path / "gguf"))


def judged(folder: Path, found: Trained) -> Verdict:
    """The gate's verdict on an export that must fail, and so is never asked for an answer."""
    verdict = verify.verify(folder, found)
    assert verdict.outcome == "failed"
    assert (folder / record.UNVERIFIED).is_file()
    assert json.loads((folder / record.VERDICT).read_text())["result"] == "failed"
    return verdict


def refusal(verdict: Verdict) -> str:
    with pytest.raises(ExportError) as caught:
        verdict.require()
    assert caught.value.exit_code == 5
    return str(caught.value)


def failed(verdict: Verdict | Checks) -> list[tuple[str, str]]:
    checks = verdict.checks if isinstance(verdict, Verdict) else verdict.found
    return [(check.area, check.name) for check in checks if check.result == "failed"]


def structure_of(folder: Path, found: Trained) -> Checks:
    made = record.read(folder)
    return structure.check(folder, made, found.base.folder, found.adapter)[0]


def text_of(folder: Path, texts: text.Texts) -> Checks:
    made = record.read(folder)
    return text.check(folder, made, texts, frozenset(made.files))


def verdict_of(checks: Checks) -> Verdict:
    return Verdict("export", "gguf", tuple(checks.found), (), {})


def only(checks: Checks) -> Check:
    (check,) = (check for check in checks.found if check.result == "failed")
    return check


@pytest.fixture(scope="module")
def known(found: Trained, written: Path, scoring_process: scoring.Process) -> behaviour.Reference:
    """What the adapter itself answers."""
    return behaviour.reference(found, record.read(written), scoring_process)


@pytest.mark.slow  # test_exporting sees a pass each day; this one says what is in it
def test_an_honest_export_passes_and_loses_its_mark(found, scoring_process, out, llama_cpp):
    verdict = verify.verify(out, found, process=scoring_process)

    assert [check for check in verdict.checks if check.result != "passed"] == []
    assert verdict.outcome == "passed"
    verdict.require()
    assert not (out / record.UNVERIFIED).exists()
    told = json.loads((out / record.VERDICT).read_text())
    assert told["result"] == "passed"
    assert told["files"] == {n: file.sha256 for n, file in record.read(out).files.items()}
    assert {check["area"] for check in told["checks"]} == {"structure", "text", "behaviour"}


def test_what_could_not_be_asked_leaves_the_mark_and_says_why(found, out, monkeypatch):
    def too_large(*_: object) -> None:
        raise ExportError("the model needs 28.4 GiB", where="base", hint="a larger machine")

    monkeypatch.setattr(behaviour, "reference", too_large)

    verdict = verify.verify(out, found)

    assert verdict.outcome == "passed in part"
    verdict.require()
    assert "the adapter on its base: the model needs 28.4 GiB" in (
        out / record.UNVERIFIED
    ).read_text("utf-8")
    assert "(a larger machine)" in verdict.summary


def test_prompts_are_held_out_rows_up_to_what_was_trained(found):
    _, held_out = arrays.load(found.run.tokens_path)

    prompts = behaviour.prompts(found)

    assert len(prompts) == min(behaviour.PROMPTS, len(held_out))
    ids, labels = held_out[0]
    first = int((labels != -100).argmax())
    assert prompts[0] == ids[:first].tolist()


def test_a_flipped_bit_is_found(found, out):
    path = exports.the_gguf(out)
    exports.flip_bit(path, path.stat().st_size - 1000)

    verdict = judged(out, found)

    assert f"bytes of {path.name}: changed since it was written: SHA-256" in refusal(verdict)
    assert "hint: export again with --overwrite" in refusal(verdict)


def test_swapped_tensors_are_found_though_the_hash_fits(found, out):
    path = exports.the_gguf(out)
    exports.swap(path, "blk.0.ffn_up.weight", "blk.1.ffn_up.weight")
    exports.vouch(out)

    verdict = verdict_of(structure_of(out, found))

    assert failed(verdict) == [("structure", "weights")]
    assert "blk.0.ffn_up.weight 180,224 of 180,224 values are not base + adapter" in refusal(
        verdict
    )


def test_another_chat_template_is_found(found, texts, out):
    exports.rewrite(out, found, chat_template="{{ messages[0].content }}")

    verdict = verdict_of(text_of(out, texts))

    assert failed(verdict) == [("text", "chat template")]
    assert "another template, must be the one that was trained" in refusal(verdict)


def test_a_modelfile_with_another_template_is_found(texts, out):
    path = out / "Modelfile"
    path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>model"))

    check = only(text_of(out, texts))

    assert (check.name, check.file) == ("token ids", "Modelfile")
    assert "conversations differ, the first at" in check.why


def test_a_stop_token_that_the_modelfile_lacks_is_found(texts, out):
    path = out / "Modelfile"
    path.write_text(path.read_text().replace('PARAMETER stop "<|im_end|>"\n', ""))

    verdict = verdict_of(text_of(out, texts))

    assert failed(verdict) == [("text", "stop tokens")]
    assert "['<|endoftext|>'], must be ['<|endoftext|>', '<|im_end|>']" in refusal(verdict)


def test_a_gguf_that_ends_turns_with_another_token_is_found(found, texts, out):
    ends = vocabulary.of(found).ends
    other = found.tokenizer.stop_ids[1]
    exports.rewrite(out, found, ends=dataclasses.replace(ends, eos_id=other))

    check = only(text_of(out, texts))

    assert check.name in ("stop ids", "vocabulary")  # by llama.cpp, or by reading without it
    assert f"EOS is {other}" in check.why


def test_an_adapter_that_changes_nothing_is_found(found, out, tmp_path):
    zero = exports.scaled_adapter(found.adapter, tmp_path / "adapter", 0)
    exports.rewrite(out, found, adapter=found.base.folder)  # the base as it is

    checks, _ = structure.check(out, record.read(out), found.base.folder, zero)

    check = only(checks)
    assert check.name == "adapter changes weights"
    assert check.why == "0 of 28 targets changed, must be 1 or more"
    assert "as it was before training" in check.cure


def test_a_converter_that_doubles_the_adapter_is_found(found, out, tmp_path):
    double = exports.scaled_adapter(found.adapter, tmp_path / "adapter", 2)
    exports.rewrite(out, found, adapter=double)

    verdict = verdict_of(structure_of(out, found))

    assert failed(verdict) == [("structure", "weights")]
    assert "values are not base + adapter" in refusal(verdict)


def test_a_converter_that_leaves_the_permutation_out_is_found(llama, tmp_path):
    out = exports.write(llama, tmp_path / "gguf", "f16")
    path = exports.the_gguf(out)
    name = "blk.1.attn_k.weight"
    tensor = exports.tensors(path)[name]
    rows = np.fromfile(path, np.uint8)[tensor.start : tensor.start + tensor.nbytes]
    config = read_object(llama.base.folder / "config.json")
    heads = rows.reshape(-1, head_dim(config), tensor.nbytes // tensor.rows)
    plain = np.empty_like(heads)
    plain[:, layout.rows_of_head(config)] = heads
    assert "weights" not in {name for _, name in failed(structure_of(out, llama))}

    exports.put(path, tensor, plain)
    exports.vouch(out)

    check = only(structure_of(out, llama))
    assert check.name == "weights"
    assert check.why.startswith(name)


def test_a_file_that_nobody_vouches_for_is_found(found, out):
    shutil.copyfile(exports.the_gguf(out), out / "other.gguf")

    check = only(structure_of(out, found))

    assert (check.file, check.why) == ("other.gguf", "export.json does not know it")


def test_an_export_of_another_run_is_found(found, out):
    made = record.read(out)
    record.write(out, dataclasses.replace(made, adapter_sha256="0" * 64))

    verdict = judged(out, found)

    assert failed(verdict) == [("structure", "origin")]
    assert "it was made from adapter 000000" in refusal(verdict)


def test_a_folder_that_is_no_export_is_refused(found, tmp_path):
    with pytest.raises(ExportError, match=r"is not an export: it has no export\.json"):
        verify.verify(tmp_path, found)


def test_without_llama_cpp_the_vocabulary_is_read_and_the_rest_is_named(texts, out, monkeypatch):
    monkeypatch.setattr(text.llamacpp, "installed", lambda: None)

    checks = text_of(out, texts)

    results = {(check.name, check.file): check for check in checks.found}
    name = exports.the_gguf(out).name
    assert results["vocabulary", name].result == "passed"
    assert results["token ids", "Modelfile"].result == "passed"
    left_out = results["token ids", name]
    assert (left_out.result, left_out.why) == ("not run", "llama-cpp-python is not installed")
    assert "uv sync --extra gguf" in left_out.cure


def test_a_token_at_another_id_is_found_without_llama_cpp(found, texts, out, monkeypatch):
    monkeypatch.setattr(text.llamacpp, "installed", lambda: None)
    tokens = list(vocabulary.of(found).tokens)
    tokens[300], tokens[301] = tokens[301], tokens[300]
    exports.rewrite(out, found, tokens=tuple(tokens))

    check = only(text_of(out, texts))

    assert check.name == "vocabulary"
    assert f"{tokens[301]!r} is {tokens[300]!r}" in check.why


def test_the_merged_folder_is_read_weight_by_weight(found, texts, tmp_path):
    out = merged(found, tmp_path / "merged")

    assert failed(structure_of(out, found)) == []
    assert failed(text_of(out, texts)) == []
    values = next(c for c in structure_of(out, found).found if c.name == "weights")
    assert (values.result, values.threshold) == ("passed", "bit-equal to base + adapter")


def test_a_merged_folder_with_another_template_or_stop_is_found(found, texts, tmp_path):
    out = merged(found, tmp_path / "merged")
    (out / "chat_template.jinja").write_text(
        (out / "chat_template.jinja").read_text().replace("<|im_start|>", "<|im_end|>")
    )
    settings = read_object(out / "generation_config.json")
    settings["eos_token_id"] = settings["eos_token_id"][:1]
    (out / "generation_config.json").write_text(json.dumps(settings))

    names = [name for _, name in failed(text_of(out, texts))]

    assert names == ["stop ids", "chat template", "token ids"]


def test_a_merged_tensor_that_is_another_is_found(found, tmp_path):
    out = merged(found, tmp_path / "merged")
    exports.flip_bit(out / "model.safetensors", (out / "model.safetensors").stat().st_size - 2)
    exports.vouch(out)

    check = only(structure_of(out, found))

    assert "1 of" in check.why
    assert "values are not base + adapter" in check.why


def merged(found: Trained, out: Path) -> Path:
    tokens = found.tokenizer
    merge(found.base.folder, found.adapter, out, stop_ids=tokens.stop_ids, pad_id=tokens.pad_id)
    make.describe(out, found, make.Order(out), "merged", {"model.safetensors": "base"})
    return out


def test_the_adapters_gguf_is_read_as_what_it_adds(llama, tmp_path):
    make_gguf.lora(llama, make.Order(tmp_path / "lora"))

    checks = structure_of(tmp_path / "lora", llama)

    assert failed(checks) == []
    double = exports.scaled_adapter(llama.adapter, tmp_path / "adapter", 2)
    made = record.read(tmp_path / "lora")
    other, _ = structure.check(tmp_path / "lora", made, llama.base.folder, double)
    assert only(other).why == "scale * B @ A differs by 5.0e-01 of itself, must be at most 2e-03"


def test_llama_cpps_quants_are_measured_and_the_adapter_is_found_in_them(found, tmp_path):
    out = exports.write(found, tmp_path / "gguf", "q4_k_m")

    checks = structure_of(out, found)

    assert failed(checks) == []
    found_share = next(c for c in checks.found if c.name == "share of the adapter's change")
    assert abs(found_share.numbers["share"] - 1) < 0.1
    double = exports.scaled_adapter(found.adapter, tmp_path / "adapter", 2)
    other, _ = structure.check(out, record.read(out), found.base.folder, double)
    assert "share of the adapter's change" in {name for _, name in failed(other)}


@pytest.mark.slow
def test_a_doubled_adapter_answers_otherwise(
    found, known, scoring_process, out, tmp_path, llama_cpp
):
    double = exports.scaled_adapter(found.adapter, tmp_path / "adapter", 2)
    made = exports.rewrite(out, found, adapter=double, file_type="f16")
    checks = Checks("behaviour")

    side = speakers.Side(out, made, found, scoring_process, "float32")
    with speakers.opened(side, exports.the_gguf(out).name) as speaker:
        behaviour.judge("it", "f16", known, speaker, found.tokenizer.stop_ids, checks)

    assert failed(checks) == [("behaviour", "greedy tokens")]
