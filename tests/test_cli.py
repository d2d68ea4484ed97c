"""What a person sees: one line with place and hint, the right exit code, nothing written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastsft import cli

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs a command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastsft", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


def rows(folder: Path, *lines: object) -> Path:
    path = folder / "rows.jsonl"
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(line + "\n" for line in text))
    return path


def chat(*turns: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


BAD_ROWS = {
    "empty file": ([], "rows.jsonl: "),
    "not JSON": ([GOOD, "{nope"], "rows.jsonl:2: "),
    "wrong shape": ([{"words": 1}], "rows.jsonl:1: "),
    "raw text": ([{"text": "x"}], "rows.jsonl: raw text, but method is sft"),
    "mixed shapes": ([GOOD, {"prompt": "a", "response": "b"}], "rows.jsonl:2: "),
    "empty answer": ([chat(("user", "a"), ("assistant", " "))], "rows.jsonl:1: "),
    "roles": ([chat(("user", "a"), ("user", "b"), ("assistant", "c"))], "rows.jsonl:1: "),
    "no content": ([{"messages": [{"role": "user"}]}], 'no "content"'),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused_with_their_place(run, tmp_path: Path, case: str):
    lines, place = BAD_ROWS[case]

    code, out, err = run("train", "tiny-qwen2.5", "--data", rows(tmp_path, *lines))

    assert code == 2
    assert out == ""
    assert place in err
    assert "hint:" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


BAD_CALLS = {
    "no recipe": (["train"], 2, "train: name a recipe"),
    "unknown recipe": (["train", "qwen2.5-7"], 2, "no such recipe; did you mean qwen2.5-7b?"),
    "missing file": (["train", "mine.yaml"], 2, "mine.yaml: no such file"),
    "unknown key": (
        ["train", "tiny-qwen2.5", "--set", "train.learning_rat=1"],
        2,
        "train.learning_rat: unknown key; did you mean train.learning_rate?",
    ),
    "wrong type": (
        ["train", "tiny-qwen2.5", "--set", "lora.rank=many"],
        2,
        'lora.rank: should be a valid integer, not "many"',
    ),
    "out of range": (
        ["train", "tiny-qwen2.5", "--set", "lora.rank=0"],
        2,
        "lora.rank: should be greater than or equal to 1, not 0",
    ),
    "no data": (["train", "tiny-qwen2.5"], 2, "data.path: missing"),
    "no model folder": (
        ["train", "tiny-qwen2.5", "--set", "model.base=.", "--data", "rows.jsonl"],
        2,
        "not a model folder: it has no config.json",
    ),
    "needs a GPU": (["train", "qwen2.5-7b"], 3, "and none is here"),
    "8-bit optimizer on a CPU": (
        ["train", "tiny-qwen2.5", "--set", "train.optimizer=adamw_8bit"],
        2,
        "train.optimizer: adamw_8bit needs CUDA",
    ),
    "packing on a CPU": (
        ["train", "tiny-qwen2.5", "--set", "train.packing=true"],
        2,
        "train.packing: Unsloth offers no packing on a CPU",
    ),
    "tracker that is not here": (
        ["train", "tiny-qwen2.5", "--set", "train.report_to=[wandb]"],
        3,
        "train.report_to: wandb is not installed",
    ),
    "resume nothing": (["train", "--resume", "nope"], 4, "nope: no such folder"),
    "resume no run": (["train", "--resume", "."], 4, "not a run folder"),
    "resume and recipe": (["train", "x", "--resume", "."], 2, "takes no recipe"),
    "export nothing": (["export", "nope"], 4, "nope: no such folder"),
    "export to what": (["export", "nope", "--to", "onnx"], 5, "--to: onnx is not offered"),
    "export dtype": (["export", "nope", "--dtype", "int3"], 5, "--dtype: int3 is not offered"),
    "chat nothing": (["chat", "nope"], 4, "nope: no such folder"),
    "demo engine": (["demo", "--engine", "x"], 2, "--engine: x is no engine"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_wrong_call_is_refused_with_a_hint(run, tmp_path: Path, case: str):
    words, expected, told = BAD_CALLS[case]

    code, out, err = run(*words)

    assert (code, out) == (expected, "")
    assert told in err
    assert "hint:" in err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-c", "from fastsft.cli import main; main()", "--debug", "train", "nope"],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "no such recipe" in done.stderr


def test_recipes_lists_every_shipped_one(run):
    code, out, _ = run("recipes")

    assert code == 0
    assert {line.split("\t")[0] for line in out.splitlines()} >= {"tiny-llama", "qwen2.5-7b"}


def test_recipes_as_json_are_complete(run):
    _, out, _ = run("recipes", "--json")

    assert json.loads(out)["qwen2.5-7b"]["lora"]["rank"] > 0


def test_the_schema_is_printed_for_people_and_for_programs(run):
    assert "train.learning_rate" in run("recipes", "--schema")[1]
    assert "$defs" in json.loads(run("recipes", "--schema", "--json")[1])


def test_a_shown_recipe_is_a_recipe(run, tmp_path: Path):
    from fastsft import recipe_file

    (tmp_path / "mine.yaml").write_text(run("recipes", "--show", "tiny-llama")[1])

    assert recipe_file.load("mine.yaml") == recipe_file.load("tiny-llama")


def test_doctor_finds_the_pinned_stack_whole(run):
    code, out, _ = run("doctor", "--json")

    found = {finding["name"]: finding for finding in json.loads(out)["findings"]}
    assert code == 0
    assert found["trl"]["state"] == "ok"
    assert found["unsloth"]["what"] == "2026.10.9"


HEAVY = ("torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes")


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["train", "x.yaml"]])
def test_no_light_command_imports_torch(words: list[str]):
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))\n"
        f"sys.argv = ['fastsft', *{words}]\n"
        "from fastsft.cli import main\nmain()"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_checking_rows_imports_no_torch(tmp_path: Path):
    path = rows(tmp_path, GOOD, chat(("user", "a"), ("assistant", "")))
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))\n"
        f"sys.argv = ['fastsft', 'train', 'tiny-llama', '--data', {str(path)!r}]\n"
        "from fastsft.cli import main\nmain()"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert "rows.jsonl:2" in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
