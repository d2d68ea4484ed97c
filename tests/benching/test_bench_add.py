"""A shared file is believed in nothing that its own figures can disprove."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from bench_rows import made

from bench import add
from fastsft import recipe_file
from fastsft.bench import row, share
from fastsft.bench.arms import ArmPlan
from fastsft.errors import DataError

GIB = 2**30
Change = Callable[[dict[str, Any]], object]


def document(*, gpu: bool = False) -> dict[str, Any]:
    """What `fastsft bench --share` writes of two arms with two rows each."""
    found: dict[str, Any] = json.loads(_text(gpu))
    return found


@cache
def _text(gpu: bool) -> str:
    rows = [
        made(gpu=gpu, arm=arm, repeat=n, order=2 * n + place - 2, pace=pace)
        for n in (1, 2)
        for place, (arm, pace) in enumerate((("unsloth", 1.2), ("reference", 1.0)), 1)
    ]
    recipe = recipe_file.load("tiny-qwen2.5")
    plans = [ArmPlan("unsloth", recipe), ArmPlan("reference", recipe)]
    return json.dumps(share.document(rows, plans))


def written(tmp_path: Path, found: object) -> Path:
    path = tmp_path / "shared.json"
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize("gpu", [False, True])
def test_a_sound_file_has_no_fault(tmp_path: Path, gpu: bool):
    shared = add.read(written(tmp_path, document(gpu=gpu)))

    assert list(add.faults(shared)) == []


def test_overrides_are_part_of_a_sound_file(tmp_path: Path):
    found = document()
    for one in found["rows"]:
        one["identity"]["overrides"] = ["lora.targets=[q_proj, v_proj]", "train.learning_rate=2e-4"]

    assert list(add.faults(add.read(written(tmp_path, found)))) == []


def test_a_sound_file_is_filed_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(add.plots, "draw", lambda *_: [])
    path = written(tmp_path, document(gpu=True))

    folder = add.add(path, tmp_path / "results")

    assert folder.parent == tmp_path / "results" / "nvidia-example-24"
    rows, summary = row.read_folder(folder)
    assert [one.identity.order for one in rows] == [1, 2, 3, 4]
    assert summary.ratio == pytest.approx(1.2, rel=0.02)
    assert (folder / "index.html").is_file()
    with pytest.raises(DataError, match="is filed already"):
        add.add(path, tmp_path / "results")
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def unordered(found: dict[str, Any]) -> Any:
    """What the first row expects, with an order that nobody can work out."""
    first(found)["expected"]["order_hash"] = ""
    return first(found)["expected"]


def all_rates(found: dict[str, Any], rate: object) -> None:
    for one in found["rows"]:
        one["rates"]["trained_tokens_per_s"] = rate


def first(found: dict[str, Any]) -> Any:
    return found["rows"][0]


CHANGES: list[tuple[Change, str]] = [
    (lambda d: first(d)["rates"].update(trained_tokens_per_s=9e4), "not the tokens over the sec"),
    (lambda d: first(d)["rates"].update(slots_per_s=9e4), "slots/s is not the tokens over"),
    (lambda d: first(d)["time"].update(step_median_s=0.1), "not the steps' median"),
    (lambda d: first(d)["time"]["steps_s"].__setitem__(0, 0.0), "a step took no time"),
    (lambda d: first(d)["time"]["steps_s"].pop(), "5 times for 6 measured steps"),
    (lambda d: first(d)["memory"]["marks"].update(end=1.0), "took longer than the process lived"),
    (lambda d: first(d)["work"].update(real_tokens=10**9), "not in that order"),
    (lambda d: first(d)["losses"].pop(), "9 losses and 10 norms for 10 steps"),
    (lambda d: first(d)["grad_norms"].__setitem__(3, 0.0), "gate gradients: the file says passed"),
    (lambda d: first(d)["identity"].update(order_hash="0" * 64), "the file says passed, its fig"),
    (lambda d: first(d)["identity"].update(tokens_sha256="0" * 64), "more than one tokens"),
    (lambda d: first(d)["identity"].update(repeat=2), "is there twice"),
    (lambda d: first(d)["identity"].update(order=9), "not in the order in which they ran"),
    (lambda d: first(d)["identity"].update(os="<script>"), "not a plain name: '<script>'"),
    (lambda d: first(d)["identity"].update(os="/home/me"), "not a plain name: '/home/me'"),
    (lambda d: first(d)["notes"].append("me"), "has notes"),
    (lambda d: first(d)["identity"]["overrides"].append("data.path=x"), "is not shared: 'data.p"),
    (lambda d: first(d).update(error="OutOfMemory: in /home/me"), "its error has a text"),
    (lambda d: unordered(d).update(steps_per_epoch=0), "the file says passed, its fig"),
    (lambda d: all_rates(d, 0.0), "not the tokens over the sec"),
    (lambda d: all_rates(d, "NaN"), "not the tokens over the sec"),
    (lambda d: first(d)["identity"].update(time_s=4e9), "measured at no possible time"),
    (lambda d: first(d)["identity"].update(recipe_hash="0" * 64), "not the one that was hashed"),
    (lambda d: d["recipes"].pop("reference"), "its arm's recipe is not there"),
    (lambda d: d["recipes"]["unsloth"]["lora"].update(rank=1), "not the one that was hashed"),
    (lambda d: d["summary"].update(ratio=2.0), "ratio does not follow from the rows"),
    (lambda d: d["summary"].update(aa_band=None), "aa_band does not follow"),
    (lambda d: first(d)["validity"]["gates"].pop(), "the file says no gate"),
    (lambda d: first(d)["memory"].update(allocated_bytes=30 * GIB), "more memory allocated"),
    (lambda d: first(d)["memory"].update(process_bytes=80 * GIB), "than card (24.0 GiB)"),
    (lambda d: first(d)["memory"].update(allocated_bytes=10**6), "less than the weights alone"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=[told for _, told in CHANGES])
def test_what_does_not_hold_is_named_and_nothing_is_filed(
    tmp_path: Path, change: Change, told: str
):
    found = document(gpu=True)
    change(found)

    with pytest.raises(DataError) as caught:
        add.add(written(tmp_path, found), tmp_path / "results")

    assert told in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_a_bench_without_a_valid_row_is_nothing(tmp_path: Path):
    found = document()
    for one in found["rows"]:
        one["grad_norms"] = [0.0] * len(one["grad_norms"])

    faults = list(add.faults(add.read(written(tmp_path, found))))

    assert any("gate gradients" in fault for fault in faults)


def test_arithmetic_that_is_not_the_models_is_named():
    one = made(gpu=True)
    base = replace(one.identity.base, name="Qwen/Qwen2.5-7B-Instruct")
    known = replace(one, identity=replace(one.identity, base=base))

    assert "FLOP claimed; the model's are" in next(add._flops(known))
    assert list(add._flops(one)) == []  # of a tiny base nobody knows the shape


def test_a_layer_that_no_model_has_is_a_fault_and_no_crash(tmp_path: Path):
    found = document(gpu=True)
    for one in found["rows"]:
        one["identity"]["base"]["name"] = "Qwen/Qwen2.5-7B-Instruct"
        one["settings"]["targets"].append("nose")

    faults = list(add.faults(add.read(written(tmp_path, found))))

    assert "unsloth 1: its figures cannot be reckoned with (KeyError: 'nose')" in faults


def test_a_5090_that_boosts_is_as_fast_as_its_owner_says():
    """224 TFLOP/s were measured on one whose sheet says 209.5."""
    one = made(
        {"rates.hardware_flops_per_s": 1.6e14, "rates.matmul_flops_per_s": 2.24e14}, gpu=True
    )
    card = replace(one.identity.gpu, name="NVIDIA GeForce RTX 5090", memory_bytes=32 * GIB)
    known = replace(one, identity=replace(one.identity, gpu=card))
    rates = replace(known.rates, matmul_flops_per_s=2.4e14)

    assert list(add._peaks(known)) == []
    assert len(list(add._peaks(replace(known, rates=rates)))) == 1


def test_an_error_that_is_a_name_is_no_fault(tmp_path: Path):
    found = document(gpu=True)
    for one, name in zip(found["rows"], ("OutOfMemory", "an error"), strict=False):
        one["error"] = name

    faults = list(add.faults(add.read(written(tmp_path, found))))

    assert not [fault for fault in faults if "its error" in fault]


def test_a_row_faster_than_its_card_is_named():
    one = made({"rates.hardware_flops_per_s": 9e14}, gpu=True)
    card = replace(one.identity.gpu, name="NVIDIA GeForce RTX 4090", memory_bytes=24 * GIB)
    known = replace(one, identity=replace(one.identity, gpu=card))

    assert list(add._peaks(known)) == ["the work at 900 TFLOP/s, on a card of 165"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Expecting"),
        ("[]", "its kind is not"),
        ('{"kind": "fastsft bench", "schema": 2}', "schema 2, not 1"),
        ('{"kind": "fastsft bench", "schema": 1}', "'rows'"),
        ('{"kind": "fastsft bench", "schema": 1, "rows": [{}]}', "validation errors"),
        ("[" * 100_000, ""),
    ],
)
def test_what_is_no_shared_bench_is_refused(tmp_path: Path, text: str, told: str):
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(
        DataError, match=r"x\.json: not a file of `fastsft bench --share`"
    ) as caught:
        add.read(tmp_path / "x.json")

    assert told in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(add, "MAX_BYTES", 10)

    with pytest.raises(DataError, match="larger than"):
        add.read(written(tmp_path, document()))
