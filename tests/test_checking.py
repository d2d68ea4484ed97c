"""The verb `check`: what it says, in what form, with which exit code, and without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(30)]
CODE = """
import sys
from fastsft.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "unsloth", "datasets"} & set(sys.modules)
    assert not heavy, heavy
"""


def check(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", CODE, "check", "tiny-qwen2.5", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", GOOD)


def write(path: Path, values: list[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values), "utf-8")
    return path


def test_clean_data_is_told_and_exits_with_0(rows: Path):
    done = check("--data", rows, "--set", "eval.share=0.2")

    assert done.returncode == 0, done.stderr
    assert "clean: " in done.stdout
    assert "30 in = " in done.stdout
    assert "[[answer 0<|im_end|>]]" in done.stdout


def test_refused_data_is_told_whole_and_exits_with_2(tmp_path: Path):
    rows = write(tmp_path / "rows.jsonl", [*GOOD, *[{"prompt": "a", "response": ""}] * 40])

    done = check("--data", rows)

    assert done.returncode == 2
    assert "70 in = 30 trained + 40 bad rows" in done.stdout
    assert "refused" in done.stdout.splitlines()[-1] + done.stdout.splitlines()[-2]
    assert "Traceback" not in done.stderr


def test_json_says_the_same_to_programs(rows: Path):
    done = check("--data", rows, "--json")

    report = json.loads(done.stdout)
    assert report["totals"]["rows_in"] == 30
    assert report["stop_share"] == 1
    assert report["refused"] == []
    assert report["total_steps"] == 120


def test_refused_data_as_json_lists_every_fault(tmp_path: Path):
    rows = write(tmp_path / "rows.jsonl", [*GOOD, *[{"prompt": "a", "response": ""}] * 40])

    done = check("--data", rows, "--json")

    faults = json.loads(done.stdout)["faults"]
    assert done.returncode == 2
    assert [fault["where"] for fault in faults] == [f"rows.jsonl:{n}" for n in range(31, 71)]
    assert {fault["reason"] for fault in faults} == {"empty_answer"}


def test_the_page_is_written_where_it_is_asked_for(rows: Path, tmp_path: Path):
    done = check("--data", rows, "--html", tmp_path / "page.html")

    page = (tmp_path / "page.html").read_text("utf-8")
    assert done.returncode == 0, done.stderr
    assert "question 0" in page
    assert "<script" not in page


def test_one_row_is_shown_in_full(rows: Path):
    done = check("--data", rows, "--row", "rows.jsonl:17")

    assert done.returncode == 0, done.stderr
    assert "[[answer 16<|im_end|>]]" in done.stdout


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("rows.jsonl:99", "rows.jsonl:99: no row begins there"),
        ("17", "--row: '17' is no place"),
        ("other.jsonl:1", "other.jsonl is none of the recipe's files"),
    ],
)
def test_a_place_without_a_row_is_refused(rows: Path, place: str, told: str):
    done = check("--data", rows, "--row", place)

    assert done.returncode == 2
    assert told in done.stderr


def test_the_second_time_it_comes_from_the_cache(rows: Path):
    first, second = (json.loads(check("--data", rows, "--json").stdout) for _ in range(2))

    assert (first["from_cache"], second["from_cache"]) == (False, True)
    same = {"from_cache": None, "seconds": None}
    assert {**first, **same} == {**second, **same}


def test_files_of_many_kinds_mix(tmp_path: Path):
    (tmp_path / "a.csv").write_text("q,a\none?,1!\ntwo?,2!\n", "utf-8")
    (tmp_path / "b.json").write_text(
        json.dumps(
            [{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]
        ),
        "utf-8",
    )
    columns = "columns: {question: q, answer: a}"
    sources = f"[{{path: {tmp_path}/a.csv, weight: 3, {columns}}}, {{path: {tmp_path}/b.json}}]"

    report = json.loads(check("--set", f"data.sources={sources}", "--json").stdout)

    assert [source["shape"] for source in report["sources"]] == ["question_answer", "sharegpt"]
    assert [source["used"] for source in report["sources"]] == [6, 1]
