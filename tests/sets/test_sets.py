"""The sets are fresh, in shape, and varied."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make
import pytest

from fastsft import recipe_file

FOLDER = Path(__file__).parent
Row = dict[str, Any]
SIZES = {"medical_zh.json": 200, "service_en.jsonl": 200, "general.jsonl": 60}
NEAR = 0.75
NEAR_SHARE = 0.05


def rows(name: str) -> list[Row]:
    text = (FOLDER / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines()]


def alpaca(row: Row) -> list[str]:
    assert row.keys() - {"system", "history"} == {"instruction", "input", "output"}
    assert row["instruction"].strip()
    assert all(len(pair) == 2 and all(pair) for pair in row.get("history", []))
    return [row["output"]]


def sharegpt(row: Row) -> list[str]:
    assert row.keys() - {"system"} == {"conversations"}
    said = row["conversations"]
    assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
    assert len(said) in (2, 4, 6)
    assert all(turn["value"].strip() for turn in said)
    return [turn["value"] for turn in said[1::2]]


def messages(row: Row) -> list[str]:
    assert row.keys() == {"messages"}
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    assert row["messages"][0]["content"].strip()
    return [row["messages"][1]["content"]]


SHAPES = {"medical_zh.json": alpaca, "service_en.jsonl": sharegpt, "general.jsonl": messages}


def texts(value: Any) -> list[str]:
    """Every text of a row that is more than the name of a speaker."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key in value.keys() - {"from", "role"} for text in texts(value[key])]
    return [text for one in value for text in texts(one)]


def grams(row: Row) -> set[str]:
    """All runs of five characters, none across two texts."""
    return {text[at : at + 5] for text in texts(row) for at in range(max(1, len(text) - 4))}


def nearest(found: list[Row]) -> list[float]:
    """For each row the largest Jaccard similarity with another one."""
    sets = [grams(row) for row in found]
    return [
        max(len(one & other) / len(one | other) for j, other in enumerate(sets) if j != i)
        for i, one in enumerate(sets)
    ]


@pytest.mark.parametrize("name", SIZES)
def test_the_file_is_exactly_what_the_generator_writes(name: str):
    assert (FOLDER / name).read_bytes() == make.files()[name].encode()


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_the_set_has_its_number_of_rows(name: str, size: int):
    assert len(rows(name)) == size


@pytest.mark.parametrize(("name", "answers"), SHAPES.items())
def test_every_row_has_the_shape_and_an_answer(name: str, answers: Callable[[Row], list[str]]):
    assert all(answer.strip() for row in rows(name) for answer in answers(row))


def test_some_rows_have_history_some_a_system_column_and_some_several_turns():
    medical, service = rows("medical_zh.json"), rows("service_en.jsonl")

    assert sum("history" in row for row in medical) == 40
    assert sum("system" in row for row in medical) == 13
    assert sum("system" in row for row in service) == 53
    assert {len(row["conversations"]) for row in service} == {2, 4, 6}


@pytest.mark.parametrize("name", SIZES)
def test_no_field_of_a_frame_is_left_unfilled(name: str):
    assert not [text for row in rows(name) for text in texts(row) if "{" in text or "}" in text]


@pytest.mark.parametrize("name", SIZES)
def test_no_row_is_there_twice(name: str):
    found = ["\n".join(sorted(texts(row))) for row in rows(name)]

    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", SIZES)
def test_hardly_any_row_is_nearly_another(name: str):
    similar = nearest(rows(name))

    assert sum(most > NEAR for most in similar) < NEAR_SHARE * len(similar)


def test_a_row_with_one_character_changed_counts_as_near():
    row = rows("service_en.jsonl")[0]
    changed = json.loads(json.dumps(row).replace("a", "b", 1))

    assert min(nearest([row, changed])) > NEAR


@pytest.mark.parametrize("name", ["medical", "service"])
def test_the_recipe_is_whole_and_mixes_a_tenth_of_replay(name: str):
    recipe = recipe_file.load(str(FOLDER / f"{name}.yaml"))

    assert recipe.data.replay is not None
    assert recipe.data.replay.share == 0.1
    named = [recipe.data.path or "", recipe.data.replay.path]
    assert all((FOLDER.parent.parent / path).is_file() for path in named)
