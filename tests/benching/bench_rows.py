"""Rows of a bench for tests, valid unless a test changes them.  Not a test."""

from collections.abc import Mapping
from typing import Any

from fastsft.bench import row
from fastsft.bench.row import Row

STEPS, WARMUP = 6, 4
LOSSES = [5.0 - 0.2 * step for step in range(STEPS + WARMUP)]

CPU = {"name": "Intel(R) Xeon(R) Processor", "cores": 2, "ram_bytes": 16 * 2**30}
GPU = {
    "name": "NVIDIA Example 24",  # no such card: nothing here was measured
    "memory_bytes": 24 * 2**30,
    "driver": "580.1",
    "compute_capability": "8.9",
    "power_limit_w": 450.0,
    "sm_clock_max_mhz": 3105,
    "pcie": "4 x16",
}
GPU_STATE = {
    "mean_power_w": 380.0,
    "sm_clock_mhz": (2520, 2745),
    "temperature_c": 66,
    "throttle": ["power cap"],
    "other_processes": 0,
}


def counts() -> dict[str, list[int]]:
    """Of every step: two epochs of five."""
    each = {"slots": 2000, "real_tokens": 1600, "trained_tokens": 400, "documents": 16}
    return {key: [value] * (STEPS + WARMUP) for key, value in each.items()}


def plain(*, arm: str = "unsloth", repeat: int = 1, order: int = 1, pace: float = 1.0) -> Any:
    """A CPU row's JSON values; `pace` multiplies its speed."""
    count = STEPS + WARMUP
    seconds = [0.5 / pace + 0.01 * (step % 3) for step in range(STEPS)]
    total = sum(seconds)
    return {
        "schema": 1,
        "identity": {
            "bench": "20260101-120000-tiny-qwen2.5",
            "arm": arm,
            "repeat": repeat,
            "order": order,
            "recipe": "tiny-qwen2.5",
            "recipe_hash": "a" * 64,
            "engine": arm,
            "base": {
                "name": "tiny:qwen2.5",
                "params": 3_500_000,
                "is_synthetic": False,
                "fingerprint": "b" * 64,
                "stored": "bfloat16",
            },
            "fastsft": "0.1.0",
            "commit": None,
            "versions": {"torch": "2.10.0", "transformers": "5.17.0"},
            "gpu": None,
            "vram_cap_gib": None,
            "cpu": dict(CPU),
            "os": "Linux 6.8.0",
            "python": "3.11.9",
            "seed": 3407,
            "tokens_sha256": "c" * 64,
            "order_hash": "d" * 64,
            "time_s": 1767268800.0 + 60 * order,
            "device": "CPU",
        },
        "settings": {
            "quantization": "nf4",
            "dtype": "float32",
            "gradient_checkpointing": "none",
            "checkpoint_skip_layers": 0,
            "micro_batch_rows": 16,
            "accumulation_steps": 1,
            "max_tokens": 256,
            "batching": "padded",
            "optimizer": "adamw_torch_fused",
            "rank": 32,
            "targets": ["q_proj", "v_proj"],
            "learning_rate": 2e-3,
        },
        "work": {
            "steps": STEPS,
            "warmup_steps": WARMUP,
            "micro_batches": STEPS,
            "slots": 2000 * STEPS,
            "real_tokens": 1600 * STEPS,
            "trained_tokens": 400 * STEPS,
            "documents": 16 * STEPS,
            "attention_pairs": 80_800 * STEPS,
        },
        "time": {
            "import_s": 6.0,
            "load_s": 0.4,
            "preflight_s": 1.1,
            "first_step_s": 0.9,
            "to_first_step_s": 9.2,
            "warmup_steps_s": [0.9, *[0.5 / pace] * (WARMUP - 1)],
            "steps_s": seconds,
            "step_median_s": sorted(seconds)[STEPS // 2],
            "step_p10_s": min(seconds),
            "step_p90_s": max(seconds),
            "step_mad_s": 0.01,
            "save_s": 0.2,
            "overhead_share": 0.004,
        },
        "rates": {
            "trained_tokens_per_s": 400 * STEPS / total,
            "real_tokens_per_s": 1600 * STEPS / total,
            "slots_per_s": 2000 * STEPS / total,
            "model_flops_per_s": 2.0e10 * pace,
            "hardware_flops_per_s": 2.2e10 * pace,
            "matmul_flops_per_s": 1.0e11,
            "hfu_of_matmul": 0.22 * pace,
        },
        "memory": {
            "allocated_bytes": None,
            "active_bytes": None,
            "reserved_bytes": None,
            "process_bytes": None,
            "device_bytes": None,
            "host_rss_bytes": 1_450_000_000,
            "pinned_bytes": None,
            "samples": [[0.05 * i, 200_000_000 + 6_000_000 * i, None] for i in range(200)],
            "marks": {"load": 6.0, "preflight": 6.4, "train": 7.5, "end": 10.0},
        },
        "gpu_state": None,
        "losses": list(LOSSES),
        "grad_norms": [1.5] * count,
        "counts": counts(),
        "recompiles": [0] * count,
        "expected": {
            "order_hash": "d" * 64,
            "rows": 80,
            "items": 80,
            "items_per_step": 16,
            "steps_per_epoch": 5,
            "real_tokens": 8000,
            "trained_tokens": 2000,
            "shortest_item": 60,
            "longest_item": 140,
            "steps": counts(),
        },
        "adapter_norm": 1.25,
        "others_cpu_share": 0.1,
        "validity": {"is_valid": True, "gates": []},
    }


def on_gpu(values: Any) -> Any:
    """The values as they might be on a GPU; made up, and no measurement."""
    gib = 2**30
    peaks = {"allocated": 6 * gib, "active": 6 * gib, "reserved": 7 * gib}
    values["identity"] |= {"gpu": dict(GPU), "device": GPU["name"]}
    values["gpu_state"] = dict(GPU_STATE)
    values["settings"] |= {"dtype": "bfloat16", "gradient_checkpointing": "unsloth"}
    values["memory"] |= {
        "allocated_bytes": 6 * gib,
        "active_bytes": 6 * gib,
        "reserved_bytes": 7 * gib,
        "process_bytes": 8 * gib,
        "device_bytes": 8 * gib,
        "device_before_bytes": gib // 4,
        "phases": {"steady": peaks},
    }
    return values


def made(changes: Mapping[str, Any] | None = None, *, gpu: bool = False, **place: Any) -> Row:
    """A row; `changes` maps dotted keys to values."""
    values = plain(**place)
    if gpu:
        values = on_gpu(values)
    for key, value in (changes or {}).items():
        *path, leaf = key.split(".")
        inner = values
        for name in path:
            inner = inner[name]
        inner[leaf] = value
    return row.row(values)
