"""Holds the estimator against published memory: `python bench/estimator/points.py [--write]`.

A point is described only by what its source states: model, adapter, micro-batch, and the software
of its time as a `Stack`.  Nothing is fitted to a single point.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fastsft.estimate import GIB, REFERENCE, Memory, Setting, Stack, memory
from fastsft.recipe import ALL_LINEAR
from fastsft.shapes import SHIPPED, Shape

MIB: Final = 1024**2
GB: Final = 1000**3
RESULT: Final = Path(__file__).parent / "results" / "points.json"

TINY_LLAMA: Final = Shape(
    "tinyllama-1.1b", "llama", 22, 2048, 32, 4, 64, 5632, 32000, tied=False, qkv_bias=False
)
SMOL: Final = Shape(
    "smollm2-1.7b", "llama", 24, 2048, 32, 32, 64, 8192, 49152, tied=True, qkv_bias=False
)
QWEN3_32B: Final = Shape(
    "qwen3-32b", "qwen2", 64, 5120, 64, 8, 128, 25600, 151936, tied=False, qkv_bias=False
)
MISTRAL_V1: Final = replace(SHIPPED["mistral-7b"], name="mistral-7b-v0.2", vocab=32000)
LLAMA2_7B: Final = Shape(
    "llama-2-7b", "llama", 32, 4096, 32, 32, 128, 11008, 32000, tied=False, qkv_bias=False
)
"""Sources: the models' config.json; Qwen3's norms of queries and keys are too small to count."""

UNSLOTH_2024_12: Final = Stack("Unsloth 2024-12: cut cross-entropy, offload", logit_bytes=0)
UNSLOTH_2024_04: Final = Stack(
    "Unsloth 2024-04: logits kept, offload", logit_bytes=0, kept_logit_bytes=4
)
UNSLOTH_2024_01: Final = Stack(
    "Unsloth 2024-01: logits kept, no offload", logit_bytes=0, kept_logit_bytes=4
)
HF_2024: Final = Stack("HF + FA2 2024: full logits, fp32 embeddings", kept_bytes=4, hidden_scale=2)
TORCHTUNE: Final = Stack(
    "torchtune: bf16 adapter, chunked loss", adapter_bytes=2, gradient_bytes=2, logit_bytes=0
)
LITGPT: Final = replace(
    REFERENCE,
    name="LitGPT: bf16 adapter, full logits, nothing fused",
    adapter_bytes=2,
    gradient_bytes=2,
    chunks="all",
    logit_bytes=16,
)

ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")

_UNSLOTH: Final = Setting(
    engine="unsloth",
    quantization="nf4",
    double_quant=True,
    parameters="lora",
    rank=32,
    targets=ALL_LINEAR,
    optimizer="adamw_8bit",
    checkpointing="unsloth",
    skip_layers=0,
    rows=1,
    length=1,
)
_PLAIN: Final = replace(_UNSLOTH, engine="reference", checkpointing="standard")

Metric = Callable[[Memory], int]


def process(found: Memory) -> int:
    """What the driver shows."""
    return found.process


def allocated(found: Memory) -> int:
    """What torch has handed out."""
    return found.allocated


def reserved(found: Memory) -> int:
    """What torch has taken."""
    return found.reserved


def loaded(found: Memory) -> int:
    """Reserved once model and adapter are there; 0.40 GiB beside them, over nine notebooks."""
    return found.weights + found.adapter + int(0.40 * GIB)


@dataclass(frozen=True)
class Point:
    """A published peak; `is_full`: the source states every setting that the arithmetic asks for."""

    row: str
    what: str
    published: float
    unit: int
    shape: Shape
    setting: Setting
    stack: Stack
    metric: Metric
    is_full: bool = True
    why: str = ""

    @property
    def estimate(self) -> float:
        """In the unit of the published figure."""
        return self.metric(memory(self.shape, self.setting, stack=self.stack)) / self.unit

    @property
    def error(self) -> float:
        return self.estimate / self.published - 1


def points() -> list[Point]:
    """All of them, by row."""
    return [*_contexts(), *_torchtune(), *_notebooks(), *_fitcheck(), *_stress(), *_further()]


def _contexts() -> Iterator[Point]:
    """Longest context of a card, which Unsloth tells in GB and means GiB."""
    small, large, mistral = SHIPPED["llama-3.1-8b"], SHIPPED["llama-3.3-70b"], MISTRAL_V1
    plain = replace(_UNSLOTH, checkpointing="standard")
    lines: tuple[tuple[int, str, Shape, Setting, Stack, dict[int, int]], ...] = (
        (
            1,
            "Unsloth Llama-3.1-8B",
            small,
            _UNSLOTH,
            UNSLOTH_2024_12,
            {
                2972: 8,
                21848: 12,
                40724: 16,
                78475: 24,
                153977: 40,
                191728: 48,
                342733: 80,
            },
        ),
        (8, "Unsloth Llama-3.3-70B", large, _UNSLOTH, UNSLOTH_2024_12, {12106: 48, 89389: 80}),
        (
            10,
            "Unsloth Mistral-7B, Apr 2024",
            mistral,
            _UNSLOTH,
            UNSLOTH_2024_04,
            {7340: 8, 56420: 24, 228199: 80},
        ),
        (
            13,
            "Unsloth Mistral-7B before offload",
            mistral,
            plain,
            UNSLOTH_2024_01,
            {3716: 8, 33073: 24, 135826: 80},
        ),
        (16, "HF + FA2 Llama-3.1-8B", small, _PLAIN, HF_2024, {932: 12, 5789: 24, 28454: 80}),
    )
    for first, what, shape, setting, stack, rows in lines:
        is_full = stack is not UNSLOTH_2024_01
        for row, (tokens, gib) in enumerate(rows.items(), first):
            yield Point(
                str(row),
                f"{what}, {tokens:,} tokens",
                gib,
                GIB,
                shape,
                replace(setting, length=tokens),
                stack,
                process,
                is_full=is_full,
                why=""
                if is_full
                else "the release before, told beside rows 10-12: settings unsaid",
            )


def _torchtune() -> Iterator[Point]:
    doubt = "offload of activations on or off is not stated, nor the rank"
    base = replace(_PLAIN, rank=8, optimizer="adamw", rows=2, length=4096)
    for row, name, bits, gib in (("28", "QLoRA", "nf4", 4.6), ("29", "LoRA", "none", 8.5)):
        setting = replace(base, quantization=bits)
        yield Point(
            row,
            f"torchtune Llama-3.2-3B {name}, A100, 2 x 4,096",
            gib,
            GIB,
            SHIPPED["llama-3.2-3b"],
            setting,
            TORCHTUNE,
            allocated,
            is_full=False,
            why=doubt,
        )


def _notebooks() -> Iterator[Point]:
    """Reserved after the adapter is on, as Unsloth's notebooks print it."""
    rows: tuple[tuple[str, Shape, int, float], ...] = (
        ("Llama-3.2-1B", SHIPPED["llama-3.2-1b"], 16, 1.457),
        ("Llama-3.2-3B", SHIPPED["llama-3.2-3b"], 16, 2.635),
        ("Llama-3.1-8B", SHIPPED["llama-3.1-8b"], 16, 5.984),
        ("Mistral-7B v0.3", SHIPPED["mistral-7b"], 16, 4.520),
        ("Mistral-Nemo-12B", SHIPPED["mistral-nemo-12b"], 16, 8.588),
        ("Qwen2.5-7B", SHIPPED["qwen2.5-7b"], 16, 5.764),
        ("Qwen2.5-14B", SHIPPED["qwen2.5-14b"], 16, 10.287),
        ("Qwen3-32B", QWEN3_32B, 32, 19.121),
        ("Llama-3.3-70B", SHIPPED["llama-3.3-70b"], 16, 39.221),
    )
    for row, (what, shape, rank, gib) in enumerate(rows, 31):
        setting = replace(_UNSLOTH, rank=rank)
        yield Point(str(row), f"{what} loaded", gib, GIB, shape, setting, UNSLOTH_2024_12, loaded)


