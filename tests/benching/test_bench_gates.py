"""Every gate of a row's worth fires on a row that violates it, and on no sound one."""

from dataclasses import replace
from typing import Any

import pytest
from bench_rows import STEPS, WARMUP, counts, made

from fastsft.bench import gates
from fastsft.bench.row import Row

COUNT = STEPS + WARMUP
UNKNOWN_ORDER = {"expected.order_hash": "e" * 64}


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
}


@pytest.mark.parametrize("case", ON_GPU)
def test_a_violation_on_a_gpu_fails_its_gate(case: str):
    changes, name = ON_GPU[case]

    assert failed(made(changes, gpu=True)) == [name]


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

    assert failed(made(changes), made(arm="reference")) == []


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
