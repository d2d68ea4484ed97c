"""Every value in a GGUF is the float64 result, encoded once; what cannot be said is refused."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize
from gguf_models import (
    CASES,
    GENERAL,
    LLAMA3,
    TYPES,
    Letters,
    fields,
    tensors,
    write_all,
    write_pair,
)
from safetensors.torch import load_file, save_file
from tiny_models import Pair, oracle

from fastsft.errors import ExportError
from fastsft.export import gguf

SAVED = {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]}
MERGES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5": ("qwen2.5", {}),
    "llama 3.1": ("llama 3.1", {}),
    "nemo": ("mistral nemo", {}),
    "dora": ("llama", {"use_dora": True}),
    "whole modules": ("qwen2.5", SAVED),
    "norms": ("llama", {"modules_to_save": ["norm"], "target_modules": ["k_proj"]}),
}


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return functools.cache(lambda case: write_pair(tmp_path_factory.mktemp("pair"), case))


@pytest.fixture
def plain(cached: Callable[[str], Pair], tmp_path: Path) -> Callable[[str], Pair]:
    """A copy of its own of a case's pair without further settings."""

    def copied(case: str) -> Pair:
        pair = cached(case)
        base = shutil.copytree(pair.base, tmp_path / "base")
        return Pair(base, shutil.copytree(pair.adapter, tmp_path / "adapter"), pair.model)

    return copied


def as_stored(values: torch.Tensor, encoding: str) -> np.ndarray[Any, Any]:
    """The bytes of a float tensor, by torch and the gguf package."""
    if encoding == "Q8_0":
        return quantize(values.numpy(), GGMLQuantizationType.Q8_0)
    return values.contiguous().view(torch.uint8).numpy()


def expected(pair: Pair, encodings: dict[str, str], head_dim: int) -> dict[str, bytes]:
    """Each tensor's bytes by llama.cpp's name, from PEFT's modules alone."""
    exact = {kind: oracle(pair, KINDS[kind]) for kind in set(encodings.values())}
    found = {}
    for name, kind in encodings.items():
        plain = hf_name(name)
        values = exact[kind][plain]
        if head_dim and plain.endswith(("q_proj.weight", "k_proj.weight")):
            heads = values.reshape(-1, 2, head_dim // 2, values.shape[1])
            values = heads.transpose(1, 2).reshape(values.shape)
        found[name] = as_stored(values, kind).tobytes()
    return found


KINDS = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "Q8_0": torch.float32,
}
PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{k}": f"self_attn.{k}_proj" for k in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{k}": f"mlp.{k}_proj" for k in ("gate", "up", "down")},
}
ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def hf_name(name: str) -> str:
    if name in ENDS:
        return ENDS[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{PARTS[part]}.{kind}"


def head_dim(case: str) -> int:
    """0 where the rows of heads stay as they are."""
    settings = CASES[case]
    return 0 if settings["family"] == "qwen2" else settings.get("head_dim", 16)


@pytest.mark.parametrize("name", MERGES)
def test_every_value_is_the_float64_result_encoded_once(tmp_path, name):
    case, lora = MERGES[name]
    pair = write_pair(tmp_path, case, **lora)

    report = write_all(pair, tmp_path / "out")

    assert report.max_abs_delta > 0
    assert report.unchanged_tensors == 0
    for file_type in TYPES:
        found = tensors(tmp_path / f"out/{file_type}.gguf")
        found.pop("rope_freqs.weight", None)
        encodings = {key: tensor.tensor_type.name for key, tensor in found.items()}
        wanted = expected(pair, encodings, head_dim(case))
        assert set(encodings.values()) <= {"F32", file_type.upper()}
        assert {key: t.data.tobytes() == wanted[key] for key, t in found.items()} == dict.fromkeys(
            found, True
        )


def test_blocks_of_any_size_give_the_same_bytes(tmp_path, monkeypatch):
    pair = write_pair(tmp_path, "llama 3.1", use_dora=True)
    write_all(pair, tmp_path / "whole")
    monkeypatch.setattr("fastsft.export.blocks.BLOCK_VALUES", 100)
    write_all(pair, tmp_path / "small")

    for name in TYPES:
        file = f"{name}.gguf"
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "small" / file).read_bytes()


