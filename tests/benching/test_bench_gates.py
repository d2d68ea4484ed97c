"""Every gate of a row's worth fires on a row that violates it, and on no sound one."""

from dataclasses import replace
from typing import Any

import pytest
from bench_rows import STEPS, WARMUP, counts, made

from fastsft.bench import gates
from fastsft.bench.row import Row

COUNT = STEPS + WARMUP
UNKNOWN_ORDER = {"expected.order_hash": ""}
SYNTHETIC = {"identity.base.is_synthetic": True}
GIB = 2**30


def failed(row: Row, peer: Row | None = None) -> list[str]:
    return [gate.name for gate in gates.judge(row, peer).failed]


def gate(row: Row, name: str, peer: Row | None = None) -> Any:
    return next(g for g in gates.judge(row, peer).gates if g.name == name)


def swapped(values: list[Any], place: int, value: Any) -> list[Any]:
    return [*values[:place], value, *values[place + 1 :]]


def counted(**changes: list[int]) -> dict[str, list[int]]:
    return {**counts(), **changes}


def test_a_sound_row_passes_every_gate_that_a_cpu_can_judge():
    found = gates.judge(made(), made(arm="reference"))

    assert found.is_valid
    assert [g.name for g in found.gates if g.result == "not run"] == [
        "device",
        "alone",
        "throttling",
        "host spill",
    ]


def test_a_sound_row_of_a_gpu_passes_every_gate():
    found = gates.judge(made(gpu=True), made(gpu=True, arm="reference"))

    assert [g.result for g in found.gates] == ["passed"] * len(found.gates)


def test_every_gate_says_what_was_wanted_and_why():
    for found in gates.judge(made(), made(arm="reference")).gates:
        assert found.wanted and found.why
        assert found.measured or found.result == "not run"


VIOLATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "an error": ({"error": "OutOfMemory: CUDA out of memory"}, "finished"),
    "half the steps": ({"losses": [5.0] * 5, "grad_norms": [1.0] * 5}, "finished"),
    "NaN loss": ({"losses": swapped([5.0] * COUNT, 3, "NaN")}, "finite"),
    "infinite gradient": ({"grad_norms": swapped([1.0] * COUNT, 3, "Infinity")}, "finite"),
    "zero gradient": ({"grad_norms": swapped([1.0] * COUNT, 7, 0.0)}, "gradients"),
    "no gradients": ({"grad_norms": []}, "gradients"),
    "adapter at zero": ({"adapter_norm": 0.0}, "adapter"),
    "adapter unknown": ({"adapter_norm": None}, "adapter"),
    "more than a matmul": ({"rates.hardware_flops_per_s": 1.06e11}, "utilisation"),
    "wrong peak": ({"rates.matmul_flops_per_s": 1.0e9}, "utilisation"),
    "nothing trained": (
        {"counts": counted(trained_tokens=swapped([400] * COUNT, 2, 0))},
        "token counts",
    ),
    "padding counted as real": (
        {"counts": counted(real_tokens=[2000] * COUNT), "work.real_tokens": 2000 * STEPS},
        "token counts",
    ),
    "more real than slots": (
        {"counts": counted(real_tokens=swapped([1600] * COUNT, 2, 2100))},
        "token counts",
    ),
    "everything trained": (
        {"counts": counted(trained_tokens=[1600] * COUNT), "work.trained_tokens": 1600 * STEPS},
        "token counts",
    ),
    "a document twice": (
        {"counts": counted(documents=swapped([16] * COUNT, 2, 17))},
        "token counts",
    ),
    "another order": ({"identity.order_hash": "e" * 64}, "token counts"),
    "no order told": ({"identity.order_hash": ""}, "token counts"),
    "totals of other steps": ({"work.slots": 2000 * COUNT}, "token counts"),
    "counts of fewer steps": (
        {"counts": {key: values[:-1] for key, values in counts().items()}},
        "token counts",
    ),
    "compiling in the window": (
        {"recompiles": [3] * (WARMUP + 2) + [4] * (STEPS - 2)},
        "recompilation",
    ),
    "a slow start": ({"time.steps_s": [2.0, 2.0, 0.5, 0.5, 0.5, 0.5]}, "warm-up"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_violation_fails_its_gate(case: str):
    changes, name = VIOLATIONS[case]

    assert name in failed(made(changes))


ON_GPU: dict[str, tuple[dict[str, Any], str]] = {
    "another process": ({"gpu_state.other_processes": 1}, "alone"),
    "heat": ({"gpu_state.throttle": ["power cap", "thermal, software"]}, "throttling"),
    "supply": ({"gpu_state.throttle": ["power brake"]}, "throttling"),
    "reserved beyond the card": ({"memory.reserved_bytes": 25 * 2**30}, "host spill"),
    "process beyond the card": ({"memory.process_bytes": 25 * 2**30}, "host spill"),
    "reserved beyond the cap": ({"identity.vram_cap_gib": 6.5}, "host spill"),
    "context beyond the cap": ({"identity.vram_cap_gib": 7.5}, "host spill"),
    "others' memory and ours": ({"memory.device_before_bytes": 17 * GIB}, "host spill"),
    "spilled, as WSL shows it": (
        {"memory.reserved_bytes": int(23.5 * GIB), "memory.process_bytes": 23 * GIB},
        "host spill",
    ),
    "another card": ({"identity.device": "NVIDIA Other 24"}, "device"),
}


@pytest.mark.parametrize("case", ON_GPU)
def test_a_violation_on_a_gpu_fails_its_gate(case: str):
    changes, name = ON_GPU[case]

    assert failed(made(changes, gpu=True)) == [name]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("gpu_state.other_processes", "alone"),
        ("gpu_state.throttle", "throttling"),
        ("memory.reserved_bytes", "host spill"),
        ("memory.device_before_bytes", "host spill"),
        ("identity.device", "device"),
    ],
)
def test_what_nobody_measured_is_no_pass(key: str, name: str):
    assert gate(made({key: None}, gpu=True), name).result == "not run"


