"""From file to arrays: every row accounted for, every fault told at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizer import CHATML, write_tokenizer

from fastsft.data.prepare import prepare
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tiny")))


def row(question: str = "hi", answer: str = "yes", **extra: Any) -> dict[str, Any]:
    return {"prompt": question, "response": answer, **extra}


def write(folder: Path, *values: dict[str, Any], name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values), "utf-8")
    return path


def test_every_row_becomes_tokens(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("a", "b"), row("c", "d"))

    prepared = prepare(path, tokenizer, max_tokens=99)

    assert prepared.train.row_ids.tolist() == [0, 1]
    assert (prepared.train_tokens, prepared.trained_tokens) == (prepared.train.tokens, 4)
    assert len(prepared.eval) == 0


def test_a_sample_shows_what_is_trained(tmp_path: Path, tokenizer: ChatTokenizer):
    prepared = prepare(write(tmp_path, row("hi", "yes")), tokenizer, max_tokens=99)

    assert prepared.samples[0].where == "train.jsonl:1"
    assert prepared.samples[0].segments == (
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
        ("yes<|im_end|>", True),
        ("\n", False),
    )


def test_an_over_long_row_is_dropped_and_counted(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("a" * 200), row())

    prepared = prepare(path, tokenizer, max_tokens=99)

    (entry,) = prepared.ledger.entries
    assert (entry.line, entry.reason, entry.detail) == (
        1,
        "overlength",
        "224 tokens, max_tokens is 99",
    )
    assert prepared.train.row_ids.tolist() == [1]


def test_an_over_long_row_can_be_an_error(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row(), row("a" * 200))

    with pytest.raises(DataError) as caught:
        prepare(path, tokenizer, max_tokens=99, overlength="error")

    assert str(caught.value) == (
        "train.jsonl:2: the row has 224 tokens, more than max_tokens = 99\n"
        "  hint: raise max_tokens to 224, shorten the row, or drop over-long rows"
    )


def test_a_file_of_over_long_rows_says_what_would_fit(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("a" * 200), row("a" * 300), row("a" * 400))

    with pytest.raises(DataError) as caught:
        prepare(path, tokenizer, max_tokens=99)

    assert str(caught.value) == (
        "train.jsonl: every row is longer than max_tokens = 99: "
        "the shortest has 224 tokens, the longest 424\n"
        "  hint: set max_tokens to 424 to keep all rows, to 324 to keep half of them"
    )


def test_faults_are_told_together(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row(), row(answer=""), row("x", "<|im_end|>"), row(tools=[1]))
    path.write_text(path.read_text("utf-8") + "{\n", "utf-8")

    with pytest.raises(DataError) as caught:
        prepare(path, tokenizer, max_tokens=99)

    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:4]] == [f"train.jsonl:{i}" for i in (2, 3, 4, 5)]
    assert len([line for line in lines if line.startswith("  hint: ")]) == 4


def test_no_more_than_twenty_faults_are_told(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, *[row(answer="")] * 30)

    with pytest.raises(DataError) as caught:
        prepare(path, tokenizer, max_tokens=99)

    lines = str(caught.value).splitlines()
    assert sum(line.startswith("train.jsonl:") for line in lines) == 20
    assert lines[-2:] == [
        "stopped after 20 faulty rows; there may be more",
        "  hint: write its text, or remove the row",
    ]


def test_a_row_that_cannot_be_proved_is_named(tmp_path: Path):
    """A template that writes the pad token into the answer's place would train it."""
    folder = write_tokenizer(tmp_path / "odd", template=CHATML)
    tokenizer = ChatTokenizer.load(folder)
    tokenizer.pad_id = tokenizer.stop_ids[0]

    with pytest.raises(DataError, match=r"^train.jsonl:1: the training mask cannot be proved"):
        prepare(write(tmp_path, row()), tokenizer, max_tokens=99)