def test_the_head_says_what_the_config_says(plain, tmp_path):
    pair = plain("mistral nemo")

    write_all(pair, tmp_path / "out", types=("q8_0",))

    said = fields(tmp_path / "out/q8_0.gguf")
    assert {key: said[key] for key in GENERAL} == GENERAL
    assert said["general.architecture"] == "llama"
    assert said["general.file_type"] == LlamaFileType.MOSTLY_Q8_0
    assert said["general.quantization_version"] == 2
    assert said["llama.vocab_size"] == 120
    assert said["llama.context_length"] == 128
    assert said["llama.embedding_length"] == 64
    assert said["llama.block_count"] == 2
    assert said["llama.feed_forward_length"] == 96
    assert said["llama.attention.head_count"] == 4
    assert said["llama.attention.head_count_kv"] == 2
    assert said["llama.attention.key_length"] == said["llama.rope.dimension_count"] == 32
    assert said["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-6)
    assert said["llama.rope.freq_base"] == 10000.0


def test_a_tied_head_is_not_stored_twice(plain, tmp_path):
    write_all(plain("qwen2.5 tied"), tmp_path / "out", types=("f16",))

    assert "output.weight" not in tensors(tmp_path / "out/f16.gguf")


def test_a_tied_base_whose_head_was_trained_apart_is_untied(tmp_path):
    pair = write_pair(tmp_path, "qwen2.5 tied", **SAVED)

    write_all(pair, tmp_path / "out", types=("bf16",))

    head = pair.model.state_dict()["base_model.model.lm_head.modules_to_save.default.weight"]
    stored = tensors(tmp_path / "out/bf16.gguf")["output.weight"].data
    assert stored.tobytes() == as_stored(head, "BF16").tobytes()


def test_a_whole_trained_model_is_written_as_it_is(plain, tmp_path):
    pair = plain("qwen2.5")
    whole = shutil.copytree(pair.base, tmp_path / "whole")
    weights = load_file(whole / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, whole / "model.safetensors")

    report = write_all(Pair(pair.base, whole, pair.model), tmp_path / "out", types=("f32",))

    norm = tensors(tmp_path / "out/f32.gguf")["output_norm.weight"].data
    assert norm.tolist() == weights["model.norm.weight"].float().tolist()
    assert (report.merged_tensors, report.max_abs_delta) == (0, 0.0)


def test_rows_that_q8_0_cannot_cut_are_f16_and_said(plain, tmp_path):
    pair = narrow(plain("qwen2.5"))

    report = write_all(pair, tmp_path / "out", types=("q8_0",))

    found = tensors(tmp_path / "out/q8_0.gguf")
    assert found["blk.0.ffn_down.weight"].tensor_type == GGMLQuantizationType.F16
    assert found["blk.0.ffn_up.weight"].tensor_type == GGMLQuantizationType.Q8_0
    assert report.notes == (
        "q8_0.gguf: 2 tensors have rows that are no multiple of 32 and are f16",
    )


def narrow(pair: Pair) -> Pair:
    """The pair with an MLP that is 40 wide and not trained."""
    change_config(pair, intermediate_size=40)
    weights = load_file(pair.base / "model.safetensors")
    for name in [name for name in weights if ".mlp." in name]:
        cut = weights[name][:, :40] if "down" in name else weights[name][:40]
        weights[name] = cut.contiguous()
    save_file(weights, pair.base / "model.safetensors")
    saved = load_file(pair.adapter / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in saved.items() if ".mlp." not in name}
    save_file(kept, pair.adapter / "adapter_model.safetensors")
    return pair


def test_sizes_are_known_before(plain, tmp_path):
    pair = plain("llama 3.1")

    sizes = gguf.sizes(pair.base, pair.adapter, TYPES)

    write_all(pair, tmp_path / "out")
    for name in TYPES:
        head = min(t.data_offset for t in tensors(tmp_path / f"out/{name}.gguf").values())
        assert sizes[name] == (tmp_path / f"out/{name}.gguf").stat().st_size - head


def test_progress_counts_every_byte_of_every_file(plain, tmp_path):
    heard: list[tuple[int, int]] = []
    pair = plain("qwen2.5")

    report = write_all(pair, tmp_path / "out", progress=lambda *bytes: heard.append(bytes))

    assert heard == sorted(heard)
    assert heard[-1] == (report.bytes_written, report.bytes_written)


# What is refused, before a file is made.


def change_config(pair: Pair, **settings: Any) -> None:
    path = pair.base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refusal(pair: Pair, out: Path, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        write_all(pair, out, **options)
    assert list(out.iterdir()) == []
    return str(caught.value)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("case", "settings", "said"),
    [
        ("qwen2.5", {"model_type": "phi3"}, "model_type 'phi3'"),
        ("qwen2.5", {"architectures": ["Qwen2ForTokenClassification"]}, "Qwen2ForToken"),
        ("qwen2.5", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps is None"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("llama", {"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ("llama", {"num_hidden_layers": 1}, "model.layers.1."),
        ("llama", {"vocab_size": 119}, "config.json means [119, 64]"),
        ("qwen2.5", {"head_dim": 32}, "4 heads of 32"),
        ("llama", {"num_key_value_heads": 3}, "(3 of keys)"),
        ("qwen2.5", {"rope_parameters": LLAMA3}, "rope type 'llama3'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 16}}, "beta_fast = 16"),
        ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate = False"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"rope_parameters": {"full": {"rope_theta": 1.0}}}, "one table"),
        ("llama", {"rope_parameters": {"rope_theta": "10"}}, "rope_theta is '10'"),
        ("llama", {"rope_parameters": {**LLAMA3, "high_freq_factor": 1}}, "is not above"),
    ],
)
def test_what_llamacpp_would_compute_otherwise_is_refused(plain, tmp_path, case, settings, said):
    pair = plain(case)
    change_config(pair, **settings)

    told = refusal(pair, tmp_path / "out")

    assert said in told
    assert "hint: export with --to merged" in told


def test_a_tensor_of_another_model_is_refused_by_name(plain, tmp_path):
    pair = plain("llama")
    weights = load_file(pair.base / "model.safetensors")
    weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)
    save_file(weights, pair.base / "model.safetensors")

    assert "model.layers.0.self_attn.q_norm.weight is no tensor" in refusal(pair, tmp_path / "out")


def test_a_missing_head_is_refused_unless_tied(plain, tmp_path):
    pair = plain("qwen2.5 tied")
    change_config(pair, tie_word_embeddings=False)

    assert "lm_head.weight is missing" in refusal(pair, tmp_path / "out")


def test_a_vocabulary_of_another_size_is_refused(plain, tmp_path):
    told = refusal(plain("qwen2.5"), tmp_path / "out", vocabulary=Letters(119))

    assert "119 tokens, the embedding 120 rows" in told


def test_an_untouched_adapter_is_refused_and_nothing_stays(plain, tmp_path):
    pair = plain("qwen2.5")
    saved = load_file(pair.adapter / "adapter_model.safetensors")
    zeros = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in saved.items()}
    save_file(zeros, pair.adapter / "adapter_model.safetensors")

    assert "the adapter changes nothing" in refusal(pair, tmp_path / "out")


def test_values_beyond_the_type_are_refused_and_nothing_stays(plain, tmp_path):
    pair = plain("qwen2.5")
    weights = load_file(pair.base / "model.safetensors")
    weights["lm_head.weight"][3, 3] = 1e6
    save_file(weights, pair.base / "model.safetensors")

    assert "lm_head.weight has values that F16" in refusal(pair, tmp_path / "out", types=("f16",))
    write_all(pair, tmp_path / "out", types=("bf16", "q8_0"))


def test_a_file_that_exists_is_left_as_it_is(plain, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/q8_0.gguf").write_bytes(b"mine")

    with pytest.raises(ExportError, match="exists already"):
        write_all(plain("qwen2.5"), tmp_path / "out")

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["q8_0.gguf"]
    assert (tmp_path / "out/q8_0.gguf").read_bytes() == b"mine"


def test_an_interrupted_write_leaves_nothing(plain, tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(plain("qwen2.5"), tmp_path / "out", progress=interrupt)

    assert list((tmp_path / "out").iterdir()) == []


# What is said instead.


def test_a_sliding_window_is_noted(plain, tmp_path):
    pair = plain("mistral")
    change_config(pair, sliding_window=32)

    report = write_all(pair, tmp_path / "out", types=("q8_0",))

    assert len(report.notes) == 1
    assert "its last 32 tokens, llama.cpp to all" in report.notes[0]


def test_stored_rotary_frequencies_are_left_out_and_said(plain, tmp_path):
    pair = plain("llama")
    weights = load_file(pair.base / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, pair.base / "model.safetensors")

    report = write_all(pair, tmp_path / "out", types=("q8_0",))

    assert report.notes == (
        "model.layers.0.self_attn.rotary_emb.inv_freq is left out: it is made from others",
    )


def test_the_older_spelling_of_rope_settings_gives_the_same_file(plain, tmp_path):
    pair = plain("llama 3.1")
    write_all(pair, tmp_path / "new", types=("f16",))
    old = {("type" if key == "rope_type" else key): value for key, value in LLAMA3.items()}
    change_config(pair, rope_parameters=None, rope_theta=old.pop("rope_theta"), rope_scaling=old)

    write_all(pair, tmp_path / "old", types=("f16",))

    old_file, new_file = (tmp_path / name / "f16.gguf" for name in ("old", "new"))
    assert old_file.read_bytes() == new_file.read_bytes()
