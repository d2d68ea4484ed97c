"""The two sets train the tiny models end to end, mixed with a tenth of general rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastsft import events
from fastsft.run import open_run

HERE = Path(__file__).parent
CODE = "from fastsft.cli import main; main()"


@pytest.mark.parametrize(
    ("name", "rows", "shape"),
    [
        ("medical", "medical_zh.json", "alpaca"),
        pytest.param("service", "service_en.jsonl", "sharegpt", marks=pytest.mark.slow),
    ],
)
def test_a_set_trains_with_replay(tmp_path: Path, name: str, rows: str, shape: str):
    sets = [f"data.replay.path={HERE / 'general.jsonl'}", "train.steps=12", "eval.every_steps=12"]
    words = [word for key in sets for word in ("--set", key)]
    recipe = [str(HERE / f"{name}.yaml"), "--data", str(HERE / rows), *words]

    checked = subprocess.run(
        [sys.executable, "-c", CODE, "check", *recipe, "--json"], capture_output=True, text=True
    )
    trained = subprocess.run(
        [sys.executable, "-c", CODE, "train", *recipe, "--runs", str(tmp_path)],
        capture_output=True,
        text=True,
    )

    assert checked.returncode == 0, checked.stderr
    assert trained.returncode == 0, trained.stderr
    report = json.loads(checked.stdout)
    domain, general = report["sources"]
    assert (domain["shape"], domain["rows_in"], general["shape"]) == (shape, 200, "messages")
    assert general["used"] / (general["used"] + domain["used"]) == pytest.approx(0.1, abs=0.01)
    assert report["stop_share"] == 1
    run = open_run(Path(trained.stdout.strip()))
    said = [event for event, _ in events.read(run.events_path)]
    before = next(e.eval_loss for e in said if isinstance(e, events.Preflight))
    after = next(e.loss for e in said if isinstance(e, events.Evaluated))
    assert before is not None
    assert after < 0.8 * before
    ledger = json.loads((run.folder / "ledger.json").read_text())
    assert ledger == {**report["totals"]}
    assert ledger["rows_in"] == 260


@pytest.mark.slow
def test_raw_text_trains_in_packed_sequences(tmp_path: Path):
    (tmp_path / "text").mkdir()
    for number in range(6):
        said = "\n".join(f"Line {n} of book {number}: 山高水长 {n * number}." for n in range(12))
        (tmp_path / "text" / f"{number}.md").write_text(said, "utf-8")
    sets = ["method=pretrain", "engine=reference", "train.packing=true", "train.steps=3"]
    words = [word for key in sets for word in ("--set", key)]

    recipe = ["tiny-mistral", "--data", str(tmp_path / "text"), *words]
    done = subprocess.run(
        [sys.executable, "-c", CODE, "train", *recipe, "--runs", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    run = open_run(Path(done.stdout.strip()))
    said = [event for event, _ in events.read(run.events_path)]
    steps = [event for event in said if isinstance(event, events.Step)]
    notes = [event.text for event in said if isinstance(event, events.Note)]
    assert len(steps) == 3
    assert steps[-1].loss < steps[0].loss
    assert any("kept apart" in note for note in notes)
    assert json.loads((run.folder / "ledger.json").read_text())["train"] == 6
