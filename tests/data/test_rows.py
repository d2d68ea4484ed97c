"""Reading JSONL: what is a row, and what each broken file is told."""

from pathlib import Path

import pytest

from fastsft.data.rows import read
from fastsft.errors import DataError


def lines_of(path: Path) -> list[int]:
    return [row.line for row in read(path)]


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / "train.jsonl"
    path.write_bytes(data)
    return path


def test_a_row_knows_its_place(tmp_path: Path):
    rows = list(read(file_of(tmp_path, b'{"a": 1}\n{"a": 2}')))

    assert [(row.where, row.value) for row in rows] == [
        ("train.jsonl:1", {"a": 1}),
        ("train.jsonl:2", {"a": 2}),
    ]


def test_blank_lines_are_no_rows_but_keep_their_number(tmp_path: Path):
    assert lines_of(file_of(tmp_path, b'\n{"a": 1}\n  \n\n{"a": 2}\n\n')) == [2, 5]


def test_a_byte_order_mark_and_windows_newlines_are_fine(tmp_path: Path):
    assert lines_of(file_of(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')) == [1, 2]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path):
    path = file_of(tmp_path, '{"a": "x\u2028y\x85z"}\n'.encode())

    assert [row.value["a"] for row in read(path)] == ["x\u2028y\x85z"]


def test_an_escaped_emoji_is_whole(tmp_path: Path):
    path = file_of(tmp_path, rb'{"a": "\ud83d\udc4d"}')

    assert [row.value["a"] for row in read(path)] == ["👍"]


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"", "train.jsonl: the file has no rows", "one JSON object on each line"),
        (b"\n \n", "train.jsonl: the file has no rows", "one JSON object on each line"),
        (
            b'{"a": 1}\n{"a": }',
            "train.jsonl:2: not JSON: Expecting value at column 7",
            "one JSON object on each line",
        ),
        (
            b'{\n  "a": 1\n}',
            "train.jsonl:1: not JSON: Expecting property name enclosed in double quotes",
            "jq -c .",
        ),
        (b'"text"', "train.jsonl:1: the line is a string, not a JSON object", "JSON object"),
        (b'{"a": 1}\n[1]', "train.jsonl:2: the line is an array, not a JSON", "JSON object"),
        (b"null", "train.jsonl:1: the line is null, not a JSON object", "JSON object"),
        (b"3", "train.jsonl:1: the line is a number, not a JSON object", "JSON object"),
        (b"true", "train.jsonl:1: the line is a boolean, not a JSON object", "JSON object"),
        (
            b'[{"a": 1}]',
            "train.jsonl: the file is a JSON array, not one object on each line",
            "jq -c '.[]' train.jsonl",
        ),
        (
            b'{"a": "caf\xe9"}',
            "train.jsonl:1: not UTF-8: byte 0xe9 at column 11",
            "save the file as UTF-8",
        ),
        (
            b'{"a": 1, "a": 2}',
            'train.jsonl:1: key "a" appears twice in one object',
            "keep one of the two",
        ),
        (b'{"a": NaN}', "train.jsonl:1: NaN is not JSON", "write null"),
        (b'{"a": -Infinity}', "train.jsonl:1: -Infinity is not JSON", "write null"),
        (
            rb'{"a": "\ud83d"}',
            r"train.jsonl:1: a string holds the lone surrogate \ud83d",
            "cut in half",
        ),
        (b'{"a": ' + b"[" * 100_000, "train.jsonl:1: JSON is nested too deeply", "flatten"),
        (b'{"a": ' + b"1" * 5000 + b"}", "train.jsonl:1: not JSON that can be read", "JSON"),
    ],
)
def test_a_broken_file_is_told_what_and_how(tmp_path: Path, data: bytes, message: str, hint: str):
    with pytest.raises(DataError) as caught:
        list(read(file_of(tmp_path, data)))

    assert str(caught.value).startswith(message)
    assert hint in caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent.jsonl: no such file\n  hint: check the path"):
        list(read(tmp_path / "absent.jsonl"))


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(DataError, match=r": is a folder, not a file\n  hint: name one .jsonl"):
        list(read(tmp_path))
