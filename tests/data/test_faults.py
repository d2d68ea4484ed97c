"""A file full of faults: every one told with its reason and line, the good rows untouched."""

from collections import Counter
from pathlib import Path

import pytest
from faults import KINDS, good
from preparing import prepared
from tiny_tokenizer import write_tokenizer

from fastsft.data import streams
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError

EACH = 50


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a line, lowered: 50 lines of 10 MB would only be slow."""
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 65_536)


def test_there_are_at_least_24_kinds():
    assert len({reason for reason, _ in KINDS.values()}) >= 24


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_told_with_reason_line_and_cure(
    tmp_path: Path, tokenizer: ChatTokenizer, kind: str
):
    reason, line = KINDS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good(0), line(1), good(2)]))

    found = prepared(tmp_path, tokenizer, {"path": str(path)})

    (fault,) = found.report.faults
    assert (fault.where, fault.reason) == ("rows.jsonl:2", reason)
    assert fault.what
    assert fault.hint
    with pytest.raises(DataError, match=r"^rows.jsonl:2: "):
        found.require()


def test_every_one_of_many_faults_is_in_the_ledger_and_good_rows_are_unchanged(
    tmp_path: Path, tokenizer: ChatTokenizer
):
    path, clean = tmp_path / "rows.jsonl", tmp_path / "good.jsonl"
    kinds = list(KINDS.values())
    lines, expected = [], {}
    for number in range(EACH * len(kinds)):
        reason, line = kinds[number % len(kinds)]
        lines += [line(number), good(number)]
        expected[2 * number + 1] = reason
    path.write_bytes(b"\n".join([good(-1), *lines]))
    clean.write_bytes(b"\n".join([good(-1), *lines[1::2]]))
    checks = {"near_duplicates": "off"}

    found = prepared(tmp_path, tokenizer, {"path": str(path), "bad_rows": "skip", "checks": checks})
    alone = prepared(tmp_path, tokenizer, {"path": str(clean), "checks": checks})

    told = {entry.line: entry.reason for entry in found.ledger.entries}
    assert told == {line + 1: reason for line, reason in expected.items()}
    assert found.ledger.dropped == Counter(expected.values())
    assert found.ledger.rows_in == 1 + 2 * len(expected)
    assert found.ledger.train == 1 + len(expected)
    assert [ids.tolist() for ids, _ in found.train] == [ids.tolist() for ids, _ in alone.train]
    assert found.train.sha256() == alone.train.sha256()
