"""A row's record is read back as it was written, and nothing else is taken for one."""

import json
from pathlib import Path

import pytest
from bench_rows import made

from fastsft.bench import row, statistics
from fastsft.errors import DataError

HERE = Path(__file__).parent


def test_a_row_is_read_back_as_written(tmp_path: Path):
    wanted = made(gpu=True)

    row.write(tmp_path / "row.json", wanted)

    assert row.read(tmp_path / "row.json") == wanted


def test_a_summary_is_read_back_as_written(tmp_path: Path):
    wanted = statistics.summarise([made()])

    row.write(tmp_path / "summary.json", wanted)

    assert row.read_summary(tmp_path / "summary.json") == wanted


def test_numbers_that_are_not_finite_stay_json(tmp_path: Path):
    row.write(tmp_path / "row.json", made({"losses": ["NaN", "Infinity"]}))

    strict = json.loads((tmp_path / "row.json").read_text(), parse_constant=pytest.fail)
    found = row.read(tmp_path / "row.json").losses

    assert strict["losses"] == ["NaN", "Infinity"]
    assert found[0] != found[0] and found[1] == float("inf")


def test_a_records_values_are_json_too():
    found = row.as_dict(made({"losses": ["NaN", "Infinity"]}))

    assert found["losses"] == ["NaN", "Infinity"]
    json.dumps(found, allow_nan=False)


def test_a_folder_gives_its_rows_in_the_order_they_ran(tmp_path: Path):
    for order, arm in ((2, "reference"), (1, "unsloth")):
        row.write(tmp_path / f"{arm}.json", made(arm=arm, order=order))
    row.write(tmp_path / row.SUMMARY, statistics.summarise([made()]))

    rows, _ = row.read_folder(tmp_path)

    assert [r.identity.arm for r in rows] == ["unsloth", "reference"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Invalid JSON"),
        ("{}", "identity: "),
        (json.dumps({**row.as_dict(made()), "schema": "two"}), "schema: "),
        (json.dumps({**row.as_dict(made()), "losses": ["x"]}), "losses.0: "),
        (json.dumps({**row.as_dict(made()), "extra": 1}), "extra: "),
    ],
)
def test_what_is_no_row_is_refused_with_its_place(tmp_path: Path, text: str, told: str):
    (tmp_path / "row.json").write_text(text)

    with pytest.raises(DataError, match="not a bench record of schema 1: ") as refused:
        row.read(tmp_path / "row.json")

    assert told in refused.value.what
    assert refused.value.where == str(tmp_path / "row.json")


def test_the_examples_are_records():
    assert row.read(HERE / "example_row.json").validity.is_valid
    assert row.read_summary(HERE / "example_summary.json").speaks_of == "pipeline"
