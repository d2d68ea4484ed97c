"""Real vocabularies through llama.cpp: the tokenizer's own ids wherever that is promised."""

from collections.abc import Callable
from pathlib import Path

import pytest
from vocabulary_files import Json, changed, write, write_for

from fastsft.data.tokenizer import ChatTokenizer
from fastsft.export import conversations, llamacpp

REAL = {
    "qwen2.5": ("gpt2", "qwen2"),
    "llama-3.1": ("gpt2", "llama-bpe"),
    "mistral-nemo": ("gpt2", "tekken"),
    "mistral-v0.3": ("llama", "default"),
}

pytestmark = pytest.mark.skipif(llamacpp.installed() is None, reason="needs llama-cpp-python")


@pytest.mark.parametrize(
    "name",
    # Seconds for each of the large ones; of Llama's, the tiny model shows the way of splitting.
    [pytest.param(n, marks=pytest.mark.slow if n == "llama-3.1" else ()) for n in REAL],
)
def test_llama_cpp_gives_the_tokenizers_own_ids_and_stops_where_the_model_does(
    name: str, real_tokenizer: Callable[[str], ChatTokenizer], tmp_path: Path
) -> None:
    pair = write_for(real_tokenizer(name), tmp_path / "v.gguf")
    texts, chats = conversations.texts(), pair.rendered()
    promised = [text for text in [*texts, *chats] if pair.vocabulary.covers(text)]

    with llamacpp.opened(pair.path, vocab_only=True) as model:
        found, told = model.tokenize(promised, add_special=False), model.describe()

    assert (pair.vocabulary.splitting.model, pair.vocabulary.splitting.pre) == REAL[name]
    assert min(len({*texts} & {*promised}), len({*chats} & {*promised})) >= 300
    assert name == "mistral-nemo" or len(promised) == len(texts) + len(chats)
    assert found == pair.ids(promised)
    assert {*told.eog_ids} == {*pair.tokenizer.stop_ids} == pair.vocabulary.ends.all_ids
    assert told.eos_id == pair.tokenizer.stop_ids[0]
    assert told.add_bos == (pair.tokenizer.bos_id is not None)


def _prepend(spec: Json) -> None:
    """As Mistral 7B v0.1 to v0.3 were first published."""
    spec["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "▁"})


def _metaspace(spec: Json) -> None:
    """As they were published later."""
    spec["normalizer"] = None
    spec["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("change", "has_prefix"), [(_prepend, True), (_metaspace, False)])
def test_the_other_ways_in_which_mistral_was_published_give_the_same_ids(
    change: Callable[[Json], None],
    has_prefix: bool,
    tokenizer_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = changed(tokenizer_folder("mistral-v0.3"), tmp_path / "model", change)

    pair = write(folder, tmp_path / "v.gguf")

    every = [*conversations.texts(), *pair.rendered()]
    texts = [text for text in every if pair.vocabulary.covers(text)]
    assert pair.vocabulary.splitting.has_space_prefix is has_prefix
    assert len(texts) >= 320
    assert pair.llama_ids(texts) == pair.ids(texts)
