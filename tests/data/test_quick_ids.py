"""tiktoken's ids are those of the model's own tokenizer, or it is not used."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conversations import CONVERSATIONS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sayings import TEXT
from tiny_tokenizer import write_tokenizer
from tokenizers import Tokenizer

from fastsft.data.quick_ids import QuickIds
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.data.tokens import QuickTokens, Tokens
from fastsft.errors import DataError

QUICK = ("qwen2.5", "llama-3.1", "mistral-nemo")
RUNS = st.lists(
    st.tuples(
        st.sampled_from(["a", " ", "\n", "  ", "0", "=", "-", "é", "好", "e\u0301"]),
        st.integers(1, 30),
    ),
    max_size=8,
).map(lambda runs: "".join(letter * count for letter, count in runs))
Find = Callable[[str], Path]
made: dict[Path, tuple[QuickIds | None, Tokenizer]] = {}


def both(folder: Path) -> tuple[QuickIds | None, Tokenizer]:
    if folder not in made:
        reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
        text = (folder / "tokenizer.json").read_text("utf-8")
        made[folder] = QuickIds.of(text, reference), reference
    return made[folder]


def ids(reference: Tokenizer, text: str) -> list[int]:
    found: list[int] = reference.encode(text, add_special_tokens=False).ids
    return found


@pytest.mark.parametrize("name", QUICK)
def test_every_conversation_gets_the_same_ids(tokenizer_folder: Find, name: str):
    quick, reference = both(tokenizer_folder(name))

    assert quick is not None
    for chat in CONVERSATIONS.values():
        text = "<|im_start|>".join(message.content for message in chat.messages)
        assert quick.encode(text) in (None, ids(reference, text))


@pytest.mark.parametrize("name", QUICK)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=TEXT | RUNS | st.text(max_size=60))
def test_any_text_gets_the_same_ids_and_places(tokenizer_folder: Find, name: str, text: str):
    quick, reference = both(tokenizer_folder(name))
    assert quick is not None
    found = quick.encode(text)

    assert found in (None, ids(reference, text))
    if found:
        tokens = QuickTokens(text, found, quick.byte_lengths)
        theirs = Tokens(reference.encode(text, add_special_tokens=False))
        assert tokens.is_whole
        for start in range(len(text)):
            assert tokens.at(start, start + 1) == theirs.at(start, start + 1)
        assert tokens.at(0, len(text)) == theirs.at(0, len(text))


@pytest.mark.parametrize("name", ["mistral-v0.3"])
def test_a_vocabulary_of_another_make_is_left_to_its_own_tokenizer(
    tokenizer_folder: Find, name: str
):
    assert both(tokenizer_folder(name))[0] is None


def test_a_tokenizer_that_splits_otherwise_is_noticed(tokenizer_folder: Find):
    """The probes find that another expression was saved than the one that acts."""
    folder = tokenizer_folder("qwen2.5")
    text = (folder / "tokenizer.json").read_text("utf-8")
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))

    other = text.replace(r"\\s+(?!\\S)|", "")

    assert other != text
    assert QuickIds.of(other, reference) is None


def test_merges_out_of_order_are_noticed(tokenizer_folder: Find):
    folder = tokenizer_folder("qwen2.5")
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    merges = spec["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]

    assert QuickIds.of(json.dumps(spec), both(folder)[1]) is None


def test_text_that_was_not_probed_is_left_to_the_tokenizer(tokenizer_folder: Find):
    quick, _ = both(tokenizer_folder("qwen2.5"))

    assert quick is not None
    assert quick.encode("cafe\u0301") is None  # not NFC
    assert quick.encode("\U00020000") is None  # an ideograph beyond the BMP
    assert quick.encode("café 👍") is not None


def test_a_quickened_tokenizer_gives_the_same_tokens(tokenizer_folder: Find):
    slow, quick = (ChatTokenizer.load(tokenizer_folder("llama-3.1")) for _ in range(2))
    quick.quicken()
    texts = [m.content for chat in CONVERSATIONS.values() for m in chat.messages]

    pairs = zip(slow.encode_batch(texts), quick.encode_batch(texts), strict=True)

    assert all(one.ids == other.ids for one, other in pairs)


def test_what_was_proved_once_is_not_proved_again(
    tokenizer_folder: Find, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer = ChatTokenizer.load(tokenizer_folder("mistral-nemo"))
    tokenizer.quicken()
    probed: list[int] = []
    monkeypatch.setattr(QuickIds, "_agrees", lambda *_: probed.append(1))

    tokenizer.quicken()

    assert tokenizer._quick is not None
    assert probed == []


def test_other_ids_are_noticed_refused_and_remembered(
    tokenizer_folder: Find, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer = ChatTokenizer.load(tokenizer_folder("mistral-nemo"))
    tokenizer.quicken()
    assert tokenizer._quick is not None
    (good,) = tokenizer.encode_batch(["abcd"])
    letters = [tokenizer.encode_batch([letter])[0].ids[0] for letter in "abcd"]
    monkeypatch.setattr(QuickIds, "encode", lambda *_: letters)

    with pytest.raises(DataError, match="tiktoken gives other ids") as caught:
        tokenizer.encode_batch(["abcd"])
    tokenizer.quicken()

    assert caught.value.hint.startswith("run it again")
    assert tokenizer._quick is None
    assert tokenizer.encode_batch(["abcd"])[0].ids == good.ids != letters


def test_a_tiny_tokenizer_is_not_quickened(tmp_path: Path):
    tokenizer = ChatTokenizer.load(write_tokenizer(tmp_path))

    tokenizer.quicken()

    assert tokenizer._quick is None
