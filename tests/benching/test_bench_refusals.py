"""What cannot be benched is refused before anything runs, with the cure, and leaves nothing."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fastsft import cli
from fastsft.bench import running

CASES = {
    "unknown recipe": (["tiny-qwen"], 2, "no such recipe; did you mean tiny-qwen2.5?"),
    "nonsense peer": (
        ["tiny-qwen2.5", "--against", "refrence"],
        2,
        "refrence is neither an engine nor a recipe; did you mean reference?",
    ),
    "itself": (
        ["tiny-qwen2.5", "--against", "unsloth"],
        2,
        "the recipe's engine is unsloth already",
    ),
    "no data": (
        ["qwen2.5-0.5b", "--set", "model.min_vram_gib=0"],
        2,
        "bench: no data is named\n  hint: pass --data rows.jsonl, or --synthetic",
    ),
    "data and random tokens": (
        ["tiny-qwen2.5", "--synthetic", "--data", "rows.jsonl"],
        2,
        "--data: random tokens are trained on a synthetic base, no data",
    ),
    "no such data": (["tiny-qwen2.5", "--data", "no.jsonl"], 2, "no.jsonl"),
    "a card on a CPU": (["qwen2.5-7b", "--synthetic"], 3, "meant for a GPU with"),
    "a cap on a CPU": (
        ["tiny-qwen2.5", "--vram-cap", "8"],
        2,
        "--vram-cap: there is no GPU here whose memory could be capped",
    ),
    "nowhere to share": (
        ["tiny-qwen2.5", "--share", "no/share.json"],
        2,
        "--share no/share.json: its folder does not exist",
    ),
    "no schema key": (["tiny-qwen2.5", "--set", "train.rank=1"], 2, "train.rank: unknown key"),
    "two steps": (["tiny-qwen2.5", "--steps", "2"], 2, "Invalid value for '--steps'"),
}


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "rows", lambda *_: pytest.fail("a process would run"))

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastsft", "bench", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_benched_is_refused(run, tmp_path: Path, case: str):
    words, wanted, told = CASES[case]

    code, out, err = run(*words)

    assert code == wanted, err
    assert told in err
    assert out == ""
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_place_for_results_that_cannot_be_written_is_refused(run, tmp_path: Path):
    (tmp_path / "taken").write_text("")

    code, _, err = run("tiny-qwen2.5", "--out", "taken")

    assert code == 2
    assert "taken: results cannot be kept there" in err