def _fitcheck() -> Iterator[Point]:
    """fitcheck-llm's runs on a T4: QLoRA r=32 on q, k, v, o, AdamW, HF checkpointing."""
    base = replace(_PLAIN, targets=ATTENTION, optimizer="adamw")
    rows: tuple[tuple[str, Shape, int, int, bool, int], ...] = (
        ("TinyLlama", TINY_LLAMA, 2, 512, False, 1847),
        ("TinyLlama", TINY_LLAMA, 2, 1024, False, 2528),
        ("TinyLlama", TINY_LLAMA, 2, 2048, False, 3897),
        ("TinyLlama", TINY_LLAMA, 2, 512, True, 1849),
        ("TinyLlama", TINY_LLAMA, 2, 1024, True, 2876),
        ("TinyLlama", TINY_LLAMA, 2, 2048, True, 6655),
        ("SmolLM2-1.7B", SMOL, 4, 1024, False, 5281),
        ("SmolLM2-1.7B", SMOL, 4, 1024, True, 5297),
        ("Qwen2.5-1.5B", SHIPPED["qwen2.5-1.5b"], 2, 1024, False, 6823),
        ("Qwen2.5-1.5B", SHIPPED["qwen2.5-1.5b"], 2, 1024, True, 6831),
    )
    for row, (what, shape, batch, length, is_eager, mib) in enumerate(rows, 40):
        yield Point(
            str(row),
            f"{what} {batch} x {length:,} {'eager' if is_eager else 'SDPA'}, T4",
            mib,
            MIB,
            shape,
            replace(base, rows=batch, length=length, is_eager=is_eager),
            HF_2024,
            allocated,
        )


