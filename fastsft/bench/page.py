"""Writes a bench as one page that loads and runs nothing.  Names are strangers' text: each is
made visible and escaped on its way in; the pictures are those that `plots.py` drew."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from fastsft import report_html
from fastsft.bench import plots, table
from fastsft.bench.row import Gate, Row, Summary
from fastsft.hardware import gib
from fastsft.run import write_atomically

FILE = "index.html"
ORDER = {"failed": 0, "not run": 1, "passed": 2}
CAPTIONS = {
    "tokens": "Tokens per second: trained, real and slots, for every process",
    "memory": "Memory over time, for every process",
    "losses": "Loss by step, and what the arms differ by",
}


@dataclass(frozen=True, slots=True)
class GateLine:
    """One gate over all rows; `where` names the rows that it failed."""

    name: str
    result: str
    rows: int
    measured: str
    wanted: str
    why: str
    where: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One figure of memory, by the estimator and as measured, for an arm."""

    arm: str
    what: str
    predicted: str
    measured: str
    error: str


def write(folder: Path, rows: Sequence[Row], summary: Summary) -> Path:
    """Write FOLDER/index.html, with the pictures that `plots.draw` left there."""
    pictures = {
        name: (folder / f"{name}.svg").read_text("utf-8")
        for name in plots.NAMES
        if (folder / f"{name}.svg").is_file()
    }
    write_atomically(folder / FILE, page(rows, summary, pictures))
    return folder / FILE


def page(rows: Sequence[Row], summary: Summary, pictures: dict[str, str]) -> str:
    """The page, whole: style and pictures within it, no script, no address."""
    return report_html.template("fastsft.bench", "page.html.jinja").render(
        summary=summary,
        rows=rows,
        facts=list(zip(table.columns(), *table.lines(rows, summary), strict=True)),
        gates=gate_lines(rows),
        is_failed=any(not row.validity.is_valid for row in rows),
        only_pipeline=plots.ONLY_PIPELINE if summary.speaks_of == "pipeline" else "",
        pictures=[(CAPTIONS[name], inline(pictures[name])) for name in pictures],
        predictions=predictions(rows, summary),
        identity=dict(_identity(rows[0])),
        settings=settings(rows),
        versions=rows[0].identity.versions,
        command=command(rows, summary),
        errors=[(_name(row), row.error) for row in rows if row.error],
        notes=list(dict.fromkeys(note for row in rows for note in row.notes)),
    )


def inline(svg: str) -> Markup:
    """A picture of ours as part of a page: without prolog, comments and metadata.

    Comments would hold the names that are drawn, metadata addresses.
    """
    _, _, rest = svg.partition("<svg")
    opening, _, body = rest.partition(">")
    opening = re.sub(r'\s(xmlns(:\w+)?|width|height)="[^"]*"', "", opening)
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # three pictures, one page: no id twice
    return Markup(f"<svg{opening}>{body.replace('xlink:href', 'href')}")


def gate_lines(rows: Sequence[Row]) -> list[GateLine]:
    """Every gate over all rows: failed ones first, then those that could not be asked."""
    names = dict.fromkeys(gate.name for row in rows for gate in row.validity.gates)
    lines = [_gate_line(name, rows) for name in names]
    return sorted(lines, key=lambda line: ORDER[line.result])


def _gate_line(name: str, rows: Sequence[Row]) -> GateLine:
    found = [(row, gate) for row in rows for gate in row.validity.gates if gate.name == name]
    worst: Gate = min((gate for _, gate in found), key=lambda gate: ORDER[gate.result])
    alike = [row for row, gate in found if gate.result == worst.result]
    return GateLine(
        name=name,
        result=worst.result,
        rows=len(alike),
        measured=worst.measured,
        wanted=worst.wanted,
        why=worst.why,
        where=tuple(_name(row) for row in alike) if worst.result == "failed" else (),
    )


def _name(row: Row) -> str:
    return f"{row.identity.arm} {row.identity.repeat}"


def predictions(rows: Sequence[Row], summary: Summary) -> list[Prediction]:
    """Predicted against measured memory, of each arm's first valid row that has both."""
    found: list[Prediction] = []
    for arm in summary.arms:
        first = next((row for row in table.valid(rows, arm.arm) if row.memory.predicted), None)
        found += _predictions(first) if first else []
    return found


def _predictions(row: Row) -> Iterator[Prediction]:
    said, was = row.memory.predicted, row.memory
    if said is None:
        return
    for what, predicted, measured in (
        ("allocated", said.allocated_bytes, was.allocated_bytes),
        ("reserved", said.reserved_bytes, was.reserved_bytes),
        (f"process{_told(row)}", said.process_bytes, was.process_bytes),
    ):
        error = predicted / measured - 1 if measured else None
        told = (gib(predicted), gib(measured), table.signed(error))
        yield Prediction(row.identity.arm, what, *told)


def _told(row: Row) -> str:
    return " (device less what was in use)" if row.memory.is_vram_by_difference else ""


