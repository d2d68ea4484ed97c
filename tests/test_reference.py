"""The recipe reference: every key with its meaning, and the README has it as it is now."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastsft import recipe_file, reference
from fastsft.errors import RecipeError

README = Path(__file__).parent.parent / "README.md"


def test_the_readme_has_the_reference_as_the_schema_is_now():
    found = reference.block(README.read_text("utf-8"), "README.md")

    assert found.strip() == reference.markdown().strip(), (
        f"README.md is behind the schema; run: {reference.COMMAND} README.md"
    )


def test_every_key_is_there_once():
    keys = list(recipe_file.keys())
    sections = {key.rpartition(".")[0] for key in keys}
    leaves = [key for key in keys if key not in sections]

    assert sorted(row[0].replace("[]", "") for row in reference.plain()) == sorted(leaves)


def test_no_cell_is_empty():
    assert all(cell for row in reference.plain() for cell in row)


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("model.base", "text", "required"),
        ("model.family", "qwen2.5, llama or mistral", "required"),
        ("method", "sft or pretrain", "sft"),
        ("data.checks.leakage", "off, report, drop or error", "drop"),
        ("data.sources[].columns", "mapping of text to text", "{}"),
        ("data.replay.share", "number, above 0, below 1", "0.1"),
        ("description", "text", '""'),
        ("lora.rank", "integer, 1 to 1024", "16"),
        ("lora.alpha", "number, above 0, at most 8192", "16"),
        ("lora.dropout", "number, at least 0, below 1", "0"),
        ("train.learning_rate", "number, above 0, at most 1", "0.0002"),
        ("train.steps", "integer, 1 to 10000000 or null", "null"),
        ("train.save_every_steps", "integer, at least 1", "100"),
        ("train.packing", "true or false or auto", "false"),
        ("train.micro_batch_rows", "integer, 1 to 4096 or auto", "2"),
        ("train.report_to", "list of tensorboard or wandb", "[]"),
    ],
)
def test_types_bounds_and_defaults_are_in_words(key: str, kind: str, default: str):
    rows = {row[0]: row[1:3] for row in reference.plain()}

    assert rows[key] == (kind, default)


def test_the_default_targets_are_told_as_all():
    assert {row[0]: row[2] for row in reference.plain()}["lora.targets"] == "all of them"


def test_every_table_row_has_four_cells():
    rows = [line for line in reference.markdown().splitlines() if line.startswith("|")]

    assert {line.replace("\\|", "").count("|") for line in rows} == {5}


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastsft.reference", *words], capture_output=True, text=True
    )


def test_the_command_renews_the_block_and_nothing_else(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n")

    done = command("--write", str(page))

    text = page.read_text("utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert text.startswith(f"before\n{reference.BEGIN}\n|")
    assert text.endswith(f"{reference.END}\nafter\n")
    assert reference.block(text, "page.md").strip() == reference.markdown().strip()
    assert reference.renewed(text, "page.md") == text


def test_without_a_file_the_command_prints_the_reference():
    assert command().stdout == reference.markdown()


def test_the_command_leaves_a_page_without_markers_alone(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n")

    done = command("--write", str(page))

    assert (done.returncode, page.read_text()) == (1, "# Page\n")
    assert "page.md: the markers of the recipe reference are not there" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "",
        reference.BEGIN,
        reference.END,
        f"{reference.END} {reference.BEGIN}",
        f"{reference.BEGIN} {reference.END} {reference.BEGIN}",
        f"{reference.BEGIN} {reference.END} {reference.END}",
        f"{reference.BEGIN} {reference.BEGIN} {reference.END}",
    ],
)
def test_markers_must_be_there_in_order_once_each(text: str):
    with pytest.raises(RecipeError, match="not there once each"):
        reference.block(text, "page.md")
