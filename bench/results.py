"""Reads result folders: one measured point for each arm of each bench.  Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from fastsft import cards, estimate, shapes
from fastsft.bench import row, table
from fastsft.bench.row import Arm, Row, Settings, Summary
from fastsft.setting import Setting
from fastsft.shapes import Shape

FOLDER = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Bench:
    """A result folder, read."""

    folder: Path
    rows: list[Row]
    summary: Summary

    @property
    def day(self) -> str:
        """When it ran, as 2026-11-20."""
        return f"{datetime.fromtimestamp(self.rows[0].identity.time_s, UTC):%Y-%m-%d}"


@dataclass(frozen=True)
class Point:
    """The valid rows of one arm."""

    bench: Bench
    arm: Arm
    rows: list[Row]

    @property
    def settings(self) -> Settings:
        return self.rows[0].settings

    @property
    def group(self) -> tuple[str, ...]:
        """What must be equal for two points to be compared: all but tokens and recomputation."""
        first = self.rows[0]
        cap = first.identity.vram_cap_gib
        kept = f", capped at {cap:g} GiB" if cap else ""
        settings = (held(self.settings), self.settings.batching)
        return (self.bench.summary.device + kept, first.identity.recipe, self.arm.engine, *settings)

    @property
    def slots(self) -> float:
        """Positions of a micro-batch, on average over the window."""
        work = self.rows[0].work
        return work.slots / max(work.micro_batches, 1)

    @property
    def micro_batch_s(self) -> float:
        """Median seconds of a micro-batch."""
        steps = [one.time.step_median_s or 0.0 for one in self.rows]
        return median(steps) / max(self.settings.accumulation_steps, 1)

    @property
    def predicted_s(self) -> float | None:
        """Seconds of a micro-batch by the planner's arithmetic; None without the card's peak."""
        one, work = self.rows[0], self.rows[0].work
        gpu, shape, count = one.identity.gpu, shape_of(one), max(work.micro_batches, 1)
        if gpu is None or shape is None:
            return None
        found = estimate.micro_batch_time(
            shape,
            setting_of(one, length=round(self.slots / one.settings.micro_batch_rows)),
            cards.of_name(gpu.name, gpu.memory_bytes),
            tokens=round(self.slots),
            pairs=round(work.attention_pairs / count),
            head_rows=round(work.trained_tokens / count),
        )
        return None if found is None else (found.low_s + found.high_s) / 2

    @property
    def flops_per_slot(self) -> float | None:
        """FLOPs that the device does for a position, recomputation among them."""
        rates = self.rows[0].rates
        if rates.hardware_flops_per_s is None or not rates.slots_per_s:
            return None
        return rates.hardware_flops_per_s / rates.slots_per_s


def shape_of(one: Row) -> Shape | None:
    """The sizes of a row's base, where its name is one that fastsft knows."""
    kind, _, key = one.identity.base.name.partition(":")
    name = one.identity.base.name
    return shapes.SHIPPED.get(key) if kind == "synthetic" else shapes.of_base(name)


def benches(folder: Path) -> list[Bench]:
    """Every bench below a results folder, in the order of devices and times.

    Raises DataError for a folder that holds a damaged record.
    """
    return read(path.parent for path in sorted(folder.glob(f"*/*/{row.SUMMARY}")))


def read(folders: Iterable[Path]) -> list[Bench]:
    """The benches of these folders that have rows.  Raises DataError for a damaged record."""
    found = [Bench(folder, *row.read_folder(folder)) for folder in folders]
    return [bench for bench in found if bench.rows]


def points(found: list[Bench]) -> Iterator[Point]:
    """The arms that have a valid row."""
    for bench in found:
        for arm in bench.summary.arms:
            rows = table.valid(bench.rows, arm.arm)
            if rows:
                yield Point(bench, arm, rows)


def setting_of(one: Row, *, length: int) -> Setting:
    """A row's settings as the planner's."""
    s = one.settings
    values: dict[str, Any] = {
        "engine": one.identity.engine,
        "quantization": s.quantization,
        "double_quant": s.double_quant,
        "parameters": s.parameters,
        "rank": s.rank,
        "targets": tuple(s.targets),
        "optimizer": s.optimizer.removesuffix("_torch_fused"),
        "checkpointing": s.gradient_checkpointing,
        "skip_layers": s.checkpoint_skip_layers,
        "rows": s.micro_batch_rows,
        "length": length,
        "dtype_bytes": 4 if s.dtype == "float32" else 2,
    }
    return Setting(**values)


def held(settings: Settings) -> str:
    """`4-bit`, or `16-bit`, or `32-bit`: how the base is held."""
    if settings.quantization == "nf4":
        return "4-bit"
    return "32-bit" if settings.dtype == "float32" else "16-bit"


def recompute(settings: Settings) -> str:
    """What is computed twice: `none`, `full`, `offload`, or with how many layers kept."""
    kind = {"none": "none", "standard": "full", "unsloth": "offload"}
    word = kind.get(settings.gradient_checkpointing, settings.gradient_checkpointing)
    kept = settings.checkpoint_skip_layers
    return f"{word}, {kept} layers kept" if kept else word


def setting(settings: Settings) -> str:
    """`4-bit, 16 × 256 tokens, recompute none`."""
    rows = f"{settings.micro_batch_rows} × {settings.max_tokens:,} tokens"
    return f"{held(settings)}, {rows}, recompute {recompute(settings)}"
