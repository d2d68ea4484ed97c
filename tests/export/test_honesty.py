"""What merging costs is measured on the run's own rows, against the model as it was trained."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import finished_run
import pytest

from fastsft.engine import nf4
from fastsft.export import honesty, trained
from fastsft.export.honesty import Difference, Honesty
from fastsft.export.merge import TargetDtype, merge
from fastsft.export.trained import Trained
from fastsft.scoring import Loss, Process


@pytest.fixture(scope="module")
def qlora(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("qlora")
    return trained.opened(finished_run.make(folder, "tiny-qwen2.5", "model.quantization=nf4"))


def merged(run: Trained, base: Path, out: Path, *, dtype: TargetDtype = "base") -> Path:
    merge(base, run.adapter, out, stop_ids=run.tokenizer.stop_ids, dtype=dtype)
    return out


def dequantised(run: Trained, out: Path, *, dtype: str | None) -> Path:
    """The base as 4-bit training saw it, made here: a process of its own takes ten seconds."""
    out.mkdir()
    asked: dict[str, Any] = {"double_quant": run.recipe.model.double_quant, "dtype": dtype}
    asked |= {"verb": "dequantise", "source": run.base.folder, "out": out, "compute": None}
    nf4.run(argparse.Namespace(**asked), lambda record: None)
    for name in ("tokenizer.json", "generation_config.json"):
        (out / name).write_bytes((run.base.folder / name).read_bytes())
    return out


def difference(found: Honesty, what: honesty.What) -> float:
    measured = found.against_trained(what)
    assert measured is not None
    return measured.nats


@pytest.mark.parametrize(("dtype", "nearness"), [("float32", 1e-4), (None, 0.02)])
def test_merged_on_the_dequantised_base_is_what_was_trained_and_on_16_bits_is_not(
    qlora: Trained, scoring_process: Process, tmp_path: Path, dtype, nearness
):
    stored = merged(qlora, qlora.base.folder, tmp_path / "stored", dtype=dtype or "base")
    seen = dequantised(qlora, tmp_path / "seen", dtype=dtype)
    on_seen = merged(qlora, seen, tmp_path / "on-seen", dtype=dtype or "base")

    found = honesty.measured(scoring_process, qlora, stored, dequantised=on_seen)

    assert (found.rows, found.is_held_out, found.as_trained) == (8, True, "adapter on NF4")
    assert abs(difference(found, "merged on dequantised")) < nearness
    assert abs(difference(found, "merged")) > 0.03
    assert difference(found, "merged") == pytest.approx(
        difference(found, "adapter on 16 bits"), abs=nearness
    )
    verdict = found.verdict()
    assert f"as trained (adapter on NF4) the loss is {found.mean('adapter on NF4'):.4f}." in verdict
    assert "--merge-base dequantised) is nearer to it." in verdict


def test_without_4_bits_the_model_as_trained_is_the_adapter_on_16_bits(
    scoring_process: Process, tmp_path: Path
):
    run = trained.opened(finished_run.make(tmp_path, "tiny-qwen2.5", "model.quantization=none"))
    out = merged(run, run.base.folder, tmp_path / "merged", dtype="float32")

    found = honesty.measured(scoring_process, run, out, max_rows=3)

    assert (found.rows, found.as_trained) == (3, "adapter on 16 bits")
    assert set(found.losses) == {"adapter on 16 bits", "merged"}
    assert abs(difference(found, "merged")) < 1e-4
    assert "training saw it" not in found.verdict()


def test_a_run_without_held_out_rows_is_measured_on_trained_ones_by_name(
    scoring_process: Process, tmp_path: Path
):
    sets = ("model.quantization=none", "eval.share=0")
    run = trained.opened(finished_run.make(tmp_path, "tiny-qwen2.5", *sets))
    out = merged(run, run.base.folder, tmp_path / "merged")

    found = honesty.measured(scoring_process, run, out, max_rows=2)

    assert not found.is_held_out
    assert found.verdict().startswith("On 2 trained rows (")
    assert "The run held no rows out" in found.verdict()


def test_what_does_not_fit_is_left_out_and_said(
    qlora: Trained, scoring_process: Process, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fastsft.scoring.place", lambda needed: None)

    found = honesty.measured(scoring_process, qlora, qlora.base.folder)

    assert found.losses == {}
    assert found.mean("merged") is None
    assert "the model as trained was not measured" in found.verdict()
    assert "Not measured: adapter on NF4; it needs 1.0 GiB of memory." in found.verdict()


def losses(sums: Sequence[float], tokens: Sequence[int]) -> tuple[Loss, ...]:
    return tuple(Loss(s, n) for s, n in zip(sums, tokens, strict=True))


def test_the_difference_is_per_token_and_its_error_that_of_the_rows():
    tokens = [10, 20, 30, 40]
    before = losses([20.0, 40.0, 60.0, 80.0], tokens)

    even = honesty._difference(losses([21.0, 42.0, 63.0, 84.0], tokens), before)
    odd = honesty._difference(losses([30.0, 30.0, 70.0, 70.0], tokens), before)
    alone = honesty._difference(before[:1], before[:1])

    assert (even.nats, even.error) == (pytest.approx(0.1), pytest.approx(0.0))
    assert (odd.nats, odd.error) == (0.0, pytest.approx(math.sqrt(400 * 4 / 3) / 100))
    assert math.isnan(alone.error)


def test_a_difference_that_the_choice_of_rows_explains_is_said_to_be():
    assert str(Difference(0.1, 0.01)) == "+0.1000 nats a token (perplexity +10.52%)"
    assert str(Difference(0.1, 0.2)).endswith("no more than the choice of rows explains")
    assert not Difference(0.1, math.nan).is_visible