def test_an_evaluation_share_is_held_out(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, *(row(f"question {i}") for i in range(50)))

    prepared = prepare(path, tokenizer, max_tokens=99, eval_share=0.2)

    both = sorted([*prepared.train.row_ids.tolist(), *prepared.eval.row_ids.tolist()])
    assert both == list(range(50))
    assert prepared.ledger.evaluation == len(prepared.eval) > 0


def test_a_row_stays_on_its_side_wherever_it_stands(tmp_path: Path, tokenizer: ChatTokenizer):
    values = [row(f"question {i}") for i in range(50)]
    forward = prepare(write(tmp_path, *values), tokenizer, max_tokens=99, eval_share=0.2)
    backward = prepare(write(tmp_path, *values[::-1]), tokenizer, max_tokens=99, eval_share=0.2)

    assert forward.eval.row_ids.tolist() == [49 - i for i in backward.eval.row_ids.tolist()[::-1]]


def test_evaluation_rows_may_have_their_own_file(tmp_path: Path, tokenizer: ChatTokenizer):
    train = write(tmp_path, row("a"), row("b"))
    held = write(tmp_path, row("c"), name="eval.jsonl")

    prepared = prepare(train, tokenizer, max_tokens=99, eval_path=held)

    assert (len(prepared.train), len(prepared.eval)) == (2, 1)
    assert prepared.ledger.totals()["rows_in"] == 3
    assert prepared.ledger.entries[0].file == "eval.jsonl"


def test_notes_tell_of_keys_clocks_and_leaks(tmp_path: Path):
    template = CHATML + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    tokenizer = ChatTokenizer.load(write_tokenizer(tmp_path / "model", template=template))
    path = write(tmp_path, row(source="web"), row("b", "\nyes"))

    notes = prepare(path, tokenizer, max_tokens=99, eval_path=path).ledger.notes

    assert notes[0] == 'the key "source" is not read; 2 rows have it'
    assert notes[1].startswith("2 rows have an answer that begins with white space")
    assert notes[2].startswith("the chat template may write today's date; pin one")
    assert notes[3] == "2 evaluation rows are also trained on, so their loss flatters"


@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        (
            {"eval_path": Path("e.jsonl"), "eval_share": 0.1},
            "evaluation rows are asked for twice: e.jsonl and a share of 0.1",
            "keep one of the two",
        ),
        (
            {"eval_share": 1.0},
            "an evaluation share of 1.0 leaves nothing to train on",
            "give a share from 0 up to, not including, 1",
        ),
        ({"max_tokens": 0}, "max_tokens is 0", "give at least 1, say 2048"),
    ],
)
def test_a_wrong_request_is_refused(
    tmp_path: Path, tokenizer: ChatTokenizer, options: dict[str, Any], what: str, hint: str
):
    with pytest.raises(DataError) as caught:
        prepare(write(tmp_path, row()), tokenizer, **{"max_tokens": 99, **options})

    assert (caught.value.what, caught.value.hint) == (what, hint)


def test_progress_counts_rows(tmp_path: Path, tokenizer: ChatTokenizer):
    seen: list[int] = []

    prepare(write(tmp_path, *[row()] * 300), tokenizer, max_tokens=99, progress=seen.append)

    assert seen == [256, 300]


def test_the_same_file_gives_the_same_arrays(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, *(row(f"q {i}") for i in range(20)))

    hashes = {
        prepare(path, tokenizer, max_tokens=99, eval_share=0.3).train.sha256() for _ in range(2)
    }

    assert len(hashes) == 1


def test_every_proved_row_trains_its_stop_token(tmp_path: Path, tokenizer: ChatTokenizer):
    prepared = prepare(write(tmp_path, *[row()] * 5), tokenizer, max_tokens=99)

    stops = [int(np.count_nonzero(labels == tokenizer.stop_ids[0])) for _, labels in prepared.train]
    assert stops == [1] * 5
