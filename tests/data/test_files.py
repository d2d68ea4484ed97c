"""The files of a source: what is found in a folder, and what is refused before it is opened."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastsft.data import files
from fastsft.data.files import find
from fastsft.data.rows import Row, parse
from fastsft.errors import BadRow, DataError

ROW = b'{"text": "x"}\n'


def write(folder: Path, *names: str, data: bytes = ROW) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / names[0]


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        find(str(path))
    return caught.value


@pytest.mark.parametrize(
    ("name", "kind", "is_gzip"),
    [
        ("a.jsonl", "jsonl", False),
        ("a.ndjson", "jsonl", False),
        ("a.json", "json", False),
        ("a.csv", "csv", False),
        ("a.TSV", "tsv", False),
        ("a.parquet", "parquet", False),
        ("a.txt", "text", False),
        ("a.md", "text", False),
        ("a.b.jsonl.gz", "jsonl", True),
        ("a.CSV.GZ", "csv", True),
    ],
)
def test_the_suffix_says_the_kind(tmp_path: Path, name: str, kind: str, is_gzip: bool):
    (file,) = find(str(write(tmp_path, name))).files

    assert (file.path, file.name) == (tmp_path / name, name)
    assert (file.kind, file.is_gzip) == (kind, is_gzip)


def test_a_folder_is_walked_in_the_order_of_its_paths(tmp_path: Path):
    write(tmp_path, "b.jsonl", "a/z.csv", "a/b/c.txt", "a.json", ".hidden/x.jsonl", ".y.jsonl")
    write(tmp_path, "notes.docx", "a/LICENSE")

    found = find(str(tmp_path))

    assert [file.name for file in found.files] == ["a/b/c.txt", "a/z.csv", "a.json", "b.jsonl"]
    assert found.ignored == ("a/LICENSE", "notes.docx")


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path):
    write(tmp_path, "x.jsonl/inside.jsonl")

    (file,) = find(str(tmp_path / "x.jsonl")).files

    assert file.name == "inside.jsonl"


def test_links_to_files_and_folders_are_followed(tmp_path: Path):
    write(tmp_path, "elsewhere/deep/a.jsonl", "elsewhere/b.jsonl")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/folder").symlink_to(tmp_path / "elsewhere/deep")
    (tmp_path / "data/file.jsonl").symlink_to(tmp_path / "elsewhere/b.jsonl")

    assert [file.name for file in find(str(tmp_path / "data")).files] == [
        "file.jsonl",
        "folder/a.jsonl",
    ]


@pytest.mark.parametrize("name", ["data", "data/x.jsonl"])
def test_a_folder_without_data_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).mkdir(parents=True)

    error = refused(tmp_path / name)

    assert error.what == "the folder has no data file"
    assert error.hint.startswith("known are .jsonl, .ndjson, .json, .csv")


def test_a_loop_of_folders_is_named(tmp_path: Path):
    write(tmp_path, "data/a/x.jsonl")
    (tmp_path / "data/a/again").symlink_to(tmp_path / "data")

    error = refused(tmp_path / "data")

    assert error.where == str(tmp_path / "data/a/again")
    assert error.what == f"is a loop: it leads back to {tmp_path / 'data'}"
    assert error.hint == "remove the link"


def test_a_folder_reached_twice_is_not_read_twice(tmp_path: Path):
    write(tmp_path, "data/a/x.jsonl")
    (tmp_path / "data/b").symlink_to(tmp_path / "data/a")

    assert "is the same folder as" in refused(tmp_path / "data").what


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_link_to_itself_is_refused(tmp_path: Path, is_inside: bool):
    loop = tmp_path / "x.jsonl"
    loop.symlink_to(loop)

    error = refused(tmp_path if is_inside else loop)

    assert (error.where, error.what) == (str(loop), "a loop of symbolic links")


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_link_to_nothing_is_refused(tmp_path: Path, is_inside: bool):
    link = tmp_path / "x.jsonl"
    link.symlink_to("gone.jsonl")

    error = refused(tmp_path if is_inside else link)

    assert error.where == str(link)
    assert error.what == "the link leads to gone.jsonl, which does not exist"


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_named_pipe_is_refused_without_waiting(tmp_path: Path, is_inside: bool):
    os.mkfifo(tmp_path / "x.jsonl")

    error = refused(tmp_path if is_inside else tmp_path / "x.jsonl")

    assert error.where == str(tmp_path / "x.jsonl")
    assert error.what == "is a named pipe, not a file"
    assert error.hint == "write its content to a file first"


def test_a_pipe_that_takes_the_place_of_a_found_file_is_not_waited_for(tmp_path: Path):
    (file,) = find(str(write(tmp_path, "x.jsonl"))).files
    (tmp_path / "x.jsonl").unlink()
    os.mkfifo(tmp_path / "x.jsonl")

    with pytest.raises(DataError, match="is a named pipe"):
        list(files.batches(file))


def test_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)  # a socket's whole path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x.jsonl")

        assert refused(Path("x.jsonl")).what == "is a socket, not a file"


def test_a_device_is_refused():
    assert refused(Path("/dev/zero")).what == "is a device, not a file"


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path):
    error = refused(write(tmp_path, "x.docx"))

    assert error.what == "its suffix names no known kind of file"
    assert error.hint.endswith(".md, each also with .gz")


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path):
    write(tmp_path, "train.jsonl")

    error = refused(tmp_path / "trian.jsonl")

    assert error.what == f"no such file or folder; did you mean {tmp_path / 'train.jsonl'}?"
    assert error.hint == "check the path and its spelling"


def test_a_missing_file_in_a_missing_folder_is_told(tmp_path: Path):
    assert refused(tmp_path / "no/train.jsonl").what == "no such file or folder"


def test_a_path_through_a_file_is_told(tmp_path: Path):
    assert refused(write(tmp_path, "a.jsonl") / "b.jsonl").what == "no such file"


@pytest.mark.parametrize("path", ["a\0b.jsonl", "~fastsft-nobody/x.jsonl", "a" * 5000])
def test_what_can_be_no_path_is_told(path: str):
    with pytest.raises(DataError, match=r"is no path|cannot be read: File name too long"):
        find(path)


def test_a_name_that_is_no_text_can_be_printed(tmp_path: Path):
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(ROW)

    (file,) = find(str(tmp_path)).files

    assert file.name == "caf\ufffd.jsonl"
    assert [row.where for b in files.batches(file) for row in parse(b)] == ["caf\ufffd.jsonl:1"]


def test_a_file_that_vanished_is_told(tmp_path: Path):
    (file,) = find(str(write(tmp_path, "x.jsonl"))).files
    (tmp_path / "x.jsonl").unlink()

    with pytest.raises(DataError, match=r"^x.jsonl: no such file\n  hint: check the path"):
        list(files.batches(file))


@pytest.fixture
def shut() -> Iterator[Path]:
    """A folder with a file and a folder that may not be read, not even by root, for a time."""
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        folder.chmod(0o755)
        write(folder, "x.jsonl", "shut/x.jsonl")
        (folder / "x.jsonl").chmod(0)
        (folder / "shut").chmod(0)
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)


def test_a_file_without_permission_is_refused(shut: Path):
    (file,) = find(str(shut / "x.jsonl")).files

    with pytest.raises(DataError, match=r"^x.jsonl: permission denied\n  hint: .*chmod u\+r"):
        list(files.batches(file))


def test_a_folder_without_permission_is_refused(shut: Path):
    error = refused(shut)

    assert (error.where, error.what) == (str(shut / "shut"), "permission denied")


def test_one_row_is_found_by_its_line(tmp_path: Path):
    data = b"".join(b'{"n": %d}\n' % number for number in range(1, 601)) + b"\nnot json\n"
    (file,) = find(str(write(tmp_path, "x.jsonl", data=data))).files

    assert files.row_at(file, 1) == Row("x.jsonl", 1, {"n": 1})
    assert files.row_at(file, 600) == Row("x.jsonl", 600, {"n": 600})
    fault = files.row_at(file, 602)
    assert isinstance(fault, BadRow)
    assert fault.where == "x.jsonl:602"


def test_a_line_without_a_row_is_told(tmp_path: Path):
    (file,) = find(str(write(tmp_path, "x.csv", data=b'a,b\n1,"2\n3"\n4,5\n'))).files

    with pytest.raises(DataError, match=r"^x.csv:3: no row begins there\n  hint: .* line 2$"):
        files.row_at(file, 3)
    with pytest.raises(DataError, match=r"^x.csv:1: no row begins there\n  hint: lines count"):
        files.row_at(file, 1)
    assert files.row_at(file, 4) == Row("x.csv", 4, {"a": "4", "b": "5"})
