"""Reading each kind of file: equal rows whatever the kind, and what each broken file is told."""

import csv
import gzip
import io
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fastsft.data import files, json_files, streams, text_files
from fastsft.data.files import find
from fastsft.data.rows import Row, parse
from fastsft.errors import BadRow, DataError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(), JSON, max_size=4), min_size=1, max_size=8)
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def items(path: Path) -> list[Row | BadRow]:
    """Everything that a file holds."""
    (file,) = find(str(path)).files
    return [item for batch in files.batches(file) for item in parse(batch)]


def read(folder: Path, name: str, data: bytes) -> list[Row | BadRow]:
    (folder / name).write_bytes(data)
    return items(folder / name)


def values(found: list[Row | BadRow]) -> list[dict[str, Any]]:
    assert all(isinstance(item, Row) for item in found), found
    return [item.value for item in found if isinstance(item, Row)]


def places(found: list[Row | BadRow]) -> list[tuple[int, str]]:
    """The line of every item, and `ok` or what is wrong with it."""
    return [
        (item.line, "ok")
        if isinstance(item, Row)
        else (int(str(item.where).rpartition(":")[2]), item.reason)
        for item in found
    ]


def refused(folder: Path, name: str, data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, name, data)
    assert not isinstance(caught.value, BadRow)
    return str(caught.value)


def as_lines(objects: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects).encode()


def as_array(objects: list[dict[str, Any]]) -> bytes:
    return json.dumps(objects, indent=1).encode()


@settings(max_examples=60, deadline=None)
@given(OBJECTS, st.sampled_from([as_lines, as_array]), st.booleans())
def test_any_objects_read_back_equal(
    objects: list[dict[str, Any]], write: Callable[..., bytes], is_gzip: bool
):
    data = write(objects)
    with tempfile.TemporaryDirectory() as folder:
        name = "x.json.gz" if is_gzip else "x.jsonl"
        found = read(Path(folder), name, gzip.compress(data) if is_gzip else data)

    assert values(found) == objects


@settings(max_examples=60, deadline=None)
@given(OBJECTS, st.integers(1, 40))
def test_an_array_reads_the_same_in_pieces_of_any_size(objects: list[dict[str, Any]], size: int):
    data = json.dumps(objects, indent=1, ensure_ascii=False).encode()
    whole = list(json_files.read(io.BytesIO(data), "x.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "BATCH_BYTES", size)
        pieces = list(json_files.read(io.BytesIO(data), "x.json"))

    assert [item for batch in pieces for item in batch.items] == list(whole[0].items)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.sampled_from("ct"))
def test_any_table_reads_back_equal(rows: list[tuple[str, str]], kind: str):
    text = io.StringIO()
    writer = csv.writer(text, delimiter="," if kind == "c" else "\t", quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        found = read(Path(folder), f"x.{kind}sv", text.getvalue().encode())

    assert values(found) == [{"a": a, "b": b} for a, b in rows]


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.integers(4, 40))
def test_the_pieces_of_a_text_are_the_text(text: str, size: int):
    data = text.replace("\0", "").encode() or b"x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE_BYTES", size)
        found = [b.items[0] for b in text_files.read(io.BytesIO(data), "x.txt")]

    pieces = [item[1] for item in found if isinstance(item, tuple)]
    assert "".join(piece["text"] for piece in pieces).encode() == data
    assert [piece.get("continues", False) for piece in pieces] == [True] * (len(pieces) - 1) + [
        False
    ]
    lines = [item[0] for item in found if isinstance(item, tuple)]
    assert lines[0] == 1
    assert lines == sorted(set(lines))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jsonl", b'\xef\xbb\xbf{"a": "1"}\r\n\r\n{"a": "2"}\r\n'),
        ("x.json", b'\xef\xbb\xbf\n[{"a": "1"},\n\n{"a": "2"}]'),
        ("x.csv", b'\xef\xbb\xbf"a"\r\n1\r\n\r\n2\r\n'),
    ],
)
def test_a_byte_order_mark_and_windows_newlines_are_fine(tmp_path: Path, name: str, data: bytes):
    assert values(read(tmp_path, name, data)) == [{"a": "1"}, {"a": "2"}]
    packed = gzip.compress(data)
    assert values(read(tmp_path, f"{name}.gz", packed)) == [{"a": "1"}, {"a": "2"}]


