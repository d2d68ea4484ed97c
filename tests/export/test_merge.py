"""The merged model is the trained one: to the bit by definition, and in what it says."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TORCH, Pair, load, logits, oracle, spread, write_pair
from transformers import AutoModelForCausalLM

from fastsft.errors import ExportError
from fastsft.export.merge import MergeReport, merge

CASES: dict[str, dict[str, Any]] = {
    "qwen2": {"family": "qwen2"},
    "llama": {"family": "llama"},
    "mistral": {"family": "mistral"},
    "tied": {"tied": True},
    "rslora": {"use_rslora": True, "r": 6},
    "patterns": {
        "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 5},
        "alpha_pattern": {"o_proj": 7},
    },
    "dora": {"use_dora": True},
    "whole modules": {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]},
    "norms": {"modules_to_save": ["norm"], "target_modules": ["q_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "sharded base": {"shard": "60KB"},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def make(case: str) -> Pair:
        if case not in made:
            made[case] = write_pair(tmp_path_factory.mktemp("pair"), **CASES[case])
        return made[case]

    return make


def run(pair: Pair, out: Path, **options: Any) -> MergeReport:
    return merge(pair.base, pair.adapter, out, stop_ids=[7, 9], **options)


def unequal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, int]:
    """How many bits' worth of values differ, by tensor; names must be the same."""
    assert one.keys() == other.keys()
    differ = {name: int((one[name] != other[name]).sum()) for name in one}
    return {name: count for name, count in differ.items() if count}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_every_value_is_the_float64_result_rounded_once(pair, tmp_path, case, dtype):
    trained = pair(case)

    run(trained, tmp_path / "out", dtype=dtype)

    merged = load(tmp_path / "out")
    assert {values.dtype for values in merged.values()} == {TORCH[dtype]}
    assert unequal(oracle(trained, TORCH[dtype]), merged) == {}


@pytest.mark.parametrize("case", ["qwen2", "llama", "mistral", "tied", "dora", "head"])
def test_the_merged_model_says_what_the_adapter_says(pair, tmp_path, case):
    trained = pair(case)
    run(trained, tmp_path / "exact", dtype="float32")
    run(trained, tmp_path / "half", dtype="bfloat16")

    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "exact", dtype=torch.float32)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)

    wanted = logits(write_pair(tmp_path / "again", **CASES[case]).model)
    assert spread(wanted, logits(exact)) < 1e-4
    assert spread(wanted, logits(half)) < 0.1


def test_pefts_own_merge_is_close(pair, tmp_path):
    trained = pair("qwen2")
    run(trained, tmp_path / "out")

    theirs = write_pair(tmp_path / "again", **CASES["qwen2"]).model.merge_and_unload().state_dict()

    for name, values in load(tmp_path / "out").items():
        torch.testing.assert_close(values, theirs[name], rtol=2**-7, atol=2**-9)


def test_untouched_tensors_are_copied_byte_for_byte(pair, tmp_path):
    trained = pair("qwen2")

    report = run(trained, tmp_path / "out")

    base, merged = load(trained.base), load(tmp_path / "out")
    same = {name for name in base if torch.equal(base[name], merged[name])}
    assert same == {name for name in base if "proj.weight" not in name}
    assert (report.tensors, report.merged_tensors, report.unchanged_tensors) == (len(base), 14, 0)
    assert report.max_abs_delta > 0


