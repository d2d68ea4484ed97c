"""The memory a merge takes does not grow with the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [16, 128])
def test_a_2_gib_base_is_merged_in_less_than_half_a_gib(tmp_path, rank):
    script = [ROOT / "bench/export/merge_rss.py", "--gib", "2", "--rank", str(rank)]

    printed = subprocess.run(
        [sys.executable, *script, "--folder", tmp_path],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

    measured = json.loads(printed.stdout)
    assert measured["base_gib"] > 1.9
    assert 0 < measured["peak_rss_over_interpreter_mib"] < 512
