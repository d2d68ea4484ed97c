"""A GGUF's vocabulary gives llama.cpp the tokenizer's own ids, or is refused by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from vocabulary_files import Json, Pair, changed, write

from fastsft.demo import tiny
from fastsft.demo.markup import Family
from fastsft.errors import ExportError
from fastsft.export import (
    conversations,
    endings,
    llamacpp,
    pretokenizers,
    sentencepiece,
    vocabulary,
)
from fastsft.export.pretokenizers import NAMES, TEKKEN
from fastsft.families import QWEN25

FAMILIES: tuple[Family, ...] = get_args(Family)


needs_llama_cpp = pytest.mark.skipif(llamacpp.installed() is None, reason="needs llama-cpp-python")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("vocabulary")
    return {
        name: write(tiny.folder(name), folder / f"{name}.gguf", more_rows=64) for name in FAMILIES
    }


@needs_llama_cpp
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_reads_the_tiny_models_vocabularies_as_they_are(
    family: str, pairs: dict[str, Pair]
) -> None:
    pair = pairs[family]
    bos = [] if pair.tokenizer.bos_id is None else [pair.tokenizer.bos_id]
    texts = [*conversations.texts(), *pair.rendered()]

    with llamacpp.opened(pair.path, vocab_only=True) as model:
        found, told = model.tokenize(texts, add_special=False), model.describe()
        begun = model.tokenize(["hi"], add_special=True)

    assert found == pair.ids(texts)
    assert begun == [[*bos, *pair.ids(["hi"])[0]]]
    assert {*told.eog_ids} == {*pair.tokenizer.stop_ids} == pair.vocabulary.ends.all_ids
    assert told.eos_id == pair.tokenizer.stop_ids[0]
    assert told.pad_id == pair.tokenizer.pad_id
    assert told.add_bos == bool(bos)
    assert not told.add_eos
    assert told.chat_template == pair.tokenizer.template.source
    assert told.n_vocab == pair.tokenizer.vocab_size + 64


def test_rows_without_a_token_are_unused(pairs: dict[str, Pair]) -> None:
    made = pairs["qwen2.5"].vocabulary

    assert made.tokens[-1] == f"[PAD{len(made.tokens) - 1}]"
    assert set(made.types[-64:]) == {vocabulary.UNUSED}


@needs_llama_cpp
@pytest.mark.parametrize(
    ("pattern", "ignores_merges"),
    [
        # A real vocabulary shows the others.
        pytest.param(*key, marks=() if name == "smaug-bpe" else pytest.mark.slow, id=name)
        for key, name in NAMES.items()
    ],
)
def test_each_pattern_has_the_name_by_which_llama_cpp_splits_so(
    pattern: str, ignores_merges: bool, tmp_path: Path
) -> None:

    def change(spec: Json) -> None:
        spec["normalizer"] = None
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
        spec["model"]["ignore_merges"] = ignores_merges
        _rename_last(spec, "qwerty")

    pair = write(changed(tiny.BASE, tmp_path / "model", change), tmp_path / "v.gguf")
    texts = [text for text in ["qwerty", *conversations.texts()] if pair.vocabulary.covers(text)]

    assert pair.vocabulary.splitting.pre == NAMES[pattern, ignores_merges]
    assert len(texts) > 340
    assert pair.llama_ids(texts) == pair.ids(texts)
    assert (len(pair.ids(["qwerty"])[0]) == 1) == ignores_merges


def _rename_last(spec: Json, new: str) -> None:
    """Gives the last token that is merged another text, which no merge makes."""
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    last = max(vocab, key=vocab.__getitem__)
    spec["model"]["merges"] = [pair for pair in merges if "".join(pair) != last]
    vocab[new] = vocab.pop(last)


@needs_llama_cpp
def test_a_token_that_is_never_made_is_not_taken_for_a_stop(tmp_path: Path) -> None:
    folder = changed(tiny.BASE, tmp_path / "model", lambda spec: _rename_last(spec, "</s>"))

    pair = write(folder, tmp_path / "v.gguf")

    texts = ["</s>", "a</s>b", "x </s> <|im_end|>"]
    with llamacpp.opened(pair.path, vocab_only=True) as model:
        assert model.tokenize(texts, add_special=False) == pair.ids(texts)
        assert {*model.describe().eog_ids} == {*pair.tokenizer.stop_ids}


@needs_llama_cpp
def test_a_vocabulary_of_sentencepiece_merges_as_the_tokenizer_does(tmp_path: Path) -> None:
    pair = write(_sentencepiece(tmp_path / "model"), tmp_path / "v.gguf")
    texts = ["<PAD", " <PAD> <PA <<PA", "é\n<PAD", "</s> <0x41>[INST]", *conversations.texts()]

    assert pair.llama_ids(texts) == pair.ids(texts)
    assert pair.ids(["<PA"]) == [[pair.vocabulary.tokens.index("<PA")]]


def test_text_that_llama_cpp_takes_for_a_control_token_is_told(tmp_path: Path) -> None:
    pair = write(_sentencepiece(tmp_path / "model"), tmp_path / "v.gguf")

    assert pair.vocabulary.notes == (
        "llama.cpp also stops at <PAD>, which it knows by name",
        "llama.cpp takes '<PAD>' for a control token; to the tokenizer it is text",
    )


def _sentencepiece(folder: Path) -> Path:
    """A tokenizer as Mistral 7B has it, of which one word is a token."""
    merges = [("<", "P"), ("<P", "A"), ("<PA", "D"), ("<PAD", ">")]
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    vocab = [*special, *sentencepiece.BYTES, *"▁<PAD>", *("".join(pair) for pair in merges)]

    def change(spec: Json) -> None:
        added = spec["added_tokens"][0]
        spec.update(_spm([REPLACE], None), post_processor=None, decoder=None)
        spec["added_tokens"] = [{**added, "id": at, "content": t} for at, t in enumerate(special)]
        spec["model"] = {
            "type": "BPE",
            "vocab": {token: at for at, token in enumerate(vocab)},
            "merges": merges,
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        }

    changed(tiny.folder("mistral"), folder, change)
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink()  # their ids are other ones
    return folder


def test_an_unknown_pattern_is_refused_with_the_pattern(tmp_path: Path) -> None:
    def change(spec: Json) -> None:
        spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\d+|\D+"}

    error = _refused(tmp_path, change)

    assert r"llama.cpp has no name for this pre_tokenizer (ignore_merges: False): \d+|\D+" in error


def _lstrip(spec: Json) -> None:
    spec["added_tokens"][0]["lstrip"] = True


def _beyond(spec: Json) -> None:
    spec["added_tokens"].append({**spec["added_tokens"][-1], "id": 5000, "content": "<far>"})


def _twice(spec: Json) -> None:
    spec["added_tokens"][5]["content"] = "<|im_start|>"


def _lowercase(spec: Json) -> None:
    spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}


def _prefix(spec: Json) -> None:
    spec["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def _suffix(spec: Json) -> None:
    spec["model"]["end_of_word_suffix"] = "</w>"


def _unigram(spec: Json) -> None:
    spec["model"]["type"] = "Unigram"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_lstrip, "the added token '<|endoftext|>' is found by lstrip, which a GGUF cannot say"),
        (_beyond, "the token '<far>' has id 5000, but the model has 2048 rows"),
        (_twice, "two ids have the text '<|im_start|>'"),
        (_lowercase, "llama.cpp has no name for this normalizer: [{'type': 'Lowercase'}]"),
        (_prefix, "llama.cpp has no name for this pre_tokenizer"),
        (_suffix, "type 'BPE' {'end_of_word_suffix': '</w>'}"),
        (_unigram, "type 'Unigram'"),
    ],
)
def test_what_a_gguf_cannot_say_is_refused_by_name(
    change: Callable[[Json], None], what: str, tmp_path: Path
) -> None:
    assert what in _refused(tmp_path, change)


def _refused(tmp_path: Path, change: Callable[[Json], None], **ids: Any) -> str:
    arguments: Json = {"rows": 2048, "stop_ids": (2034, 2032), "pad_id": 2032, "bos_id": None}
    folder = changed(tiny.BASE, tmp_path / "model", change)
    with pytest.raises(ExportError) as refused:
        vocabulary.read(folder, **{**arguments, **ids}, family=QWEN25)
    assert refused.value.exit_code == 5
    return str(refused.value)


def test_a_stop_id_without_a_token_is_refused(tmp_path: Path) -> None:
    error = _refused(tmp_path, lambda spec: None, rows=2060, stop_ids=(2034, 2055))

    assert "the stop, pad or BOS token 2055 is not in the vocabulary" in error


def test_stop_tokens_that_llama_cpp_does_not_know_by_name_are_told_to_it() -> None:
    ids = {"<a>": 1, "<b>": 2, "<c>": 3, "</s>": 4, "<|file_sep|>": 5}

    ends = endings.of(ids, [1, 4, 2, 3])

    assert (ends.eos_id, ends.eot_id, ends.eom_id) == (1, 2, 3)
    assert ends.all_ids == {1, 2, 3, 4, 5}


def test_more_stop_tokens_than_llama_cpp_can_be_told_are_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"cannot stop at 3 .* '<b>', '<c>', '<d>'"):
        endings.of({"<a>": 1, "<b>": 2, "<c>": 3, "<d>": 4}, [1, 2, 3, 4])


def test_a_stop_that_llama_cpp_takes_back_is_told_to_it() -> None:
    ends = endings.of({"<a>": 1, "</s>": 2, "<|tool_response>": 3}, [1, 2])

    assert ends.eot_id == 2


BYTES = [*sentencepiece.BYTES, "a", "b", "c"]


def test_scores_follow_the_order_of_the_merges() -> None:
    merges = [("a", "b"), ("ab", "c"), ("a", "bc"), ("b", "c")]

    found = sentencepiece.scores({*BYTES, "ab", "bc", "abc"}, merges)

    assert found == {"ab": 0.0, "abc": -1.0, "bc": -2.0}


@pytest.mark.parametrize(
    ("tokens", "merges", "what"),
    [
        ({*BYTES, "ab"}, [], "'a' and 'b' do not merge into the token 'ab'"),
        (
            {*BYTES, "ab", "bc", "abc"},
            [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")],
            "the merges into 'abc' do not follow each other",
        ),
        ({"a"}, [], "the token <0x00> is missing"),
    ],
)
def test_merges_that_scores_cannot_say_are_refused(
    tokens: set[str], merges: list[tuple[str, str]], what: str
) -> None:
    with pytest.raises(ExportError, match=what):
        sentencepiece.scores(tokens, merges)


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}


@pytest.mark.parametrize(
    ("normalizers", "split", "has_prefix", "covers"),
    [
        ([REPLACE], None, False, True),
        ([{"type": "Prepend", "prepend": "▁"}, REPLACE], None, True, True),
        ([], {**METASPACE, "prepend_scheme": "never"}, False, True),
        ([], {**METASPACE, "prepend_scheme": "first"}, False, False),
    ],
)
def test_each_way_to_write_sentencepiece_is_known(
    normalizers: list[Json], split: Json | None, has_prefix: bool, covers: bool
) -> None:
    found = pretokenizers.of(_spm(normalizers, split))

    assert (found.model, found.pre, found.has_space_prefix) == ("llama", "default", has_prefix)
    assert found.covers(["plain text"]) is covers
    assert found.covers(["", "text after a special token"])


@pytest.mark.parametrize(
    ("normalizers", "split"),
    [
        ([], None),
        ([{"type": "NFKC"}, REPLACE], None),
        ([], {**METASPACE, "prepend_scheme": "always"}),
        ([], {**METASPACE, "prepend_scheme": "never", "split": True}),
    ],
)
def test_other_ways_to_write_sentencepiece_are_refused(
    normalizers: list[Json], split: Json | None
) -> None:
    with pytest.raises(ExportError, match=r"llama\.cpp has no name for this"):
        pretokenizers.of(_spm(normalizers, split))


def _spm(normalizers: list[Json], split: Json | None) -> Json:
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": split,
        "model": {"byte_fallback": True},
    }


def test_what_llama_cpp_splits_otherwise_is_known_by_text(pairs: dict[str, Pair]) -> None:
    nemo = replace(
        pairs["mistral"].vocabulary,
        splitting=pretokenizers.of(
            {"pre_tokenizer": _split(TEKKEN), "model": {"ignore_merges": True}}
        ),
    )
    qwen = pairs["qwen2.5"].vocabulary

    assert [nemo.covers(text) for text in ("café Größe [INST]Привет", "КамАЗ", "สวัสดี")] == [
        *(True, False, False)
    ]
    assert [qwen.covers(text) for text in ("caf\u00e9", "cafe\u0301")] == [True, False]
    assert "NFC" in qwen.notes[0]
    assert "combining marks" in nemo.splitting.notes[0]


def _split(pattern: str) -> Json:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}
