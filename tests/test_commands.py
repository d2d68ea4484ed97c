"""The verb `train`, where the plan for a GPU was too bold."""

from pathlib import Path

import pytest
from test_events import STEP

from fastsft import commands, events, history, launch, recipe_file, run
from fastsft.errors import OutOfMemory
from fastsft.recipe import Recipe
from fastsft.run import Run


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that runs are begun with; the first is settled boldly, and runs out of memory."""
    recipes: list[Recipe] = []

    def begin(recipe: Recipe, runs: Path, *, name: str) -> Run:
        recipes.append(recipe)
        if len(recipes) > 1:
            return run.create(runs, recipe, name=name)
        bold = recipe_file.load("qwen2.5-7b", ["train.gradient_checkpointing=none"])
        return run.create(runs, bold, name=name)

    monkeypatch.setattr(commands, "begin", begin)
    return recipes


def out_of_memory_once(monkeypatch: pytest.MonkeyPatch, *before: events.Event) -> list[str]:
    """`finish` fails the first time, after these events; the runs that it was given."""
    finished: list[str] = []

    def finish(made: Run) -> None:
        finished.append(made.recipe().train.gradient_checkpointing)
        if len(finished) == 1:
            made.events_path.write_text("".join(f"{events.to_line(event)}\n" for event in before))
            raise OutOfMemory("CUDA out of memory", hint="-")

    monkeypatch.setattr(commands, "finish", finish)
    return finished


def test_a_plan_that_runs_out_of_memory_before_step_1_is_made_thriftier(
    tmp_path: Path, begun: list[Recipe], monkeypatch: pytest.MonkeyPatch
):
    finished = out_of_memory_once(monkeypatch)

    commands.train("qwen2.5-7b", Path("rows.jsonl"), [], tmp_path)

    assert finished == ["none", "unsloth"]


def test_running_out_of_memory_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    remembered: list[Run] = []

    def train(*_: object, **__: object) -> None:
        raise OutOfMemory("CUDA out of memory", hint="-")

    monkeypatch.setattr(launch, "train", train)
    monkeypatch.setattr(history, "record", remembered.append)
    made = run.create(tmp_path, recipe_file.load("qwen2.5-7b"), name="7b")

    with pytest.raises(OutOfMemory):
        commands.finish(made)

    assert remembered == [made]


@pytest.mark.parametrize(
    ("quantization", "told"), [("nf4", "4-bit"), ("none", "16-bit"), ("auto", "4- or 16-bit")]
)
def test_the_list_of_recipes_tells_the_bits_that_are_open(quantization: str, told: str):
    recipe = recipe_file.load("qwen2.5-7b", [f"model.quantization={quantization}"])

    _, _, base, _ = commands._row("mine", recipe)

    assert base == f"Qwen/Qwen2.5-7B-Instruct ({told})"


def test_what_the_user_chose_is_not_changed_for_him(
    tmp_path: Path, begun: list[Recipe], monkeypatch: pytest.MonkeyPatch
):
    finished = out_of_memory_once(monkeypatch)

    with pytest.raises(OutOfMemory):
        commands.train(
            "qwen2.5-7b", Path("rows.jsonl"), ["train.gradient_checkpointing=none"], tmp_path
        )
    assert finished == ["none"]


def test_running_out_of_memory_in_the_middle_is_told_and_nothing_begun_anew(
    tmp_path: Path, begun: list[Recipe], monkeypatch: pytest.MonkeyPatch
):
    finished = out_of_memory_once(monkeypatch, STEP)

    with pytest.raises(OutOfMemory):
        commands.train("qwen2.5-7b", Path("rows.jsonl"), [], tmp_path)
    assert finished == ["none"]
