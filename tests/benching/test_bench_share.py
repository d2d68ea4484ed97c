"""What is shared tells a stranger enough to check the rows, and nothing of the person or the data.

The private strings are planted wherever a row or a recipe has text.
"""

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from bench_rows import made

from fastsft import recipe_file
from fastsft.bench import gates, row, share
from fastsft.bench.arms import ArmPlan
from fastsft.bench.row import Row
from fastsft.errors import DataError, RecipeError

PRIVATE = ("jdoe", "secret-host", "hf_abcdefghijklmnop", "patients.jsonl", "Dr. Doe", "/home")
TEXT = "/home/jdoe/patients.jsonl on secret-host with hf_abcdefghijklmnop for Dr. Doe"
FREE = (
    *("identity.bench", "identity.arm", "identity.recipe", "identity.base.name", "identity.os"),
    *("identity.recipe_hash", "error"),
)
"""Where a row's text is anybody's; hashes, versions and names of devices are not."""


def planted(**place: Any) -> Row:
    """A row with private strings in every text that is free, in notes and in gates."""
    overrides = [
        f"data.system={TEXT}",
        "train.report_to=[jdoe]",
        "train.seed=7",
        f"lora.rank={TEXT}",
    ]
    texts = {"notes": [TEXT], "identity.overrides": overrides, **dict.fromkeys(FREE, TEXT)}
    found = made(texts, **place)
    gate = row.Gate(name=TEXT, result="failed", measured=TEXT, wanted=TEXT, why=TEXT)
    versions = {**found.identity.versions, "torch": "2.10.0+cu128", "peft": "0.18.0+jdoe"}
    return replace(
        found,
        identity=replace(found.identity, versions=versions, os="Linux 6.8.0-jdoe-secret-host"),
        validity=row.Validity(is_valid=False, gates=[gate]),
    )


def own_recipe() -> Any:
    recipe = recipe_file.load(
        "tiny-qwen2.5",
        [
            "description=for Dr. Doe",
            "model.base=/home/jdoe/base",
            "model.revision=jdoe",
            "data.path=/home/jdoe/patients.jsonl",
            "data.system=you answer for Dr. Doe",
            "data.template=/home/jdoe/secret-host.jinja",
            "train.report_to=[wandb]",
            "eval.path=/home/jdoe/patients.jsonl",
        ],
    )
    return ArmPlan(TEXT, recipe, changes=(TEXT,))


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    share.write(tmp_path / "share.json", [planted()], [own_recipe()])
    text = (tmp_path / "share.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return {**found, "text": text}


@pytest.mark.parametrize("private", PRIVATE)
def test_nothing_private_is_shared(document, private: str):
    assert private in json.dumps(row.as_dict(planted())) + str(own_recipe())
    assert private not in document["text"]


def test_a_stranger_can_judge_the_rows_again(document):
    (shared,) = [row.row(one) for one in document["rows"]]

    assert gates.judge(shared) == shared.validity
    assert shared.counts == planted().counts
    assert shared.losses == planted().losses
    assert shared.identity.tokens_sha256 == planted().identity.tokens_sha256


def test_overrides_are_shared_where_they_are_numbers_and_choices(document):
    assert document["rows"][0]["identity"]["overrides"] == ["train.seed=7"]


def test_numbers_that_are_none_are_shared_as_words(tmp_path: Path):
    one = made({"losses": ["NaN"] * 10})

    share.write(
        tmp_path / "share.json", [one], [own_recipe(), ArmPlan("unsloth", own_recipe().recipe)]
    )

    text = (tmp_path / "share.json").read_text("utf-8")
    shared = json.loads(text, parse_constant=pytest.fail)
    assert shared["rows"][0]["losses"] == ["NaN"] * 10


def test_arms_of_other_settings_are_named_in_what_is_shared():
    plans = [ArmPlan(name, recipe_file.load("tiny-qwen2.5")) for name in ("unsloth", "reference")]
    other = made({"settings.rank": 8}, arm="reference", order=2)

    found = share.document([made(), other], plans)

    assert found["summary"]["differences"] == ["rank 32 against 8"]


def test_trouble_with_the_file_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(share, "write_atomically", full)

    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        share.write(tmp_path / "share.json", [planted()], [own_recipe()])


def test_the_recipe_says_all_that_decides_speed_memory_and_loss(document):
    (recipe,) = document["recipes"].values()

    assert recipe["model"]["base"] == "own"
    assert recipe["model"]["quantization"] == "nf4"
    assert recipe["train"]["learning_rate"] == 2e-3
    assert recipe["lora"]["rank"] == 32
    assert recipe["data"] == {"max_tokens": 256, "overlength": "drop", "train_on": "assistant"}


def test_the_recipe_hash_is_of_what_is_shared(document):
    (recipe,) = document["recipes"].values()

    assert document["rows"][0]["identity"]["recipe_hash"] == share._digest(recipe)


def test_names_that_everybody_knows_are_kept():
    plan = ArmPlan("unsloth", recipe_file.load("qwen2.5-7b"))
    found = share.document([made({"identity.recipe": "qwen2.5-7b"})], [plan])

    identity = found["rows"][0]["identity"]
    assert (identity["arm"], identity["recipe"]) == ("unsloth", "qwen2.5-7b")
    assert identity["base"]["name"] == "tiny:qwen2.5"
    assert found["recipes"]["unsloth"]["model"]["base"] == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("tiny:llama", "tiny:llama"),
        ("synthetic:qwen2.5-7b", "synthetic:qwen2.5-7b"),
        ("synthetic:jdoe", "own"),
        ("jdoe/private-model", "own"),
        ("/home/jdoe/model", "own"),
        ("model", "own"),
    ],
)
def test_a_base_is_named_where_fastsft_knows_it(name: str, shared: str):
    assert share.base_name(name) == shared


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("Linux 6.8.0-49-generic", "Linux 6.8"),
        ("Linux 5.15.167.4-microsoft-standard-WSL2", "Linux 5.15 (WSL)"),
        ("jdoe's own", "own"),
    ],
)
def test_a_kernel_is_named_by_its_version(name: str, shared: str):
    assert share._system(name) == shared


def test_every_text_of_a_row_is_either_planted_or_harmless():
    """A new field with text must be thought of here."""
    harmless = {
        *("engine", "fingerprint", "fastsft", "commit", "python", "tokens_sha256", "order_hash"),
        *("name", "driver", "compute_capability", "pcie", "quantization", "dtype"),
        *("gradient_checkpointing", "batching", "optimizer", "parameters"),
        *("stored", "device"),  # one of three dtypes or nf4; as torch names a card
        *("result", "measured", "wanted", "why"),  # of gates, which are judged again
    }
    free = {key.rpartition(".")[2] for key in FREE}

    assert set(texts(row.Row)) <= harmless | free


def texts(record: Any) -> list[str]:
    """Names of the fields, at any depth, that hold a text."""
    found: list[str] = []
    for field in fields(record):
        if field.type in (str, str | None, "str", "str | None"):
            found.append(field.name)
        for inner in (field.type, *getattr(field.type, "__args__", ())):
            if is_dataclass(inner):
                found += texts(inner)
    return found


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(RecipeError, match="its folder does not exist"):
        share.check(tmp_path / "no" / "share.json")
    with pytest.raises(RecipeError, match="is a folder"):
        share.check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_ones_own_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(share.tempfile, "TemporaryFile", refused)

    with pytest.raises(RecipeError, match="its folder cannot be written to: Permission denied"):
        share.check(tmp_path / "share.json")
