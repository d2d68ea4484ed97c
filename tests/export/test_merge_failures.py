"""Whatever goes wrong: a message that names it, and nothing left that looks finished."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import Pair, load, oracle, write_base, write_pair

from fastsft.errors import ExportError
from fastsft.export.merge import merge

Q = "base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens"
CUT_AT_HALF = """
import sys, pathlib, fastsft.export.blocks as blocks
from fastsft.export.merge import merge
blocks.BLOCK_VALUES, blocks.COPY_BYTES = 300, 512
def halt(done, total):
    if done * 2 > total:
        print("half", flush=True)
        sys.stdin.read()
merge(*map(pathlib.Path, sys.argv[1:]), stop_ids=[1], progress=halt)
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("good"), target_modules=["q_proj"])


@pytest.fixture
def copy(good: Pair, tmp_path: Path) -> Pair:
    """The good pair again, to be spoilt."""
    for folder in (good.base, good.adapter):
        shutil.copytree(folder, tmp_path / folder.name)
    return Pair(tmp_path / "base", tmp_path / "adapter", good.model)


def refusal(pair: Pair, out: Path, **options: Any) -> str:
    """What merging says; nothing may be left of it, whatever was there before stays."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(ExportError) as refused:
        merge(pair.base, pair.adapter, out, **{"stop_ids": [1]} | options)
    assert sorted(out.parent.iterdir()) == before
    assert refused.value.hint
    return str(refused.value)


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only 'LORA' can be merged"),
        ({"bias": "all"}, "bias is 'all'; only 'none' can be merged"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"lora_bias": True}, "lora_bias is True, which this merge does not know"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is [1], which"),
        ({"use_qalora": True}, "use_qalora is True, which"),
        ({"from_the_future": {"a": 1}}, "from_the_future is {'a': 1}, which"),
        ({"init_lora_weights": "pissa_niter_4"}, "base weights changed in training"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"r": 0}, "lora_A [8, 64] and lora_B [64, 8] do not fit rank 0"),
        ({"r": "8"}, "r of model.layers.0.self_attn.q_proj is '8', not a number"),
        ({"lora_alpha": None}, "lora_alpha of model.layers.0.self_attn.q_proj is None"),
        ({"rank_pattern": {"q_proj": 4}}, "do not fit rank 4"),
        ({"rank_pattern": [1]}, "rank_pattern is [1], not an object"),
        ({"alpha_pattern": {"(a+)+": 4}}, "pattern '(a+)+' is too complex"),
        ({"alpha_pattern": {"[": 4}}, "pattern '[': "),
        ({"use_dora": True}, "use_dora and lora_magnitude_vector disagree"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(copy, tmp_path, settings, message):
    set_config(copy.adapter, **settings)

    assert message in refusal(copy, tmp_path / "out")


def _rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename(f"{Q}.lora_A.weight", f"{Q}.lora_C.weight"), "lora_C.weight: not a tensor this"),
        (_rename(f"{Q}.lora_A.weight", f"{Q}.lora_B.bias"), "lora_B.bias: not a tensor this merge"),
        (_rename(f"{Q}.lora_A.weight", "q_proj.lora_A.weight"), "not a tensor this merge knows"),
        (_rename(f"{Q}.lora_A.weight", f"{EMBEDDING}.lora_embedding_A"), "not a tensor this"),
        (lambda t: t.pop(f"{Q}.lora_A.weight"), "q_proj.weight has lora_B only"),
        (lambda t: t.clear(), "holds no LoRA weights"),
        (lambda t: t[f"{Q}.lora_B.weight"].view(-1)[3].fill_(float("nan")), "not finite"),
        (lambda t: t[f"{Q}.lora_A.weight"].view(-1)[0].fill_(float("-inf")), "not finite"),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(8, 65)}),
            "q_proj.weight is [64, 64] in the base, [64, 65] in the adapter",
        ),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 64)}),
            "lora_A [4, 64] and lora_B [64, 8] do not fit rank 8",
        ),
        (
            lambda t: t.update({f"{EMBEDDING}.weight": torch.ones(121, 64)}),
            "embed_tokens.weight is [120, 64] in the base, [121, 64] in the adapter",
        ),
        (
            lambda t: t.update({"base_model.model.score.weight": torch.ones(2, 64)}),
            "score.weight is not in the base",
        ),
        (
            lambda t: t.update(
                {f"{Q}.base_layer.bias": torch.ones(64), f"{Q}.bias": torch.ones(1)}
            ),
            "are the same weight",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(copy, tmp_path, change, message):
    edit(copy.adapter / "adapter_model.safetensors", change)

    assert message in refusal(copy, tmp_path / "out")


def test_an_adapter_of_another_base_is_refused(copy, tmp_path):
    shutil.rmtree(copy.base)
    write_base(tmp_path / "base", family="llama")
    edit(copy.base / "model.safetensors", lambda t: t.pop("model.layers.1.self_attn.q_proj.weight"))

    message = refusal(copy, tmp_path / "out")

    assert "model.layers.1.self_attn.q_proj.weight is not in the base" in message
    assert "hint: pass the base model that the adapter was trained on" in message


def test_an_adapter_without_effect_is_refused(copy, tmp_path):
    edit(
        copy.adapter / "adapter_model.safetensors",
        lambda tensors: [values.zero_() for name, values in tensors.items() if "lora_B" in name],
    )

    message = refusal(copy, tmp_path / "out")

    assert "the adapter changes nothing: the largest delta is 0" in message


def test_a_delta_that_rounding_swallows_is_an_adapter_without_effect(copy, tmp_path):
    set_config(copy.adapter, lora_alpha=1e-60)

    message = refusal(copy, tmp_path / "out")

    assert "the adapter changes nothing: the largest delta is " in message
    assert "e-6" in message


def test_what_float16_cannot_hold_is_refused_by_name(copy, tmp_path):
    edit(copy.base / "model.safetensors", lambda t: t["model.norm.weight"][3].fill_(70000.0))

    message = refusal(copy, tmp_path / "out", dtype="float16")

    assert "model.norm.weight has values that F16 cannot hold\n  hint: export as bf" in message


def test_a_dora_row_of_zeros_is_refused_by_name(tmp_path):
    pair = write_pair(tmp_path, use_dora=True, target_modules=["q_proj"])
    row = "model.layers.1.self_attn.q_proj"
    edit(pair.base / "model.safetensors", lambda t: t[f"{row}.weight"][5].zero_())
    edit(
        pair.adapter / "adapter_model.safetensors",
        lambda t: t[f"base_model.model.{row}.lora_B.weight"][5].zero_(),
    )

    assert f"{row}.weight has values that BF16 cannot hold" in refusal(pair, tmp_path / "out")


@pytest.mark.parametrize(
    ("folder", "gone", "message"),
    [
        ("adapter", "adapter_config.json", "has no adapter_config.json"),
        ("adapter", "adapter_model.safetensors", "has no adapter_model.safetensors"),
        ("base", "config.json", "has no config.json"),
        ("base", "model.safetensors", "has neither model.safetensors nor"),
        ("base", "tokenizer.json", "has a tokenizer"),
    ],
)
def test_a_missing_file_is_named(copy, tmp_path, folder, gone, message):
    (tmp_path / folder / gone).unlink()

    assert message in refusal(copy, tmp_path / "out")


def test_a_pickled_adapter_is_refused(copy, tmp_path):
    (copy.adapter / "adapter_model.safetensors").rename(copy.adapter / "adapter_model.bin")

    assert "holds a pickled adapter" in refusal(copy, tmp_path / "out")


def test_a_base_with_code_of_its_own_is_refused(copy, tmp_path):
    (copy.base / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')

    assert "has an auto_map" in refusal(copy, tmp_path / "out")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"stop_ids": []}, "no stop id was given"),
        ({"stop_ids": [1, 120]}, "token id 120 is outside the model's 120 rows"),
        ({"stop_ids": [1], "pad_id": -1}, "token id -1 is outside"),
    ],
)
def test_token_ids_that_cannot_be_are_refused(good, tmp_path, ids, message):
    assert message in refusal(good, tmp_path / "out", **ids)


def test_a_disk_too_small_is_refused_before_writing(good, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    monkeypatch.setattr("fastsft.export.plan.Plan.nbytes", 15 * 1024**3)

    message = refusal(good, tmp_path / "out")

    assert f"export: needs 15.2 GiB in {tmp_path}/, 0.0 GiB free" in message
    assert "hint: free 15.2 GiB, or pass --out on another disk" in message


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "is full; nothing was kept"),
        (errno.EDQUOT, "is full; nothing was kept"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_disk_that_fails_midway_leaves_nothing(good, tmp_path, monkeypatch, number, message):
    calls: list[int] = []
    write = os.pwrite

    def failing(file: int, data: bytes, at: int) -> int:
        calls.append(at)
        if len(calls) > 5:
            raise OSError(number, os.strerror(number))
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", failing)

    assert message in refusal(good, tmp_path / "out")


def test_a_sync_that_fails_fails_the_merge(good, tmp_path, monkeypatch):
    def failing(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fastsft.export.stream._SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fdatasync", failing)

    assert "Input/output error" in refusal(good, tmp_path / "out")


def test_a_disk_that_is_really_full_leaves_nothing(good, small_disk, monkeypatch):
    disk = small_disk("128k")
    assert "export: needs 0.0 GiB in" in refusal(good, disk / "out")

    monkeypatch.setattr("fastsft.export.merge.require_space", lambda *_: None)

    assert "is full; nothing was kept" in refusal(good, disk / "out")


def test_an_interrupt_leaves_nothing(good, tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(good.base, good.adapter, tmp_path / "out", stop_ids=[1], progress=interrupt)

    assert list(tmp_path.iterdir()) == []


def test_a_killed_merge_leaves_nothing_finished_and_the_next_succeeds(good, tmp_path):
    arguments = [str(path) for path in (good.base, good.adapter, tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-c", CUT_AT_HALF, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout and child.stdout.readline() == b"half\n"
        assert "another export is writing here" in refusal(good, tmp_path / "out")
        child.kill()

    assert [path.name for path in tmp_path.iterdir()] == [".tmp-out"]
    merge(good.base, good.adapter, tmp_path / "out", stop_ids=[1])

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    merged, wanted = load(tmp_path / "out"), oracle(good, torch.bfloat16)
    assert all(torch.equal(merged[name], wanted[name]) for name in wanted)


def test_a_failed_overwrite_keeps_what_was_there(copy, tmp_path):
    merge(copy.base, copy.adapter, tmp_path / "out", stop_ids=[1])
    before = (tmp_path / "out/model.safetensors").read_bytes()
    set_config(copy.adapter, lora_alpha=1e-60)

    assert "changes nothing" in refusal(copy, tmp_path / "out", overwrite=True)

    assert (tmp_path / "out/model.safetensors").read_bytes() == before


def test_a_base_cut_after_the_check_is_named(copy, tmp_path):
    def cut(done: int, total: int) -> None:
        os.truncate(copy.base / "model.safetensors", 9000)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastsft.export.blocks.COPY_BYTES", 256)
        patch.setattr("fastsft.export.blocks.BLOCK_VALUES", 64)
        message = refusal(copy, tmp_path / "out", progress=cut)

    assert "ends early; the file was cut" in message