def test_a_text_file_loses_its_mark_and_nothing_else(tmp_path: Path):
    assert values(read(tmp_path, "x.md", b"\xef\xbb\xbf# A\r\n\nb ")) == [{"text": "# A\r\n\nb "}]


def test_what_a_file_holds_decides_between_lines_and_an_array(tmp_path: Path):
    assert places(read(tmp_path, "x.jsonl", b'\n [{"a": 1},\n{"a": 2}]\n')) == [
        (2, "ok"),
        (3, "ok"),
    ]
    assert places(read(tmp_path, "x.json", b'{"a": 1}\n{"a": 2}')) == [(1, "ok"), (2, "ok")]


def test_a_file_is_read_in_many_batches(tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' * 1000)
    (file,) = find(str(tmp_path)).files

    batches = list(files.batches(file))

    assert [batch.line for batch in batches] == [1, 257, 513, 769]
    assert [len(batch.items) for batch in batches] == [256, 256, 256, 232]


def test_a_line_that_is_too_long_is_skipped_and_counted(tmp_path: Path):
    long = b'{"a": "' + b"x" * (10 * 2**20) + b'"}\n'

    found = read(tmp_path, "x.jsonl", b'{"a": 1}\n' + long + b'\n{"a": 2}\n' + long[:-1])

    assert places(found) == [(1, "ok"), (2, "line_too_long"), (4, "ok"), (5, "line_too_long")]
    assert str(found[1]) == (
        "x.jsonl:2: the line has more than 8 MiB\n  hint: split it into several rows, or remove it"
    )


def test_a_line_of_exactly_the_limit_is_read(tmp_path: Path):
    line = b'{"a": "' + b"x" * (streams.MAX_LINE_BYTES - 9) + b'"}'

    assert places(read(tmp_path, "x.jsonl", line + b"\n" + line)) == [(1, "ok"), (2, "ok")]


@pytest.mark.parametrize(
    ("element", "reason", "what"),
    [
        (b"3", "not_an_object", "the element is a number, not a JSON object"),
        (b'["x"]', "not_an_object", "the element is an array, not a JSON object"),
        (b'{"a": 1, "a": 2}', "duplicate_key", 'key "a" appears twice in one object'),
        (b'{"a": NaN}', "nan_literal", "NaN is not JSON"),
        (rb'{"a": "\udc00"}', "lone_surrogate", r"a string holds the lone surrogate \udc00"),
        (b'{"a": "caf\xe9"}', "not_utf8", "not UTF-8: byte 0xe9 at byte 11 of its line"),
        (b'{"a": "x\0"}', "nul_byte", "NUL byte 0x00 at column 9"),
        (b'{"a": "\x01"}', "not_json", "not JSON: Invalid control character at at column 8"),
    ],
)
def test_a_faulty_element_spoils_no_other(tmp_path: Path, element: bytes, reason: str, what: str):
    found = read(tmp_path, "x.json", b'[{"a": 1},\n' + element + b',\n{"a": 2}\n]\n')

    assert places(found) == [(1, "ok"), (2, reason), (3, "ok")]
    assert getattr(found[1], "what", "").startswith(what)


@pytest.mark.parametrize(
    ("data", "line", "reason", "what"),
    [
        (b'[{"a": 1},\n {"a" 2}]', 2, "not_json", "not JSON: Expecting ':' delimiter at column 7"),
        (b'[{"a": 1}\n{"a": 2}]', 2, "not_json", "not JSON: Expecting ',' or ']' at column 1"),
        (b'[{"a": 1},\n{"a": 2', 2, "not_json", "not JSON: Expecting ',' delimiter at column 8"),
        (b'[{"a": 1},\n', 2, "not_json", "not JSON: Expecting value at column 1"),
        (b'[{"a": 1}]\n]', 2, "not_json", "not JSON: Extra data after the array at column 1"),
        (b'[{"a": 1},\n\0]', 2, "nul_byte", "NUL byte 0x00 at column 1"),
        (b'[{"a": 1},\n' + b"[" * 10**5, 2, "too_deep", "JSON is nested too deeply"),
        (b'[{"a": 1},\n"' + b"x" * 9 * 2**20, 2, "line_too_long", "the element has more than 8"),
        (b'[{"a": 1},\n{"b": ' + b"9" * 5000, 2, "not_json", "not JSON: not readable (Exceeds"),
    ],
)
def test_a_broken_array_ends_where_it_breaks(
    tmp_path: Path, data: bytes, line: int, reason: str, what: str
):
    found = read(tmp_path, "x.json", data)

    assert places(found) == [(1, "ok"), (line, reason)]
    assert getattr(found[1], "what", "").startswith(what)


def test_a_large_broken_array_tells_the_line_and_column(tmp_path: Path):
    rows = b"".join(b'{"n": %d},\n' % number for number in range(60_000))

    *good, fault = read(tmp_path, "x.json", b"[" + rows + b'{"n": 1}, {"n": x}]')

    assert len(good) == 60_001
    assert isinstance(fault, BadRow)
    assert fault.where == "x.json:60001"
    assert fault.what == (
        "not JSON: Expecting value at column 17; the rest of the file is not read"
    )


def test_a_multi_line_cell_keeps_the_line_where_its_row_begins(tmp_path: Path):
    found = read(tmp_path, "x.csv", b'a,b\n1,"x\n\ny"\n2,\n')

    assert found == [
        Row("x.csv", 2, {"a": "1", "b": "x\n\ny"}),
        Row("x.csv", 5, {"a": "2", "b": ""}),
    ]


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (b"1", "ragged_row", "the row has 1 cells, the header has 2\n  hint: put a cell"),
        (b"1,2,3", "ragged_row", "the row has 3 cells, the header has 2\n  hint: put a cell"),
        (b"1,caf\xe9", "not_utf8", "not UTF-8: byte 0xe9 at column 6\n  hint: save the file"),
        (b"1,x\0", "nul_byte", "NUL byte 0x00 at column 4\n  hint: remove it"),
        (b'1,"x"y', "bad_quotes", "not CSV: ',' expected after '\"'\n  hint: quote the whole"),
        (b"1," + b"x" * 9 * 2**20, "line_too_long", "the line has more than 8 MiB"),
    ],
)
def test_a_bad_row_of_a_table_spoils_no_other(
    tmp_path: Path, row: bytes, reason: str, message: str
):
    before, fault, after = read(tmp_path, "x.csv", b"a,b\n1,2\n" + row + b"\n3,4\n")

    assert isinstance(fault, BadRow)
    assert fault.reason == reason
    assert str(fault).startswith(f"x.csv:3: {message}")
    assert [before, after] == [
        Row("x.csv", 2, {"a": "1", "b": "2"}),
        Row("x.csv", 4, {"a": "3", "b": "4"}),
    ]


