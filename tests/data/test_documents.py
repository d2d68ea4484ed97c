"""Raw text: every token trained, none lost, documents bounded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tokenizer import write_tokenizer

from fastsft.data.conversation import Document
from fastsft.data.documents import PLAIN, DocumentEncoder
from fastsft.data.encode import UNTRAINED
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import BadRow

Load = Callable[[str], ChatTokenizer]
ENDS = {
    "qwen2.5": "<|endoftext|>",
    "llama-3.1": "<|end_of_text|>",
    "mistral-v0.3": "</s>",
    "mistral-nemo": "</s>",
}
TEXT = "The quick brown fox.\n\n敏捷的棕色狐狸 👍\n\tdef f(x):  return x\n" * 3


def ids(tokenizer: ChatTokenizer, text: str, size: int = 16, **options: bool) -> list[list[int]]:
    document = Document(text, "book.txt:1", continues=options.get("continues", False))
    rows = DocumentEncoder(tokenizer, size)(document, is_first=options.get("is_first", True))
    return [row.input_ids.tolist() for row in rows]


@pytest.mark.parametrize("name", ENDS)
def test_no_token_is_lost_and_the_document_ends(real_tokenizer: Load, name: str):
    tokenizer = real_tokenizer(name)

    rows = ids(tokenizer, TEXT)

    joined = [token for row in rows for token in row]
    bos = tokenizer.bos_token or ""
    assert tokenizer.decode(joined) in (
        f"{bos}{TEXT}{ENDS[name]}",
        f"{bos} {TEXT}{ENDS[name]}",  # SentencePiece begins a text with a space
    )
    assert {len(row) for row in rows[:-2]} == {16}
    assert joined.count(tokenizer.bos_id or -1) == (1 if bos else 0)


def test_every_token_but_the_first_of_a_row_is_trained(real_tokenizer: Load):
    encoder = DocumentEncoder(real_tokenizer("qwen2.5"), 16)

    for row in encoder(Document(TEXT, "x:1"), is_first=True):
        assert row.labels[0] == UNTRAINED
        assert row.labels[1:].tolist() == row.input_ids[1:].tolist()


def test_a_piece_in_the_middle_has_neither_beginning_nor_end(real_tokenizer: Load):
    tokenizer = real_tokenizer("llama-3.1")

    (row,) = ids(tokenizer, "abc", is_first=False, continues=True)

    assert tokenizer.decode(row) == "abc"


@pytest.mark.parametrize("length", range(1, 12))
def test_no_row_is_a_single_token(tmp_path: Path, length: int):
    tokenizer = ChatTokenizer.load(write_tokenizer(tmp_path))

    rows = ids(tokenizer, "x" * length, size=4)

    assert sum(map(len, rows)) == length + 1
    assert min(map(len, rows)) >= 2
    assert max(map(len, rows)) <= 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n", "empty_text"),
        ("a <|im_end|> b", "control_token"),
        ("<|endoftext|>", "control_token"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(real_tokenizer: Load, text: str, reason: str):
    with pytest.raises(BadRow) as caught:
        ids(real_tokenizer("qwen2.5"), text)

    assert (caught.value.reason, caught.value.where) == (reason, "book.txt:1")


def test_a_base_without_a_chat_template_reads_plain_text(tmp_path: Path):
    folder = write_tokenizer(
        tmp_path,
        template=None,
        tokens=("<|endoftext|>", "<|im_end|>", "<|fim_pad|>"),
        config={"eos_token": "<|endoftext|>"},
    )

    tokenizer = ChatTokenizer.load(folder, template=PLAIN)

    assert tokenizer.turn.stop == "<|endoftext|>"
    assert tokenizer.pad_token != "<|endoftext|>"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(min_size=1, max_size=200).filter(str.strip), size=st.integers(2, 40))
def test_whatever_the_text_its_tokens_read_back(real_tokenizer: Load, text: str, size: int):
    tokenizer = real_tokenizer("llama-3.1")

    joined = [token for row in ids(tokenizer, text, size=size) for token in row]

    assert tokenizer.decode(joined[1:-1]) == text