def _identity(row: Row) -> Iterator[tuple[str, str]]:
    """Who measured what on what, as words."""
    who = row.identity
    when = datetime.fromtimestamp(who.time_s, UTC)
    yield "bench", who.bench
    yield "when", f"{when:%Y-%m-%d %H:%M} UTC"
    yield "recipe", f"{who.recipe} ({who.recipe_hash[:12]})"
    params = f", {_count(who.base.params)} parameters" if who.base.params else ""
    weights = ", random weights of the real shape" if who.base.is_synthetic else ""
    stored = f", stored in {who.base.stored}" if who.base.stored else ""
    yield "base", f"{who.base.name}{params}{weights}{stored}"
    if table.as_stored([row]):
        yield "not the real model's", "loading, the time to the first step, and host RAM"
    if who.gpu:
        yield "GPU", f"{who.gpu.name}, {gib(who.gpu.memory_bytes)}, driver {who.gpu.driver}"
        yield "GPU limits", _limits(row)
    if who.vram_cap_gib is not None:
        yield "memory cap", f"{who.vram_cap_gib:g} GiB, so that the card stands for a smaller one"
    yield "processor", f"{who.cpu.name}, {who.cpu.cores} cores, {gib(who.cpu.ram_bytes)}"
    yield "system", f"{who.os}, Python {who.python}"
    commit = f", commit {who.commit[:12]}" if who.commit else ""
    yield "fastsft", f"{who.fastsft}{commit}"
    yield "tokens", f"{who.tokens_sha256[:16]} in the order {who.order_hash[:16]}, seed {who.seed}"


def _count(params: int) -> str:
    return f"{params / 1e9:.3g} billion" if params >= 1e9 else f"{params / 1e6:.3g} million"


def _limits(row: Row) -> str:
    gpu, state = row.identity.gpu, row.gpu_state
    parts = []
    if gpu and gpu.power_limit_w is not None:
        parts.append(f"power limit {gpu.power_limit_w:g} W")
    if state and state.mean_power_w is not None:
        parts.append(f"mean {state.mean_power_w:.0f} W")
    if state and state.sm_clock_mhz is not None:
        parts.append(f"clock {state.sm_clock_mhz[0]} to {state.sm_clock_mhz[1]} MHz")
    if state and state.temperature_c is not None:
        parts.append(f"{state.temperature_c} °C")
    if gpu and gpu.pcie:
        parts.append(f"PCIe {gpu.pcie}")
    return ", ".join(parts) or table.UNKNOWN


def settings(rows: Sequence[Row]) -> dict[str, str]:
    """What ran, as words; where the arms are not alike, each arm's own."""
    first = {row.identity.arm: dict(_settings(row)) for row in reversed(rows)}
    arms = list(dict.fromkeys(row.identity.arm for row in rows))
    found = {}
    for name in first[arms[0]]:
        values = {arm: first[arm][name] for arm in arms}
        is_shared = len(set(values.values())) == 1
        each = "; ".join(f"{arm}: {value}" for arm, value in values.items())
        found[name] = values[arms[0]] if is_shared else each
    return found


def _settings(row: Row) -> Iterator[tuple[str, str]]:
    """One row's settings, as words."""
    s, work = row.settings, row.work
    skipped = f", {s.checkpoint_skip_layers} layers kept" if s.checkpoint_skip_layers else ""
    yield "base held in", f"{s.quantization}, computed in {s.dtype}"
    yield "adapter", f"{s.parameters}, rank {s.rank}, on {', '.join(s.targets)}"
    yield "recomputation", f"{s.gradient_checkpointing}{skipped}"
    yield "micro-batch", f"{s.micro_batch_rows} rows of up to {s.max_tokens} tokens, {s.batching}"
    yield "micro-batches a step", f"{s.accumulation_steps}"
    yield "optimizer", s.optimizer
    yield "measured", f"{work.steps} steps after {work.warmup_steps} of warm-up"
    counts = f"{work.trained_tokens:,} trained, {work.real_tokens:,} real, {work.slots:,} slots"
    yield "in the window", counts


def command(rows: Sequence[Row], summary: Summary) -> str:
    """The command that makes the same bench, as far as the rows know it.

    No path is in a row, so that data of one's own stands for itself.
    """
    first, arms = rows[0], summary.arms
    words = ["fastsft", "bench", summary.recipe]
    if len(arms) > 1:
        words += ["--against", arms[1].arm]
    words += ["--steps", str(first.work.steps), "--warmup", str(first.work.warmup_steps)]
    words += ["--repeats", str(max(arm.rows for arm in arms))]
    for override in first.identity.overrides:
        words += ["--set", override]
    words += ["--data", "ROWS"] if first.identity.has_data else []
    words += ["--synthetic"] if first.identity.base.is_synthetic else []
    if first.identity.vram_cap_gib is not None:
        words += ["--vram-cap", f"{first.identity.vram_cap_gib:g}"]
    return shlex.join(words)
