"""The ledger: its files, and that no row can be lost."""

import json
from pathlib import Path

import pytest

from fastsft.data.ledger import Entry, Ledger
from fastsft.errors import DataError

DROPPED = Entry("train.jsonl", 3, "overlength", "99 tokens, max_tokens is 9")
HELD = Entry("train.jsonl", 5, "evaluation")


def test_totals_add_up():
    ledger = Ledger(rows_in=5, train=3, entries=(DROPPED, HELD), notes=("a note",))

    assert ledger.totals() == {
        "rows_in": 5,
        "train": 3,
        "evaluation": 1,
        "dropped": {"overlength": 1},
        "changed": {},
        "notes": ["a note"],
    }


def test_a_lost_row_is_an_error():
    with pytest.raises(DataError, match="does not add up: 6 rows in, 5 accounted for") as caught:
        Ledger(rows_in=6, train=3, entries=(DROPPED, HELD))

    assert caught.value.hint == "this is a fault in fastsft; please report it with the ledger"


def test_the_files_say_the_same(tmp_path: Path):
    ledger = Ledger(rows_in=5, train=3, entries=(DROPPED, HELD))

    ledger.write(tmp_path)

    lines = (tmp_path / "ledger.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["overlength", "evaluation"]
    assert json.loads((tmp_path / "ledger.json").read_text("utf-8")) == ledger.totals()
