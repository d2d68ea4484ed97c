"""The tiny models: what their folders hold, and that all three are one set of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from fastsft.demo import tiny
from fastsft.demo.markup import Family
from fastsft.demo.vocabulary import IDS, SIZE
from fastsft.errors import DataError

# torchao's docstrings have invalid escapes, seen when Python first compiles it.
pytestmark = pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")

FAMILIES: list[Family] = ["qwen2.5", "llama", "mistral"]
TEXTS = ["Where is my kettle? Order 4821.", "我的水壶到哪里了？订单4821。", "naïve 🙂\n\n  x = 1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    parent = tmp_path_factory.mktemp("tiny")
    return {family: tiny.write(family, parent / family) for family in FAMILIES}


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_the_qwen_folder_is_the_base(folders: dict[Family, Path]):
    assert parts(folders["qwen2.5"]) == parts(tiny.BASE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_the_same_every_time(
    family: Family, folders: dict[Family, Path], tmp_path: Path
):
    assert parts(tiny.write(family, tmp_path / "again")) == parts(folders[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_takes_at_most_eight_megabytes(family: Family, folders: dict[Family, Path]):
    assert sum(len(content) for content in parts(folders[family]).values()) <= 8_000_000


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")

    with pytest.raises(DataError, match="not empty"):
        tiny.write("llama", tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_cached_folder_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    first = tiny.folder("mistral")
    (first / "config.json").touch()

    assert tiny.folder("mistral") == first
    assert [path.name for path in (tmp_path / "fastsft").iterdir()] == [first.name]


def test_the_base_needs_no_cache():
    assert tiny.folder("qwen2.5") == tiny.BASE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_its_tokens(family: Family, text: str, folders: dict[Family, Path]):
    tokenizer = Tokenizer.from_file(str(folders[family] / "tokenizer.json"))

    ids = tokenizer.encode(text, add_special_tokens=False).ids

    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("family", "bos"), [("qwen2.5", None), ("llama", "<|begin_of_text|>"), ("mistral", "<s>")]
)
def test_only_llama_and_mistral_begin_with_a_bos(
    family: Family, bos: str | None, folders: dict[Family, Path]
):
    tokenizer = Tokenizer.from_file(str(folders[family] / "tokenizer.json"))

    plain = tokenizer.encode("hi", add_special_tokens=False).tokens

    assert tokenizer.encode("hi").tokens == [*([bos] if bos else []), *plain]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_names_only_its_own_special_tokens(family: Family, folders: dict[Family, Path]):
    added = json.loads((folders[family] / "tokenizer.json").read_text())["added_tokens"]

    names = {token["content"]: token["id"] for token in added}

    own = {"qwen2.5": "<|im_end|>", "llama": "<|eot_id|>", "mistral": "</s>"}[family]
    assert names[own] == IDS[own]
    assert len(names) == 16 and max(names.values()) == SIZE - 1
    assert sum(name.startswith("<|reserved_special_token_") for name in names) >= 10


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_model_and_tokenizer(family: Family, folders: dict[Family, Path]):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders[family])

    loaded = model(folders[family])

    asked = [{"role": "user", "content": "hi"}]
    assert loaded.config.architectures[0].lower().startswith(loaded.config.model_type)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_every_family_computes_the_same_logits(family: Family, folders: dict[Family, Path]):
    import torch

    ids = torch.arange(0, SIZE, 37)[None]  # [B, T]

    with torch.no_grad():
        ours, base = (model(folders[one])(ids).logits for one in (family, "qwen2.5"))

    torch.testing.assert_close(ours, base, rtol=0, atol=1e-5)


def test_the_base_knows_both_tokens_that_end_its_answer():
    stops = json.loads((tiny.BASE / "generation_config.json").read_text())["eos_token_id"]

    assert stops == [IDS["<|im_end|>"], IDS["<|endoftext|>"]]