def _stress() -> Iterator[Point]:
    why = "real lengths unknown; 2024 releases with full logits"
    rows: tuple[tuple[str, Shape, int, int, float], ...] = (
        ("Llama-3.2-3B FineTome 2 x 2,048", SHIPPED["llama-3.2-3b"], 16, 2, 6.531),
        ("Qwen2.5-14B 1 x 2,048", SHIPPED["qwen2.5-14b"], 16, 1, 13.240),
        ("Qwen3-32B 2 x 2,048", QWEN3_32B, 32, 2, 24.529),
    )
    for what, shape, rank, batch, gib in rows:
        yield Point(
            "-",
            f"Unsloth notebook peak, {what} at most",
            gib,
            GIB,
            shape,
            replace(_UNSLOTH, rank=rank, rows=batch, length=2048),
            UNSLOTH_2024_04,
            reserved,
            is_full=False,
            why=why,
        )


def _further() -> Iterator[Point]:
    why = "LitGPT's defaults assumed (r=32 on q and v, AdamW in bf16); its own kernels"
    setting = replace(
        _PLAIN,
        targets=("q_proj", "v_proj"),
        checkpointing="none",
        double_quant=False,
        optimizer="adamw",
        rows=2,
        length=512,
    )
    rows: tuple[tuple[str, Shape, float], ...] = (
        ("Llama-3.1-8B", SHIPPED["llama-3.1-8b"], 17.41),
        ("Llama-3.2-1B", SHIPPED["llama-3.2-1b"], 5.53),
        ("Llama-3.2-3B", SHIPPED["llama-3.2-3b"], 10.30),
        ("Llama-2-7B", LLAMA2_7B, 13.68),
        ("Mistral-7B", SHIPPED["mistral-7b"], 14.29),
    )
    for what, shape, gigabytes in rows:
        yield Point(
            "+",
            f"LitGPT {what} QLoRA 2 x 512, A10G",
            gigabytes,
            GB,
            shape,
            setting,
            LITGPT,
            allocated,
            is_full=False,
            why=why,
        )


UNITS: Final = {GIB: "GiB", MIB: "MiB", GB: "GB"}


def table(rows: Iterable[Point]) -> str:
    """The points as markdown."""
    lines = [
        "| # | Point | Metric | Published | Estimate | Error | |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for point in rows:
        digits = 0 if point.unit == MIB else 2
        lines.append(
            f"| {point.row} | {point.what} | {point.metric.__name__} "
            f"| {point.published:,.{digits}f} {UNITS[point.unit]} | {point.estimate:,.{digits}f} "
            f"| {100 * point.error:+.1f} % | {point.why} |"
        )
    return "\n".join(lines)


def record(point: Point) -> dict[str, object]:
    """One point for the results file."""
    return {
        "row": point.row,
        "point": point.what,
        "metric": point.metric.__name__,
        "stack": point.stack.name,
        "unit": UNITS[point.unit],
        "published": point.published,
        "estimate": round(point.estimate, 3),
        "error": round(point.error, 4),
        "is_full": point.is_full,
        "why": point.why,
    }


def main() -> None:
    found = points()
    print(table(found))
    if "--write" in sys.argv[1:]:
        RESULT.write_text(json.dumps([record(point) for point in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
