"""Token rows in memory and in a file: what goes in comes out, or it is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastsft.data.arrays import TokenRows, Writer, load
from fastsft.data.encode import Encoded
from fastsft.errors import DataError

IDS = arrays.arrays(np.int32, st.integers(1, 8), elements=st.integers(0, 99))


def rows(*lists: list[int]) -> TokenRows:
    made = (np.array(ids, dtype=np.int32) for ids in lists)
    return TokenRows.of((7 + i, Encoded(a, np.where(a > 2, a, -100))) for i, a in enumerate(made))


def save(path: Path, train: TokenRows, evaluation: TokenRows) -> None:
    """Both sides through the writer, row by row."""
    writer = Writer(path)
    for ids, labels in [*train, *evaluation]:
        writer.append(ids, labels != -100)
    after = dataclasses.replace(
        evaluation.index, starts=evaluation.index.starts + len(train.input_ids)
    )
    writer.finish(train.index, after)


def test_a_row_comes_out_as_it_went_in():
    token_rows = rows([1, 2, 3], [4])

    ids, labels = token_rows[0]
    assert (ids.tolist(), labels.tolist()) == ([1, 2, 3], [-100, -100, 3])
    assert token_rows.row_ids.tolist() == [7, 8]
    assert token_rows[-1][0].tolist() == [4]


def test_rows_are_counted():
    token_rows = rows([1, 2, 3], [4])

    assert (len(token_rows), token_rows.tokens, token_rows.trained_tokens) == (2, 4, 2)
    assert token_rows.lengths.tolist() == [3, 1]


def test_a_row_that_is_not_there_is_an_index_error():
    with pytest.raises(IndexError):
        rows([1])[1]


def test_iteration_ends():
    assert [ids.tolist() for ids, _ in rows([1], [2, 3])] == [[1], [2, 3]]


def test_the_hash_depends_on_where_rows_end():
    assert rows([1, 2], [3]).sha256() != rows([1], [2, 3]).sha256()


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(train=st.lists(IDS, max_size=4), evaluation=st.lists(IDS, max_size=4))
def test_a_file_holds_what_was_saved(
    tmp_path: Path, train: list[np.ndarray], evaluation: list[np.ndarray]
):
    sides = [rows(*(ids.tolist() for ids in side)) for side in (train, evaluation)]
    save(tmp_path / "tokens.safetensors", *sides)

    loaded = load(tmp_path / "tokens.safetensors")

    assert [side.sha256() for side in loaded] == [side.sha256() for side in sides]


def test_saving_leaves_one_file(tmp_path: Path):
    save(tmp_path / "tokens.safetensors", rows([1]), rows())

    assert [path.name for path in tmp_path.iterdir()] == ["tokens.safetensors"]


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="not a whole token file") as caught:
        load(tmp_path / "absent")

    assert caught.value.hint == "prepare the data again"


@pytest.mark.parametrize("place", [0, -1, -20])
def test_a_flipped_byte_is_refused(tmp_path: Path, place: int):
    file = tmp_path / "tokens.safetensors"
    save(file, rows([1, 2, 3]), rows([4]))
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)

    with pytest.raises(DataError, match="not a whole token file"):
        load(file)