@pytest.mark.parametrize("rows", [10, 3000])
def test_a_quote_that_is_never_closed_is_told(tmp_path: Path, rows: int):
    data = (
        b'a,b\n1,2\n3,"4\n' + (b"5," + b"6" * 3000 + b"\n") * rows
    )  # 9 MB are beyond a cell's limit
    found = read(tmp_path, "x.csv", data)

    assert places(found) == [(2, "ok"), (3, "unclosed_quote")]
    assert str(found[1]).startswith("x.csv:3: a quote that opens in this row is never closed")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b,a\n1,2,3\n", 'x.csv: the header names "a" twice\n  hint: the first line names'),
        (b"a,,b\n1,2,3\n", "x.csv: column 2 has no name in the header\n  hint: the first line"),
        (b"a;b\n1;2\n", "x.csv: the header is one column: the cells are not separated"),
        (b'"a,b\n1,2\n', "x.csv: the header is not CSV: unexpected end of data"),
        (b"a,\xe9\n1,2\n", "x.csv:1: not UTF-8: byte 0xe9 at column 3"),
        (b"a,b\n", "x.csv: the file has no rows\n  hint: write one JSON object on each line"),
    ],
)
def test_a_table_without_a_sound_header_is_refused(tmp_path: Path, data: bytes, message: str):
    assert refused(tmp_path, "x.csv", data).startswith(message)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt", "x.jsonl.gz"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str):
    data = gzip.compress(b"") if name.endswith(".gz") else b""

    assert refused(tmp_path, name, data).startswith(f"{name}: the file has no rows\n  hint: write")