def test_under_a_cap_it_matters_not_what_others_hold():
    changes = {"identity.vram_cap_gib": 8.5, "memory.device_before_bytes": None}

    assert gate(made(changes, gpu=True), "host spill").result == "passed"


def test_a_power_limit_is_no_throttling():
    assert failed(made({"gpu_state.throttle": ["power cap", "sync boost"]}, gpu=True)) == []


def test_where_the_order_is_unknown_whole_epochs_must_add_up():
    padded = counted(real_tokens=[1700] * COUNT)
    changes = {**UNKNOWN_ORDER, "counts": padded, "work.real_tokens": 1700 * STEPS}

    assert failed(made(UNKNOWN_ORDER)) == []
    assert gate(made(changes), "token counts").measured == (
        "epoch 1: 8,500 real tokens counted, 8,000 in the data"
    )


def test_where_the_order_is_unknown_no_step_exceeds_its_longest_rows():
    changes = {
        **UNKNOWN_ORDER,
        "counts": counted(slots=[2300] * COUNT),
        "work.slots": 2300 * STEPS,
    }

    assert "16 x 140" not in gate(made(changes), "token counts").measured
    assert gate(made(changes), "token counts").measured == (
        "step 1: 2,300 slots, its longest rows would make 2,240"
    )


def test_one_hiccup_is_no_slow_start():
    assert failed(made({"time.steps_s": [5.0, 0.5, 0.5, 0.5, 0.5, 0.5] + [0.5] * 0})) == ["warm-up"]
    assert failed(made({"time.steps_s": [0.5, 0.5, 5.0, 0.5, 0.5, 0.5]})) == []


def test_other_tokens_fail():
    row = made({"identity.tokens_sha256": "0" * 64})

    assert failed(row, made(arm="reference")) == ["same tokens"]


def test_another_order_fails():
    changes = {"identity.order_hash": "0" * 64, "expected.order_hash": "0" * 64}

    assert failed(made(changes), made(arm="reference")) == ["same tokens"]


def test_another_split_into_micro_batches_is_the_same_work():
    changes = {
        "identity.order_hash": "0" * 64,
        "expected.order_hash": "0" * 64,
        "settings.micro_batch_rows": 4,
        "settings.accumulation_steps": 4,
    }

    row, peer = made(changes), made(arm="reference")

    assert failed(row, peer) == []
    assert gate(row, "same tokens", peer).result == "not run", "the order was not compared"


def test_another_split_of_other_tokens_fails():
    changes = {
        "settings.micro_batch_rows": 4,
        "settings.accumulation_steps": 4,
        "counts": counted(documents=[15] * COUNT),
    }

    assert "same tokens" in failed(made(changes), made(arm="reference"))


def test_other_gradients_at_the_same_loss_fail_and_name_the_step():
    row = made({"grad_norms": swapped([1.5] * COUNT, 1, 1.51)})

    found = gate(row, "gradient norm", made(arm="reference"))

    assert found.result == "failed"
    assert found.measured == "0.0067 from reference 1 at step 2"


