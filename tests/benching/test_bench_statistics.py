"""No claim inside the noise, none from invalid rows, none about GPUs from a CPU."""

import math

import pytest
from bench_rows import made
from hypothesis import given
from hypothesis import strategies as st

from fastsft.bench import gates, statistics
from fastsft.bench.row import Row


def rows(**paces: list[float]) -> list[Row]:
    """Judged rows of arms that repeat at these paces, taking turns."""
    found = [
        made(arm=arm, repeat=repeat, order=repeat, pace=pace)
        for arm, values in paces.items()
        for repeat, pace in enumerate(values, 1)
    ]
    return gates.judged(sorted(found, key=lambda row: row.identity.repeat))


def test_the_ratio_is_of_medians_and_the_band_of_the_widest_arm():
    found = statistics.summarise(rows(unsloth=[2.0, 2.2, 4.0], reference=[1.0, 1.1, 1.1]))

    unsloth, reference = (arm.trained_tokens_per_s for arm in found.arms)
    assert found.ratio == pytest.approx(unsloth.median / reference.median)
    assert found.aa_band == pytest.approx((unsloth.high - unsloth.low) / unsloth.median)


def test_a_ratio_outside_of_the_band_is_a_difference():
    found = statistics.summarise(rows(unsloth=[1.5, 1.51, 1.52], reference=[1.0, 1.01, 1.02]))

    assert found.is_difference
    assert "unsloth trains 1.48 times the tokens per second of reference" in found.statement
    assert "repeats of one arm differ by 1.9% at most" in found.statement


def test_a_ratio_inside_of_the_band_is_none():
    found = statistics.summarise(rows(unsloth=[1.0, 1.1, 1.2], reference=[1.0, 1.0, 1.05]))

    assert not found.is_difference
    assert "no difference between unsloth and reference is shown" in found.statement


@given(st.floats(0.01, 100), st.floats(0, 1))
def test_which_arm_is_named_first_does_not_decide(ratio: float, band: float):
    near = math.isclose(max(ratio, 1 / ratio) - 1, band, rel_tol=1e-9)

    assert near or statistics.is_outside(ratio, band) == statistics.is_outside(1 / ratio, band)


def test_invalid_rows_enter_no_median():
    sound = rows(unsloth=[1.0, 1.0, 1.0], reference=[1.0, 1.0, 1.0])
    fast = made({"grad_norms": [0.0] * 10}, repeat=4, pace=50.0)

    found = statistics.summarise(gates.judged([*sound, fast]))

    assert found.arms[0].rows == 4 and found.arms[0].valid_rows == 3
    assert found.arms[0].trained_tokens_per_s.high < 2 * found.arms[0].trained_tokens_per_s.low
    assert "1 of 7 rows failed a gate and count nowhere" in found.statement


def test_an_arm_without_a_valid_row_is_not_compared():
    bad = [made({"adapter_norm": 0.0}), made(arm="reference")]

    found = statistics.summarise(gates.judged(bad))

    assert found.ratio is None and not found.is_difference
    assert "cannot be compared: no row of unsloth is valid" in found.statement


def test_one_process_each_shows_no_difference():
    found = statistics.summarise(rows(unsloth=[4.0], reference=[1.0]))

    assert found.aa_band is None and not found.is_difference
    assert "nothing says whether that is more than noise" in found.statement
    assert "1 valid repeat is fewer than the 3 that a claim needs" in found.statement


def test_one_arm_has_its_rate_and_its_noise():
    found = statistics.summarise(rows(unsloth=[1.0, 1.0, 1.1]))

    assert found.ratio is None
    assert found.statement.startswith("unsloth trains 7")


def test_a_cpu_speaks_of_the_pipeline_and_a_gpu_of_kernels():
    on_cpu = statistics.summarise(rows(unsloth=[1.0]))
    on_gpu = statistics.summarise(gates.judged([made(gpu=True)]))

    assert on_cpu.speaks_of == "pipeline"
    assert on_cpu.statement.endswith("not of kernels: no GPU figure follows from it.")
    assert on_gpu.speaks_of == "kernels"
    assert "CPU" not in on_gpu.statement


OTHERWISE = {
    "settings.gradient_checkpointing": "standard",
    "settings.checkpoint_skip_layers": 10,
    "settings.targets": ["q_proj"],
}


def test_arms_of_other_settings_are_no_comparison_of_kernels_and_each_is_named():
    rows = gates.judged([made(OTHERWISE, gpu=True), made(gpu=True, arm="reference", order=2)])

    found = statistics.summarise(rows)

    assert found.speaks_of == "settings"
    assert found.differences == [
        "gradient checkpointing standard against unsloth",
        "checkpoint skip layers 10 against 0",
        "targets q_proj against q_proj v_proj",
    ]
    assert (
        "The arms differ in: gradient checkpointing standard against unsloth; checkpoint skip "
        "layers 10 against 0; targets q_proj against q_proj v_proj. So this is not a comparison "
        "of kernels"
    ) in found.statement


def test_arms_of_equal_settings_differ_in_none():
    rows = gates.judged([made(gpu=True), made(gpu=True, arm="reference", order=2)])

    found = statistics.summarise(rows)

    assert (found.speaks_of, found.differences) == ("kernels", [])
    assert "differ in" not in found.statement


def test_figures_that_the_device_lacks_are_none():
    (arm,) = statistics.summarise(rows(unsloth=[1.0, 1.0])).arms

    assert arm.allocated_bytes is None
    assert arm.host_rss_bytes.median == 1_450_000_000


def test_a_rate_of_zero_divides_nothing():
    for arm in ("unsloth", "reference"):
        rows = [
            made({"rates.trained_tokens_per_s": 0.0} if name == arm else {}, arm=name)
            for name in ("unsloth", "reference")
        ]
        assert statistics.summarise(gates.judged(rows)).ratio is None
