"""The estimator against every published memory figure whose settings are known."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent / "bench" / "estimator"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("estimator_points", ROOT / "points.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BENCH: Any = load()
POINTS = BENCH.points()
FULL = [point for point in POINTS if point.is_full]


@pytest.mark.parametrize("point", FULL, ids=lambda point: f"{point.row} {point.what}")
def test_a_point_with_full_settings_is_met_within_five_percent(point: Any):
    assert abs(point.error) <= 0.05, f"{point.estimate:.2f} for {point.published}"


def test_the_points_are_all_there():
    rows = {int(point.row) for point in POINTS if point.row.isdigit()}
    full = {int(point.row) for point in FULL}

    assert rows == {*range(1, 19), 28, 29, *range(31, 50)}
    assert full == rows - {13, 14, 15, 28, 29}


def test_a_point_that_is_only_reported_says_why():
    assert all(bool(point.why) != point.is_full for point in POINTS)


def test_no_stack_serves_a_single_point():
    uses: dict[str, int] = {}
    for point in POINTS:
        uses[point.stack.name] = uses.get(point.stack.name, 0) + 1

    assert min(uses.values()) >= 2


def test_points_with_full_settings_are_off_by_two_percent_on_average():
    errors = [abs(point.error) for point in FULL]

    assert sum(errors) / len(errors) < 0.025


def test_the_recorded_results_are_todays():
    recorded = json.loads(BENCH.RESULT.read_text())

    assert recorded == [BENCH.record(point) for point in POINTS]


def test_the_table_has_a_line_for_each_point():
    table = BENCH.table(POINTS)

    assert len(table.splitlines()) == 2 + len(POINTS)
    assert "| 40 | TinyLlama 2 x 512 SDPA, T4 | allocated | 1,847 MiB | 1,835 | -0.7 % | |" in (
        table.replace("|  |", "| |")
    )