def test_real_norms_of_two_engines_pass():
    """Of the reference and Unsloth, float32, tiny-qwen2.5; the distances as measured."""
    apart = [2.4e-7, 2.0e-7, 1.2e-5, 5.3e-5, 9.7e-4, 1.3e-2]
    norms = [1.5 * (1 + far) for far in apart] + [1.5] * (COUNT - len(apart))

    assert failed(made({"grad_norms": norms}), made(arm="reference")) == []


@pytest.mark.parametrize(("far", "result"), [(0.04, "passed"), (0.06, "failed")])
def test_the_first_norm_of_a_16_bit_run_has_a_wider_band(far: float, result: str):
    dtype = {"settings.dtype": "bfloat16"}
    row = made(dtype | {"grad_norms": swapped([1.5] * COUNT, 0, 1.5 * (1 + far))})

    assert gate(row, "gradient norm", made(dtype, arm="reference")).result == result


def test_on_random_tokens_another_batch_of_nearly_the_same_loss_fails():
    changes = SYNTHETIC | {"settings.dtype": "bfloat16"}
    its = [11.93, 11.95, 11.92, 11.94, 11.93, 11.96, 11.92, 11.94, 11.95, 11.93]
    peer = made(changes | {"losses": its}, arm="reference")
    rounded = made(changes | {"losses": [one + 0.001 for one in its]})
    shuffled = made(changes | {"losses": its[1:] + its[:1]})

    assert gate(rounded, "loss", peer).result == "passed"
    assert gate(shuffled, "loss", peer).result == "failed", "2e-3 apart, within any relative band"


def test_on_random_tokens_that_all_cost_the_same_the_loss_says_nothing():
    changes = SYNTHETIC | {"settings.dtype": "bfloat16", "losses": [11.93] * COUNT}

    found = gate(made(changes), "loss", made(changes, arm="reference"))

    assert found.result == "not run"
    assert "does not move by more than rounding" in found.why


def test_another_loss_fails_and_names_the_step():
    row = made({"losses": swapped(made().losses, 1, 4.81)})

    found = gate(row, "loss", made(arm="reference"))

    assert found.result == "failed"
    assert found.measured == "0.0021 from reference 1 at step 2"


def test_what_adam_magnifies_late_is_allowed():
    row = made({"losses": swapped(made().losses, 9, 3.3)})

    assert failed(row, made(arm="reference")) == []


@pytest.mark.parametrize("key", ["rank", "learning_rate"])
def test_recipes_that_learn_otherwise_are_not_held_to_one_loss(key: str):
    row = made({f"settings.{key}": 8, "losses": [1.0] * COUNT})

    assert gate(row, "loss", made(arm="reference")).result == "not run"


def test_the_first_step_of_a_16_bit_run_has_a_wider_band():
    changes = {"losses": swapped(made().losses, 0, 5.04), "settings.dtype": "bfloat16"}
    other = made({"settings.dtype": "bfloat16"}, arm="reference")

    assert failed(made(changes), other) == []
    assert failed(made(changes | {"settings.dtype": "float32"}), made(arm="reference")) == ["loss"]


def bench_of(*rows: Row) -> list[Row]:
    order = [replace(r.identity, order=n) for n, r in enumerate(rows, 1)]
    return [replace(r, identity=i) for r, i in zip(rows, order, strict=True)]


def test_the_peer_is_the_last_arm_of_the_same_repeat():
    rows = bench_of(
        *(made(arm=arm, repeat=repeat) for repeat in (1, 2) for arm in ("unsloth", "reference"))
    )

    peers = [gates.peer_of(row, rows) for row in rows]

    assert [p and (p.identity.arm, p.identity.repeat) for p in peers] == [
        ("reference", 1),
        None,
        ("reference", 2),
        ("reference", 1),
    ]


def test_a_peer_that_is_not_sound_is_no_peer():
    rows = bench_of(
        made(),
        made({"adapter_norm": 0.0}, arm="reference"),
        made(repeat=2),
        made(arm="reference", repeat=2),
    )

    assert gates.peer_of(rows[0], rows) is rows[3]


def test_one_arm_is_compared_with_its_first_repeat():
    rows = bench_of(made(), made({"losses": [1.0] * COUNT}, repeat=2))

    first, second = gates.judged(rows)

    assert first.validity.is_valid
    assert [g.name for g in second.validity.failed] == ["loss"]
