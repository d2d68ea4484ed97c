"""On a GPU: random weights of real shapes load and train under a 24 GiB cap, and what the meters
and the estimator say of it holds."""

from itertools import pairwise
from statistics import median

import gpu_runs
import pytest
from gpu_runs import IS_TINY, Setup, done

pytestmark = gpu_runs.NEEDS_GPU

KEPT = [Setup("qwen2.5-7b", "stored", kept) for kept in ("unsloth", "standard", "partial", "none")]
"""By how much memory they take, the least first."""
STORED, LOADED = (Setup("qwen2.5-1.5b", held, "standard") for held in ("stored", "nf4"))
OTHERS = [
    Setup("llama-3.1-8b", "stored", "unsloth", length=8192),
    Setup("qwen2.5-1.5b", "none", "none"),
    Setup("qwen2.5-7b", "stored", "standard", rows=2),
    Setup("qwen2.5-1.5b", "none", "standard", rows=2),
    Setup("qwen2.5-1.5b", "stored", "standard", engine="reference"),
]
ALL = [*KEPT, *OTHERS, STORED, LOADED]


def named(setup: Setup) -> str:
    return setup.name


@pytest.mark.parametrize("setup", ALL, ids=named)
def test_a_synthetic_base_trains_under_the_cap(setup: Setup):
    found = done(setup)

    assert len(found.steps) == gpu_runs.STEPS
    assert all(0 < step.grad_norm < float("inf") for step in found.steps)
    assert all(0 < step.loss < 20 for step in found.steps)
    assert found.measured.adapter_norm
    assert found.manifest["base"]["is_synthetic"] is True
    assert "checkpoint_skip_layers" not in found.manifest["requested_versus_effective"]
    if not IS_TINY:
        assert 0 < found.allocated < gpu_runs.CAP_GIB * 2**30


def test_a_base_stored_in_four_bits_trains_as_one_that_is_loaded_in_four():
    stored, loaded = done(STORED), done(LOADED)
    seconds = {
        "stored": stored.measured.phases_s["load"],
        "loaded": loaded.measured.phases_s["load"],
    }
    gpu_runs.report("load-seconds", seconds)

    for one, other in zip(stored.steps, loaded.steps, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)


@pytest.mark.skipif(IS_TINY, reason="memory is a GPU's")
@pytest.mark.parametrize("setup", ALL, ids=named)
def test_the_estimate_is_within_a_tenth_of_what_was_allocated(setup: Setup):
    found = done(setup)

    assert found.allocated == pytest.approx(found.predicted.allocated, rel=0.1)


def test_keeping_activations_changes_the_memory_and_not_the_loss():
    runs = [done(setup) for setup in KEPT]
    gpu_runs.report(
        "recomputation",
        {
            run.setup.recompute: {
                "step_s": median(step.seconds for step in run.steps[1:]),
                "allocated": run.allocated,
            }
            for run in runs
        },
    )

    for run in runs[1:]:
        assert run.steps[0].loss == pytest.approx(runs[0].steps[0].loss, rel=1e-4)
        assert run.steps[-1].loss == pytest.approx(runs[0].steps[-1].loss, rel=1e-2)
    if not IS_TINY:
        assert all(less.allocated < more.allocated for less, more in pairwise(runs))


@pytest.mark.skipif(IS_TINY, reason="memory is a GPU's")
@pytest.mark.parametrize("setup", ALL, ids=named)
def test_the_process_takes_at_least_what_torch_reserved(setup: Setup):
    measured = done(setup).manifest["measured"]

    assert measured["process_vram_peak_bytes"] >= measured["reserved_peak_bytes"]
    assert measured["reserved_peak_bytes"] >= measured["allocated_peak_bytes"]


@pytest.mark.skipif(IS_TINY, reason="memory is a GPU's")
def test_offloaded_activations_are_counted_as_pinned_memory():
    run = done(KEPT[0])

    assert run.measured.pinned_bytes
    assert run.measured.pinned_bytes >= 0.5 * run.predicted.pinned > 0