def test_a_tied_head_stays_tied(pair, tmp_path):
    report = run(pair("tied"), tmp_path / "out")

    assert "lm_head.weight" not in load(tmp_path / "out")
    assert not report.untied
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize(
    "lora",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_a_tied_base_whose_halves_were_trained_apart_is_untied(tmp_path, lora):
    trained = write_pair(tmp_path, tied=True, **{"target_modules": ["q_proj"]} | lora)

    report = run(trained, tmp_path / "out", dtype="float32")

    assert report.untied
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert spread(logits(trained.model), logits(model)) < 1e-4


def test_a_tied_base_whose_halves_were_trained_together_stays_tied(tmp_path):
    trained = write_pair(tmp_path, tied=True, modules_to_save=["embed_tokens", "lm_head"])
    saved = trained.adapter / "adapter_model.safetensors"
    tensors = load_file(saved)
    tensors["base_model.model.lm_head.weight"] = tensors[
        "base_model.model.model.embed_tokens.weight"
    ].clone()
    save_file(tensors, saved)

    report = run(trained, tmp_path / "out")

    merged = load(tmp_path / "out")
    assert not report.untied
    assert "lm_head.weight" not in merged
    assert torch.equal(
        merged["model.embed_tokens.weight"], tensors["base_model.model.lm_head.weight"]
    )


def test_shards_hold_each_tensor_once_and_load(pair, tmp_path):
    trained = pair("sharded base")

    report = run(trained, tmp_path / "out", max_shard_bytes=50_000)

    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert report.files == len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == report.bytes_written
    assert unequal(oracle(trained, torch.bfloat16), load(tmp_path / "out")) == {}
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_one_shard_or_many_blocks_give_the_same_bytes(pair, tmp_path, monkeypatch):
    run(pair("dora"), tmp_path / "whole")
    monkeypatch.setattr("fastsft.export.blocks.BLOCK_VALUES", 300)
    monkeypatch.setattr("fastsft.export.blocks.COPY_BYTES", 128)
    run(pair("dora"), tmp_path / "blocks")

    assert (tmp_path / "whole/model.safetensors").read_bytes() == (
        tmp_path / "blocks/model.safetensors"
    ).read_bytes()


def test_progress_rises_to_the_total(pair, tmp_path):
    heard: list[tuple[int, int]] = []

    report = run(pair("qwen2"), tmp_path / "out", progress=lambda *now: heard.append(now))

    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert heard[-1] == (report.bytes_written, report.bytes_written)


def test_the_configs_say_what_was_trained(pair, tmp_path):
    trained = pair("llama")
    config = json.loads((trained.base / "config.json").read_text())
    changed = config | {"quantization_config": {"bits": 4}}
    (trained.base / "config.json").write_text(json.dumps(changed))
    (trained.base / "generation_config.json").write_text(
        '{"temperature": 0.7, "do_sample": true, "eos_token_id": 3, "_from_model_config": true}'
    )

    run(trained, tmp_path / "out", dtype="float16", pad_id=4, bos_id=5)

    made = json.loads((tmp_path / "out/config.json").read_text())
    assert made == config | {"dtype": "float16"}
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {
        "temperature": 0.7,
        "do_sample": True,
        "eos_token_id": [7, 9],
        "pad_token_id": 4,
        "bos_token_id": 5,
    }


def test_the_tokenizer_is_the_adapters_whole_set_or_the_bases(tmp_path):
    trained = write_pair(tmp_path)
    (trained.base / "chat_template.jinja").write_text("base")
    run(trained, tmp_path / "one")
    (trained.adapter / "tokenizer.json").write_text('{"from": "adapter"}')
    run(trained, tmp_path / "two")

    assert (tmp_path / "one/chat_template.jinja").read_text() == "base"
    assert "adapter" in (tmp_path / "two/tokenizer.json").read_text()
    assert not (tmp_path / "two/chat_template.jinja").exists()


def test_an_export_is_overwritten_only_when_asked(pair, tmp_path):
    run(pair("qwen2"), tmp_path / "out")
    (tmp_path / "out/old").touch()
    with pytest.raises(ExportError, match="exists already\n  hint: pass --overwrite"):
        run(pair("qwen2"), tmp_path / "out")

    run(pair("qwen2"), tmp_path / "out", overwrite=True)

    assert not (tmp_path / "out/old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_an_export_is_ever_overwritten(pair, tmp_path):
    (tmp_path / "thesis.txt").touch()

    with pytest.raises(ExportError, match="is not an exported model, so it is not overwritten"):
        run(pair("qwen2"), tmp_path, overwrite=True)

    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("which", ["base", "parent"])
def test_what_it_is_made_from_is_never_replaced(tmp_path, which):
    trained = write_pair(tmp_path)
    (tmp_path / "model.safetensors").touch()
    out = trained.base if which == "base" else tmp_path

    with pytest.raises(ExportError, match="which it is made from"):
        run(trained, out, overwrite=True)


def test_the_merge_needs_no_torch():
    code = "import sys, fastsft.export.merge; print(sorted({'torch', 'peft'} & sys.modules.keys()))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == "[]\n"