@pytest.mark.parametrize("data", [b"\n \n\n", b"[]", b" [ \n ] \n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, data: bytes):
    assert refused(tmp_path, "x.json", data).startswith("x.json: the file has no rows")


def test_one_object_over_several_lines_is_refused(tmp_path: Path):
    message = refused(tmp_path, "x.json", b'{\n  "a": 1\n}\n')

    assert message.startswith("x.json: the file is one JSON object over several lines\n  hint: wr")
    assert "jq -c ." in message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt"])
def test_utf_16_is_told(tmp_path: Path, name: str, encoding: str):
    message = refused(tmp_path, name, "\ufeffa,b\n1,2\n".encode(encoding))

    assert message.startswith(f"{name}: is UTF-16, not UTF-8\n  hint: save it as UTF-8: iconv")


def test_a_truncated_gzip_file_is_told(tmp_path: Path):
    packed = gzip.compress(b'{"a": 1}\n' * 10_000)

    message = refused(tmp_path, "x.jsonl.gz", packed[: len(packed) // 2])

    assert message.startswith("x.jsonl.gz: the gzip file is truncated or damaged: Compressed")
    assert "gzip -t FILE" in message


def test_a_damaged_gzip_file_is_told(tmp_path: Path):
    packed = bytearray(gzip.compress(b'{"a": 1}\n' * 10_000))
    packed[-8] ^= 1

    message = refused(tmp_path, "x.jsonl.gz", bytes(packed))

    assert message.startswith("x.jsonl.gz: the gzip file is truncated or damaged: CRC check")


def test_a_name_that_is_wrong_about_gzip_is_told(tmp_path: Path):
    row = b'{"a": 1}\n'

    assert refused(tmp_path, "x.jsonl.gz", row).startswith(
        "x.jsonl.gz: is named .gz but is no gzip file\n  hint: rename it without .gz"
    )
    assert refused(tmp_path, "x.jsonl", gzip.compress(row)).startswith(
        "x.jsonl: is a gzip file but not named so\n  hint: add .gz to its name"
    )


def parquet_of(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["x.parquet", "x.parquet.gz"])
def test_a_null_in_a_table_is_an_absent_key(tmp_path: Path, name: str):
    rows = [
        {"m": [{"role": "user", "weight": None}, {"role": None, "weight": 1}], "s": None},
        {"m": None, "s": "x"},
    ]
    data = parquet_of(pa.Table.from_pylist(rows))

    found = read(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)

    assert found == [
        Row(name, 1, {"m": [{"role": "user"}, {"weight": 1}]}),
        Row(name, 2, {"s": "x"}),
    ]


def test_a_large_table_numbers_its_rows(tmp_path: Path):
    data = parquet_of(pa.table({"n": list(range(1000)), "s": ["x" * 5000] * 1000}))

    found = read(tmp_path, "x.parquet", data)

    assert [(row.line, row.value["n"]) for row in found if isinstance(row, Row)] == [
        (number + 1, number) for number in range(1000)
    ]


def test_text_in_a_table_that_is_not_utf_8_spoils_its_row_only(tmp_path: Path):
    raw = pa.array([b"a", b"caf\xe9", b"c"]).view(pa.string())

    found = read(tmp_path, "x.parquet", parquet_of(pa.table({"s": raw})))

    assert places(found) == [(1, "ok"), (2, "not_utf8"), (3, "ok")]
    assert str(found[1]).startswith("x.parquet:2: not UTF-8: byte 0xe9 in a text column")


@pytest.mark.parametrize("cut", [0, 20])
def test_what_is_not_parquet_is_told(tmp_path: Path, cut: int):
    data = parquet_of(pa.table({"s": ["x"]}))[:-cut] if cut else b'{"a": 1}\n' * 10

    message = refused(tmp_path, "x.parquet", data)

    assert message.startswith("x.parquet: not a Parquet file that can be read: Parquet magic bytes")
    assert "name a file by what it holds" in message


def test_a_column_name_that_is_not_utf_8_is_told(tmp_path: Path):
    stream = io.BytesIO()
    parquet.write_table(pa.table({"question": ["x"]}), stream, store_schema=False)
    data = stream.getvalue().replace(b"question", b"\xf7uestion")

    message = refused(tmp_path, "x.parquet", data)

    assert message.startswith("x.parquet: not a Parquet file that can be read: 'utf-8' codec can't")


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path):
    data = parquet_of(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["s", "s"]))

    assert refused(tmp_path, "x.parquet", data).startswith('x.parquet: two columns are named "s"')


def test_a_parquet_file_that_is_truncated_gzip_is_told_so(tmp_path: Path):
    packed = gzip.compress(parquet_of(pa.table({"s": ["x" * 50] * 100})))

    message = refused(tmp_path, "x.parquet.gz", packed[:-20])

    assert message.startswith("x.parquet.gz: the gzip file is truncated or damaged")


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (b"caf\xe9", "not_utf8", "x.txt:3: not UTF-8: byte 0xe9 at column 4 of line 3; the rest"),
        (b"ab\0", "nul_byte", "x.txt:3: NUL byte 0x00 at column 3 of line 3; the rest of the file"),
    ],
)
def test_a_text_that_ceases_to_be_text_ends_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes, reason: str, message: str
):
    monkeypatch.setattr(text_files, "PIECE_BYTES", 8)

    *whole, fault = read(tmp_path, "x.txt", b"line 1\nline 2\n" + bad + b"\nline 4\n")

    assert whole == [
        Row("x.txt", 1, {"text": "line 1\n", "continues": True}),
        Row("x.txt", 2, {"text": "line 2\n"}),
    ]
    assert isinstance(fault, BadRow)
    assert fault.reason == reason
    assert str(fault).startswith(message)


