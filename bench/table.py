"""The README's table of what was measured: made from the result files, never by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from bench.results import FOLDER, Bench, benches, setting
from fastsft.bench import plots, table
from fastsft.bench.row import Arm, Row
from fastsft.errors import RecipeError
from fastsft.hardware import gib

BEGIN, END = "<!-- bench-table -->", "<!-- /bench-table -->"
COMMAND = "python -m bench table --write"
MOST = 12
"""Benches of a device that the README shows; the others lie in bench/results."""

HEADS = (
    "recipe",
    "setting",
    "engine",
    "trained tokens/s",
    "against its peer",
    "real tokens/s",
    "slots/s",
    "peak memory",
    "valid rows",
    "measured",
)
NOTHING = "No bench has been measured yet.\n"
NO_GPU = "No GPU has been measured yet; rows from yours are welcome, `bench/README.md` says how.\n"


def markdown(folder: Path = FOLDER) -> str:
    """The table of every device, GPUs first."""
    found = benches(folder)
    if not found:
        return f"{NOTHING}\n{NO_GPU}"
    ordered = sorted(found, key=_gpus_first)
    parts = [
        _device(name, list(of_device))
        for name, of_device in groupby(ordered, key=lambda bench: bench.summary.device)
    ]
    if all(bench.summary.speaks_of == "pipeline" for bench in found):
        parts.append(NO_GPU)
    return "\n".join(parts)


def _gpus_first(bench: Bench) -> tuple[bool, str]:
    return bench.summary.speaks_of == "pipeline", bench.summary.device


def _device(name: str, found: Sequence[Bench]) -> str:
    """A heading and a table; benches with a peer first, the newest of them first."""
    newest = sorted(found, key=lambda bench: bench.rows[0].identity.time_s, reverse=True)
    ordered = sorted(newest, key=lambda bench: len(bench.summary.arms) < 2)
    lines = [line for bench in ordered[:MOST] for line in _lines(bench)]
    about = _about(found[0])
    more = len(ordered) - MOST
    rest = f"\n{more} more of this device are in `bench/results`.\n" if more > 0 else ""
    return f"**{table.harmless(name)}**{about}\n\n{table.markdown_table(HEADS, lines)}{rest}"


def _about(bench: Bench) -> str:
    who = bench.rows[0].identity
    if who.gpu is None:
        return f", {who.cpu.cores} cores. {plots.ONLY_PIPELINE}."
    return f", {gib(who.gpu.memory_bytes)}"


def _lines(bench: Bench) -> Iterator[tuple[str, ...]]:
    for place, arm in enumerate(bench.summary.arms):
        rows = [row for row in bench.rows if row.identity.arm == arm.arm]
        who = rows[0].identity
        weights = " (random weights)" if who.base.is_synthetic else ""
        cap = f", of {who.vram_cap_gib:g} GiB allowed" if who.vram_cap_gib else ""
        yield (
            f"{bench.summary.recipe}{weights}",
            setting(rows[0].settings),
            arm.engine if arm.arm == arm.engine else f"{arm.engine} ({arm.arm})",
            table.spread(arm.trained_tokens_per_s),
            table.against(place, bench.summary),
            table.rate(table.middle(arm.real_tokens_per_s)),
            table.rate(table.middle(arm.slots_per_s)),
            f"{_peak(arm, rows)}{cap}",
            f"{arm.valid_rows} of {arm.rows}",
            bench.day,
        )


def _peak(arm: Arm, rows: Sequence[Row]) -> str:
    if arm.process_bytes is not None:
        return f"{gib(arm.process_bytes.median)} VRAM{table.by_difference(rows, arm.arm)}"
    return f"{gib(table.middle(arm.host_rss_bytes))} RAM{table.as_stored(rows)}"


def block(text: str, where: str) -> str:
    """What stands between the markers of a file's text.

    Raises RecipeError when they are not there, in order, once each.
    """
    _, begin, rest = text.partition(BEGIN)
    inside, end, _ = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) != 1 or text.count(END) != 1:
        raise RecipeError(
            "the markers of the bench table are not there once each",
            where=where,
            hint=f"put a line {BEGIN} and a line {END} where it belongs",
        )
    return inside


def renewed(text: str, where: str, folder: Path = FOLDER) -> str:
    """The text with the block between the markers made anew."""
    old = block(text, where)
    return text.replace(f"{BEGIN}{old}{END}", f"{BEGIN}\n{markdown(folder)}{END}")
