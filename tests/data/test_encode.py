"""The proof: every way in which arrays can be wrong has its refusal."""

import numpy as np
import pytest
from conversations import ask
from tiny_tokenizer import CHATML, TOKENS, write_tokenizer

from fastsft.data.encode import UNTRAINED, Encoded, encode, prove
from fastsft.data.render import Rendered, Span, render
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError
from fastsft.families import LLAMA

BOS = "<|begin_of_text|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def bos_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = write_tokenizer(
        tmp_path_factory.mktemp("bos"),
        template="{{ bos_token }}" + CHATML,
        tokens=(*TOKENS, BOS, "<|reserved_special_token_0|>"),
        config={"eos_token": "<|im_end|>", "bos_token": BOS},
    )
    return ChatTokenizer.load(folder, family=LLAMA)


def refusal(encoded: Encoded, rendered: Rendered, tokenizer: ChatTokenizer) -> str:
    with pytest.raises(DataError, match=r"^test.jsonl:1: the training mask cannot be") as caught:
        prove(encoded, rendered, tokenizer)
    return caught.value.what.removeprefix("the training mask cannot be proved: ")


def relabelled(encoded: Encoded, place: int, label: int) -> Encoded:
    labels = encoded.labels.copy()
    labels[place] = label
    return Encoded(encoded.input_ids, labels)


def test_arrays_are_int32_and_of_one_length(tokenizer: ChatTokenizer):
    encoded = encode(render(ask("hi", "yes"), tokenizer), tokenizer)

    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int32
    assert encoded.input_ids.shape == encoded.labels.shape


def test_nothing_trained_is_refused(tokenizer: ChatTokenizer):
    rendered = render(ask("hi", "yes"), tokenizer)
    ids = encode(rendered, tokenizer).input_ids

    assert refusal(Encoded(ids, np.full_like(ids, UNTRAINED)), rendered, tokenizer) == (
        "no token is trained"
    )


def test_a_wrong_label_is_refused(tokenizer: ChatTokenizer):
    rendered = render(ask("hi", "yes"), tokenizer)
    encoded = encode(rendered, tokenizer)
    first = int(np.flatnonzero(encoded.trained)[0])

    assert refusal(relabelled(encoded, first, 7), rendered, tokenizer) == (
        "labels differ from the ids that they stand for"
    )


def test_a_trained_pad_is_refused(tokenizer: ChatTokenizer):
    rendered = Rendered("a<|endoftext|>", (Span(0, 14),), "all", "test.jsonl:1")

    assert refusal(encode(rendered, tokenizer), rendered, tokenizer) == (
        "the pad token <|endoftext|> is trained"
    )


def test_a_missing_run_is_refused(tokenizer: ChatTokenizer):
    rendered = render(ask("hi", "yes"), tokenizer)
    encoded = encode(rendered, tokenizer)

    assert (
        refusal(relabelled(encoded, 0, int(encoded.input_ids[0])), rendered, tokenizer)
        == "2 trained runs for 1 answers"
    )


def test_a_missing_stop_token_is_refused(tokenizer: ChatTokenizer):
    rendered = render(ask("hi", "yes"), tokenizer)
    encoded = encode(rendered, tokenizer)
    last = int(np.flatnonzero(encoded.trained)[-1])

    assert refusal(relabelled(encoded, last, UNTRAINED), rendered, tokenizer) == (
        "trained tokens read 'yes', not 'yes<|im_end|>'"
    )


def test_a_token_of_the_template_is_refused(tokenizer: ChatTokenizer):
    rendered = render(ask("hi", "yes"), tokenizer)
    encoded = encode(rendered, tokenizer)
    before = int(np.flatnonzero(encoded.trained)[0]) - 1
    newline = relabelled(encoded, before, int(encoded.input_ids[before]))
    word = relabelled(newline, before - 1, int(encoded.input_ids[before - 1]))

    assert refusal(newline, rendered, tokenizer) == "a token of the template alone is trained"
    assert refusal(word, rendered, tokenizer) == "the template's text 't\\n' is trained"


def test_a_second_stop_token_in_a_turn_is_refused(tokenizer: ChatTokenizer):
    text = "q<|im_end|>a<|im_end|>"
    rendered = Rendered(text, (Span(0, len(text)),), "assistant", "test.jsonl:1")

    assert refusal(encode(rendered, tokenizer), rendered, tokenizer) == (
        "a trained turn must hold one stop token, its last"
    )


def test_ids_that_are_not_the_text_are_refused(tokenizer: ChatTokenizer):
    rendered = render(ask("hi", "yes"), tokenizer)
    encoded = encode(rendered, tokenizer)
    cut = Encoded(encoded.input_ids[1:], encoded.labels[1:])

    assert refusal(cut, rendered, tokenizer).startswith("untrained tokens do not read")


@pytest.mark.parametrize(
    ("text", "places"), [("x", "none"), (f"x{BOS}", "[1]"), (f"{BOS}{BOS}x", "[0, 1]")]
)
def test_bos_stands_once_and_first(bos_tokenizer: ChatTokenizer, text: str, places: str):
    full = f"{text}y<|im_end|>"
    rendered = Rendered(full, (Span(len(text), len(full)),), "assistant", "test.jsonl:1")

    assert refusal(encode(rendered, bos_tokenizer), rendered, bos_tokenizer) == (
        f"{BOS} must stand once, at position 0; it stands at {places}"
    )


def test_bos_is_never_trained(bos_tokenizer: ChatTokenizer):
    full = f"{BOS}y<|im_end|>"
    rendered = Rendered(full, (Span(0, len(full)),), "all", "test.jsonl:1")

    assert refusal(encode(rendered, bos_tokenizer), rendered, bos_tokenizer) == f"{BOS} is trained"