def peak_mib(batches: Iterator[object]) -> float:
    tracemalloc.start()
    for _ in batches:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


@pytest.mark.parametrize(
    ("name", "begin", "row", "between", "end"),
    [
        ("x.json", b"[", b'{"text": "%s"}', b",\n", b"]"),
        ("x.jsonl", b"", b'{"text": "%s"}', b"\n", b""),
        ("x.csv", b"text\n", b"%s", b"\n", b"\n"),
        ("x.txt", b"", b"%s", b"\n", b""),
    ],
)
@pytest.mark.parametrize("is_gzip", [False, True])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, name: str, begin: bytes, row: bytes, between: bytes, end: bytes, is_gzip: bool
):
    rows = (row % (b"x" * 8192) + between) * 128
    path = tmp_path / (f"{name}.gz" if is_gzip else name)
    with gzip.open(path, "wb", compresslevel=1) if is_gzip else path.open("wb") as file:
        file.write(begin)
        for _ in range(64):
            file.write(rows)
        file.write(row % b"last" + end)
    (found,) = find(str(path)).files

    assert peak_mib(files.batches(found)) < 8


def test_a_line_of_64_mib_is_never_held(tmp_path: Path):
    with (tmp_path / "x.jsonl").open("wb") as file:
        for _ in range(64):
            file.write(b"x" * 2**20)
    (found,) = find(str(tmp_path)).files

    assert peak_mib(files.batches(found)) < 3 * streams.MAX_LINE_BYTES / 2**20
