"""From sources to arrays: every row accounted for, every fault told at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import ids_of, prepared, reasons, row, write
from tiny_tokenizer import CHATML, write_tokenizer

from fastsft.data import summary
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError, RecipeError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tiny")))


def told(found: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        found.require()
    return str(caught.value).splitlines()


def test_every_row_becomes_tokens(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("a", "b"), row("c", "d"))

    found = prepared(tmp_path, tokenizer, {"path": str(path)})

    found.require()
    assert found.train.row_ids.tolist() == [0, 1]
    assert (found.report.tokens, found.report.trained_tokens) == (found.train.tokens, 4)
    assert len(found.eval) == 0


def test_a_sample_shows_what_is_trained(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("hi", "yes"))

    found = prepared(tmp_path, tokenizer, {"path": str(path)})

    assert found.report.samples[0].where == "train.jsonl:1"
    assert found.report.samples[0].segments == (
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
        ("yes<|im_end|>", True),
        ("\n", False),
    )


def test_an_over_long_row_is_dropped_and_counted(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("a" * 200), row())

    found = prepared(tmp_path, tokenizer, {"path": str(path)})

    (entry,) = found.ledger.entries
    assert (entry.line, entry.reason, entry.detail) == (
        1,
        "overlength",
        "224 tokens, max_tokens is 99",
    )
    assert found.report.samples[0].where == "train.jsonl:2"


def test_an_over_long_row_can_be_an_error(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row(), row("a" * 200))

    found = prepared(tmp_path, tokenizer, {"path": str(path), "overlength": "error"})

    assert told(found) == [
        "train.jsonl:2: the row has 224 tokens, more than max_tokens = 99",
        "  hint: raise max_tokens to 224, shorten the row, or drop over-long rows",
    ]


def test_an_over_long_row_can_lose_the_beginning_of_its_question(
    tmp_path: Path, tokenizer: ChatTokenizer
):
    path = write(tmp_path, row("a" * 200 + "end?", "answer"))

    found = prepared(tmp_path, tokenizer, {"path": str(path), "overlength": "truncate_prompt"})

    (_, (answer, trained), _) = found.report.samples[0].segments
    assert (answer, trained) == ("answer<|im_end|>", True)
    assert "aend?<|im_end|>" in found.report.samples[0].segments[0][0]
    assert found.train.lengths.tolist() == [99]
    assert found.ledger.changed == {"truncated": 1}
    assert found.ledger.train == 1


def test_an_answer_that_is_too_long_is_never_cut(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("hi", "a" * 200), row())

    found = prepared(tmp_path, tokenizer, {"path": str(path), "overlength": "truncate_prompt"})

    assert reasons(found) == [(1, "overlength")]


def test_an_over_long_row_can_be_split_between_turns(tmp_path: Path, tokenizer: ChatTokenizer):
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    messages = [{"role": role, "content": text} for role, text in (("system", "s"), *turns)]
    path = write(tmp_path, {"messages": messages})

    found = prepared(
        tmp_path, tokenizer, {"path": str(path), "overlength": "split_turns", "max_tokens": 50}
    )

    texts = [tokenizer.decode(ids) for ids, _ in found.train]
    assert [text.count("<|im_start|>system\ns<|im_end|>") for text in texts] == [1, 1]
    assert ["a1" in texts[0], "q2" in texts[0], "q1" in texts[1], "a2" in texts[1]] == [
        True,
        False,
        False,
        True,
    ]
    assert found.ledger.changed == {"split": 1}
    assert (found.ledger.rows_in, found.ledger.train) == (1, 1)


def test_splitting_keeps_the_last_turn_alone_where_that_is_trained(
    tmp_path: Path, tokenizer: ChatTokenizer
):
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    path = write(tmp_path, {"messages": [{"role": r, "content": t} for r, t in turns]})
    options = {"overlength": "split_turns", "max_tokens": 40, "train_on": "last_turn"}

    found = prepared(tmp_path, tokenizer, {"path": str(path), **options})

    (sample,) = found.report.samples
    assert [text for text, trained in sample.segments if trained] == ["a2<|im_end|>"]


def test_a_file_of_over_long_rows_says_what_would_fit(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("a" * 200), row("a" * 300), row("a" * 400))

    found = prepared(tmp_path, tokenizer, {"path": str(path)})

    assert told(found) == [
        "data: every row is longer than max_tokens = 99: the shortest has 224 tokens, "
        "the longest 424",
        "  hint: set max_tokens to 424 to keep all rows, to 324 to keep half of them",
    ]


def test_faults_are_told_together(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row(), row(answer=""), row("x", "<|im_end|>"), row(images=[1]))
    path.write_text(path.read_text("utf-8") + "{\n", "utf-8")

    lines = told(prepared(tmp_path, tokenizer, {"path": str(path)}))

    places = {line.split(": ")[0] for line in lines if line.startswith("train")}
    assert places == {f"train.jsonl:{i}" for i in (2, 3, 4, 5)}
    assert len([line for line in lines if line.startswith("  hint: ")]) == 4


def test_reading_ends_early_where_that_is_asked_for(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, *[row(answer="")] * 30)

    with pytest.raises(DataError) as caught:
        prepared(tmp_path, tokenizer, {"path": str(path)}, max_faults=20)

    lines = str(caught.value).splitlines()
    assert sum(line.startswith("train.jsonl:") for line in lines) == 20
    assert lines[-2] == "stopped after 30 faulty rows; `fastsft check` shows all of them"


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("a"), row(answer=""), row("b"))

    found = prepared(tmp_path, tokenizer, {"path": str(path), "bad_rows": "skip"})

    found.require()
    assert reasons(found) == [(2, "empty_answer")]
    assert (found.ledger.rows_in, found.ledger.train) == (3, 2)


def test_a_report_that_leaves_faults_out_says_so(
    tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(summary, "MOST_FAULTS", 25)
    path = write(tmp_path, *[row(answer="")] * 30, row())

    found = prepared(tmp_path, tokenizer, {"path": str(path)})

    assert len(found.report.faults) == 25
    assert found.report.notes[-1].startswith("of 30 faulty rows the first 25 are told one by one")
    assert "and 10 more faulty rows; `fastsft check` shows all" in told(found)


def test_nothing_left_at_all_is_refused(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row(answer=""))

    lines = told(prepared(tmp_path, tokenizer, {"path": str(path), "bad_rows": "skip"}))

    assert lines[0] == ("data: no row is left to train on: 1 rows in, 1 empty_answer, 0 held out")


def test_a_row_that_cannot_be_proved_is_named(tmp_path: Path):
    """A tokenizer whose pad is its stop token would mask it."""
    tokenizer = ChatTokenizer.load(write_tokenizer(tmp_path / "odd", template=CHATML))
    tokenizer.pad_id = tokenizer.stop_ids[0]
    path = write(tmp_path, row())

    lines = told(prepared(tmp_path, tokenizer, {"path": str(path)}))

    assert lines[0].startswith("train.jsonl:1: the training mask cannot be proved")


def test_an_evaluation_share_is_held_out(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, *(row(f"question {i}") for i in range(50)))

    found = prepared(tmp_path, tokenizer, {"path": str(path)}, eval={"share": 0.2})

    both = sorted([*found.train.row_ids.tolist(), *found.eval.row_ids.tolist()])
    assert both == list(range(50))
    assert found.ledger.evaluation == len(found.eval) > 0


def test_a_row_stays_on_its_side_wherever_it_stands(tmp_path: Path, tokenizer: ChatTokenizer):
    values = [row(f"question {i}") for i in range(50)]
    (tmp_path / "back").mkdir()
    paths = write(tmp_path, *values), write(tmp_path / "back", *values[::-1])

    forward, backward = (
        prepared(tmp_path, tokenizer, {"path": str(path)}, eval={"share": 0.2}) for path in paths
    )

    assert forward.eval.row_ids.tolist() == [49 - i for i in backward.eval.row_ids.tolist()[::-1]]


def test_a_share_of_a_few_rows_still_holds_one_out(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("a"), row("b"), row("c"))

    found = prepared(tmp_path, tokenizer, {"path": str(path)}, eval={"share": 0.001})

    assert (len(found.train), len(found.eval)) == (2, 1)
    assert "one row was moved" in found.ledger.notes[0]


def test_nothing_to_evaluate_on_is_refused(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, row("a"))

    lines = told(prepared(tmp_path, tokenizer, {"path": str(path)}, eval={"share": 0.2}))

    assert lines[0] in (
        "data: no row is left to evaluate on",
        "data: no row is left to train on: 1 rows in, none dropped, 1 held out",
    )


def test_evaluation_rows_may_have_their_own_file(tmp_path: Path, tokenizer: ChatTokenizer):
    train = write(tmp_path, row("a"), row("b"))
    held = write(tmp_path, row("c"), name="eval.jsonl")

    found = prepared(tmp_path, tokenizer, {"path": str(train)}, eval={"path": str(held)})

    assert (len(found.train), len(found.eval)) == (2, 1)
    assert found.ledger.totals()["rows_in"] == 3
    assert found.ledger.entries[0].file == "eval.jsonl"


def test_a_training_row_that_is_evaluated_on_is_removed(tmp_path: Path, tokenizer: ChatTokenizer):
    train = write(tmp_path, row("a"), row("c"))
    held = write(tmp_path, row("c"), name="eval.jsonl")

    found = prepared(tmp_path, tokenizer, {"path": str(train)}, eval={"path": str(held)})

    assert (len(found.train), len(found.eval)) == (1, 1)
    assert found.ledger.dropped == {"leakage": 1}


def test_notes_tell_of_keys_and_clocks(tmp_path: Path):
    template = CHATML + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    tokenizer = ChatTokenizer.load(write_tokenizer(tmp_path / "model", template=template))
    path = write(tmp_path, row(source="web"), row("b", "\nyes"))

    notes = prepared(tmp_path, tokenizer, {"path": str(path)}).ledger.notes

    assert notes[0] == 'the key "source" is not read; 1 rows have it'
    assert notes[1].startswith("1 rows have an answer that begins with white space")
    assert notes[2].startswith("the chat template may write today's date; pin one")


def test_a_recipe_without_a_source_is_refused(tmp_path: Path, tokenizer: ChatTokenizer):
    with pytest.raises(RecipeError) as caught:
        prepared(tmp_path, tokenizer, {})

    assert caught.value.hint == "pass --data rows.jsonl"


def test_progress_counts_rows(tmp_path: Path, tokenizer: ChatTokenizer):
    seen: list[int] = []
    path = write(tmp_path, *[row()] * 300)

    prepared(tmp_path, tokenizer, {"path": str(path)}, progress=seen.append)

    assert seen == sorted(seen)
    assert seen[-1] == 300


def test_processes_make_the_same_arrays(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, *(row(f"q {i}", "" if i == 700 else "a") for i in range(900)))
    data = {"path": str(path), "bad_rows": "skip"}

    here, there = (prepared(tmp_path, tokenizer, data, workers=workers) for workers in (0, 2))

    assert here.train.sha256() == there.train.sha256()
    assert here.ledger == there.ledger


def test_every_proved_row_trains_its_stop_token(tmp_path: Path, tokenizer: ChatTokenizer):
    path = write(tmp_path, *[row()] * 5)

    found = prepared(tmp_path, tokenizer, {"path": str(path)})

    stops = [int(np.count_nonzero(labels == tokenizer.stop_ids[0])) for _, labels in found.train]
    assert stops == [1] * 5
    assert found.report.stop_share == 1


def test_row_order_does_not_matter_to_a_rows_arrays(tmp_path: Path, tokenizer: ChatTokenizer):
    values = [row(f"q {i}", "a" * (i % 7 + 1)) for i in range(40)]
    (tmp_path / "back").mkdir()
    paths = write(tmp_path, *values), write(tmp_path / "back", *values[::-1])

    forward, backward = (prepared(tmp_path, tokenizer, {"path": str(path)}) for path in paths)

    assert ids_of(forward) == ids_of(backward)[::-1]
