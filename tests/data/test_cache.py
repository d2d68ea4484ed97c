"""Prepared data is kept by content: found again, or made again when anything differs."""

import os
import time
from pathlib import Path

import pytest
from preparing import recipe, row, write
from tiny_tokenizer import write_tokenizer

from fastsft import families, start
from fastsft.base import Base
from fastsft.data import cache
from fastsft.data.prepare import Prepared
from fastsft.errors import DataError
from fastsft.recipe import Recipe


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return Base(write_tokenizer(tmp_path / "model"), families.QWEN25, None, "print", 0)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path, *(row(f"question {i}") for i in range(20)), row(source="web"))


def made(base: Base, path: Path, **data: object) -> Prepared:
    return start.prepare_rows(of(path, **data), base)


def of(path: Path, **data: object) -> Recipe:
    return recipe({"path": str(path), **data}, eval={"share": 0.2})


def test_the_second_time_comes_from_the_cache_and_is_the_same(base: Base, rows: Path):
    first, second = made(base, rows), made(base, rows)

    assert [found.report.from_cache for found in (first, second)] == [False, True]
    assert first.train.sha256() == second.train.sha256()
    assert first.eval.sha256() == second.eval.sha256()
    assert first.ledger == second.ledger
    assert first.report.samples == second.report.samples
    assert first.report.lengths == second.report.lengths


@pytest.mark.parametrize(
    "change", [{"max_tokens": 98}, {"train_on": "last_turn"}, {"system": "Be terse."}]
)
def test_another_recipe_is_prepared_anew(base: Base, rows: Path, change: dict[str, object]):
    made(base, rows)

    assert not made(base, rows, **change).report.from_cache


def test_another_file_is_prepared_anew(base: Base, rows: Path):
    made(base, rows)
    rows.write_bytes(rows.read_bytes().replace(b"question 3", b"question x"))

    assert not made(base, rows).report.from_cache


def test_another_template_is_prepared_anew(base: Base, rows: Path):
    made(base, rows)
    template = base.folder / "chat_template.jinja"
    template.write_text(template.read_text("utf-8").replace("role", "role "), "utf-8")

    assert not made(base, rows).report.from_cache


@pytest.mark.parametrize("name", ["tokens.safetensors", "ledger.jsonl", "report.json", "seal.json"])
@pytest.mark.parametrize("damage", ["flip", "half", "gone"])
def test_what_is_damaged_is_made_again(base: Base, rows: Path, name: str, damage: str):
    first = made(base, rows)
    path = first.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])

    again = made(base, rows)

    assert not again.report.from_cache
    assert made(base, rows).report.from_cache


def test_a_file_that_changes_while_it_is_read_is_refused(
    base: Base, rows: Path, monkeypatch: pytest.MonkeyPatch
):
    def append(count: int) -> None:
        with rows.open("a") as file:
            file.write("\n")

    with pytest.raises(DataError, match="changed while it was read"):
        start.prepare_rows(of(rows), base, append)


def test_only_the_newest_are_kept(base: Base, rows: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "KEPT", 2)
    first = made(base, rows, max_tokens=90)
    old = time.time() - 3600
    os.utime(first.folder, (old, old))

    made(base, rows, max_tokens=91)
    made(base, rows, max_tokens=92)

    assert not first.folder.exists()
    assert len(list(cache.folder().iterdir())) == 2


def test_without_a_place_for_the_cache_it_works_all_the_same(
    base: Base, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    found = made(base, rows)

    found.require()
    assert not found.report.from_cache
