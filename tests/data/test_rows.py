"""Parsing a batch: what is a row, and what each broken line is told."""

import pickle

import pytest

from fastsft.data.rows import Batch, Row, parse
from fastsft.errors import BadRow


def parsed(*lines: bytes) -> list[Row | BadRow]:
    return list(parse(Batch("train.jsonl", 1, lines)))


def test_a_row_knows_its_place():
    rows = list(parse(Batch("train.jsonl", 7, (b'{"a": 1}\n', b'{"a": 2}'))))

    assert rows == [Row("train.jsonl", 7, {"a": 1}), Row("train.jsonl", 8, {"a": 2})]
    assert [row.where for row in rows if isinstance(row, Row)] == ["train.jsonl:7", "train.jsonl:8"]


def test_blank_lines_are_no_rows_but_keep_their_number():
    rows = parsed(b"\n", b'{"a": 1}\r\n', b"  \n", b"\n", b'{"a": 2}\n', b"\n")

    assert [row.line for row in rows if isinstance(row, Row)] == [2, 5]


def test_a_line_separator_inside_a_string_is_kept():
    assert parsed('{"a": "x\u2028y\x85z"}\n'.encode()) == [
        Row("train.jsonl", 1, {"a": "x\u2028y\x85z"})
    ]


def test_an_escaped_emoji_is_whole():
    assert parsed(rb'{"a": "\ud83d\udc4d"}') == [Row("train.jsonl", 1, {"a": "👍"})]


def test_values_and_faults_that_are_read_already_pass():
    fault = BadRow("x", reason="ragged_row", hint="y", where="t.csv:3")

    assert list(parse(Batch("t.csv", 2, ((2, {"a": "1"}), fault)))) == [
        Row("t.csv", 2, {"a": "1"}),
        fault,
    ]


def test_a_fault_survives_the_way_out_of_a_worker():
    (fault,) = parsed(b'{"a": NaN}')

    again = pickle.loads(pickle.dumps(fault))

    assert isinstance(again, BadRow)
    assert (str(again), again.reason) == (str(fault), "nan_literal")


CASES = {
    "half a line": (
        b'{"a": ',
        "not_json",
        "not JSON: Expecting value at column 6",
        "one JSON object on each line",
    ),
    "no value": (b'{"a": }', "not_json", "not JSON: Expecting value at column 7", "jq -c ."),
    "a string": (b'"text"', "not_an_object", "the line is a string, not a JSON object", "object"),
    "an array": (b"[1]", "not_an_object", "the line is an array, not a JSON object", "object"),
    "null": (b"null", "not_an_object", "the line is null, not a JSON object", "object"),
    "a number": (b"3", "not_an_object", "the line is a number, not a JSON object", "object"),
    "a boolean": (b"true", "not_an_object", "the line is a boolean, not a JSON object", "object"),
    "not UTF-8": (
        b'{"a": "caf\xe9"}',
        "not_utf8",
        "not UTF-8: byte 0xe9 at column 11",
        "save the file as UTF-8",
    ),
    "a NUL": (b'{"a": "x\0y"}', "nul_byte", "NUL byte 0x00 at column 9", "tr -d"),
    "NUL outside": (b'{"a": 1}\0\0', "nul_byte", "NUL byte 0x00 at column 9", "UTF-16"),
    "a duplicate key": (
        b'{"a": 1, "b": 0, "b": 2, "a": 2}',
        "duplicate_key",
        'key "b" appears twice in one object',
        "keep one of the two",
    ),
    "a duplicate key inside": (
        b'{"m": [{"role": 1, "role": 2}]}',
        "duplicate_key",
        'key "role" appears twice',
        "keep one",
    ),
    "NaN": (b'{"a": NaN}', "nan_literal", "NaN is not JSON", "write null"),
    "infinity": (b'{"a": [-Infinity]}', "nan_literal", "-Infinity is not JSON", "write null"),
    "half an emoji": (
        rb'{"a": "\ud83d"}',
        "lone_surrogate",
        r"a string holds the lone surrogate \ud83d, which is no character",
        "cut in half",
    ),
    "half an emoji as a key": (
        rb'{"\uDC4D": 1}',
        "lone_surrogate",
        r"a string holds the lone surrogate \udc4d",
        "cut in half",
    ),
    "a control character": (b'{"a": "\x07"}', "not_json", "not JSON: Invalid control", "jq"),
    "endless nesting": (
        b'{"a": ' + b"[" * 100_000,
        "too_deep",
        "JSON is nested too deeply",
        "flatten",
    ),
    "deep nesting": (
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
        "too_deep",
        "JSON is nested too deeply",
        "flatten",
    ),
    "a huge number": (
        b'{"a": ' + b"1" * 5000 + b"}",
        "not_json",
        "not JSON that can be read: Exceeds the limit",
        "as text",
    ),
}


@pytest.mark.parametrize(("line", "reason", "what", "hint"), CASES.values(), ids=CASES)
def test_a_broken_line_is_told_what_and_how_and_spoils_no_other(
    line: bytes, reason: str, what: str, hint: str
):
    before, fault, after = parsed(b'{"a": 1}', line, b'{"a": 2}')

    assert isinstance(fault, BadRow)
    assert (fault.where, fault.reason) == ("train.jsonl:2", reason)
    assert fault.what.startswith(what)
    assert hint in fault.hint
    assert [before, after] == [Row("train.jsonl", 1, {"a": 1}), Row("train.jsonl", 3, {"a": 2})]


def test_nesting_up_to_the_limit_is_read():
    (row,) = parsed(b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}")

    assert isinstance(row, Row)


def test_many_short_arrays_are_not_deep():
    (row,) = parsed(b'{"a": [' + b"[],[1]," * 200 + b"{}]}")

    assert isinstance(row, Row)


def test_a_key_that_appears_many_times_among_many_is_found_at_once():
    keys = ",".join(f'"k{number}": 1' for number in range(100_000))

    (fault,) = parsed(f'{{{keys}, "k99999": 2}}'.encode())

    assert isinstance(fault, BadRow)
    assert 'key "k99999" appears twice' in fault.what
