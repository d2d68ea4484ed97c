"""NF4 through us is NF4 through transformers: the same values, the same bytes, the same files."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional, nn
from safetensors.torch import load_file
from tiny_models import load, quietly, write_base
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from fastsft.engine import nf4, tensor_files
from fastsft.errors import ExportError
from fastsft.export import four_bit
from fastsft.weights import INDEX, Checkpoint

CASES = [
    pytest.param("qwen2", True, "bfloat16", id="qwen2, as stored"),
    pytest.param("llama", False, "float32", id="llama, single, held in float32"),
]


def convert(verb: str, source: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    """The child's work, done here: a process of its own takes ten seconds."""
    told: list[dict[str, Any]] = []
    asked = {"double_quant": True, "dtype": None, "compute": "bfloat16"} | options
    out.mkdir()
    nf4.run(argparse.Namespace(verb=verb, source=source, out=out, **asked), told.append)
    return told


def in_four_bits(folder: Path, *, double_quant: bool, dtype: str) -> torch.nn.Module:
    """The model as transformers quantises it while it loads."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return quietly(
        AutoModelForCausalLM.from_pretrained,
        folder,
        dtype=getattr(torch, dtype),
        quantization_config=config,
        device_map={"": "cpu"},
    )


@pytest.mark.parametrize(("family", "double_quant", "dtype"), CASES)
def test_a_dequantised_base_has_the_weights_that_training_multiplies_with(
    tmp_path, family, double_quant, dtype
):
    base = write_base(tmp_path / "base", family=family)
    held = in_four_bits(base, double_quant=double_quant, dtype=dtype)
    linear = {
        f"{name}.weight": functional.dequantize_4bit(part.weight.data, part.weight.quant_state)
        for name, part in held.named_modules()
        if isinstance(part, nn.Linear4bit)
    }

    convert("dequantise", base, tmp_path / "out", double_quant=double_quant, dtype=dtype)

    found, stored = load(tmp_path / "out"), load(base)
    assert len(linear) == 14
    assert found.keys() == stored.keys()
    for name, expected in (stored | linear).items():
        assert found[name].dtype == expected.dtype, name
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_folder_in_four_bits_is_what_transformers_saves(tmp_path, double_quant):
    base = write_base(tmp_path / "base")
    held = in_four_bits(base, double_quant=double_quant, dtype="bfloat16")
    quietly(held.save_pretrained, tmp_path / "theirs")

    convert("quantise", base, tmp_path / "ours", double_quant=double_quant)

    ours, theirs = load(tmp_path / "ours"), load(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    configs = [
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "theirs")
    ]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


def test_a_folder_in_four_bits_loads_as_it_stands_and_says_what_it_did(tmp_path):
    base = write_base(tmp_path / "base")
    ids = torch.arange(12)[None] * 5

    convert("quantise", base, tmp_path / "out")

    loaded = quietly(AutoModelForCausalLM.from_pretrained, tmp_path / "out", device_map="cpu")
    held = in_four_bits(base, double_quant=True, dtype="bfloat16")
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, held(input_ids=ids).logits)


def test_how_far_nf4_moved_the_weights_is_reported(tmp_path):
    base = write_base(tmp_path / "base")

    report = convert("dequantise", base, tmp_path / "out")[-1]["report"]

    before, after = load(base), load(tmp_path / "out")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    errors, weights = (
        sum(float(value(name).double().square().sum()) for name in changed)
        for value in (lambda name: before[name] - after[name], lambda name: before[name])
    )
    assert report["quantised_tensors"] == len(changed) == 14
    assert report["relative_error"] == pytest.approx((errors / weights) ** 0.5, rel=1e-3)
    assert 0.05 < report["relative_error"] < 0.15


def test_large_folders_are_cut_into_files_with_an_index(tmp_path, monkeypatch):
    base = write_base(tmp_path / "base")
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 40_000)
    whole = Checkpoint.open(base).tensors

    convert("dequantise", base, tmp_path / "out")

    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    many = len(files)
    assert many > 2
    assert files == [f"model-{i:05}-of-{many:05}.safetensors" for i in range(1, many + 1)]
    assert sorted(set(index["weight_map"].values())) == files
    assert Checkpoint.open(tmp_path / "out").tensors.keys() == whole.keys()


@pytest.mark.slow
def test_the_child_is_followed_and_the_files_beside_the_weights_come_too(tmp_path):
    base = write_base(tmp_path / "base")
    seen: list[tuple[int, int]] = []

    report = four_bit.write(
        base, tmp_path / "out", double_quant=True, progress=lambda *at: seen.append(at)
    )

    nbytes = sum(tensor.nbytes for tensor in Checkpoint.open(base).tensors.values())
    stored = sum(part.nbytes for part in load_file(tmp_path / "out/model.safetensors").values())
    assert seen == sorted(seen)
    assert seen[-1] == (nbytes, nbytes)
    assert report.bytes_written == stored
    assert (report.tensors, report.quantised_tensors) == (len(Checkpoint.open(base).tensors), 14)
    estimated = four_bit.disk_bytes(base, double_quant=True)
    assert estimated <= stored < estimated + 14 * 2048
    assert (tmp_path / "out/tokenizer.json").read_text() == '{"from": "base"}'
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_compute_dtype"] == "bfloat16"


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    base = write_base(tmp_path / "base")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")

    with pytest.raises(ExportError, match="is not empty"):
        four_bit.dequantised_base(base, tmp_path / "out", double_quant=True)

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.slow
def test_a_base_that_the_child_cannot_read_is_told_as_it_says(tmp_path):
    base = write_base(tmp_path / "base")
    for path in base.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])

    with pytest.raises(ExportError, match="its tensors end at byte"):
        four_bit.dequantised_base(base, tmp_path / "out", double_quant=True)


@pytest.mark.slow
def test_a_model_that_transformers_does_not_know_is_told(tmp_path):
    base = write_base(tmp_path / "base")
    shutil.copyfile(base / "config.json", tmp_path / "config.json")
    (base / "config.json").write_text(json.dumps({"model_type": "nonsense"}))

    with pytest.raises(ExportError, match="nonsense"):
        four_bit.dequantised_base(base, tmp_path / "out", double_quant=True)
