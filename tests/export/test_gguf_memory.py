"""The memory that writing a GGUF takes does not grow with the model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_2_gib_base_becomes_q8_0_in_little_memory_and_no_second_file(tmp_path):
    script = [ROOT / "bench/export/gguf_rate.py", "--gib", "2", "--rounds", "1"]

    printed = subprocess.run(
        [sys.executable, *script, "--folder", tmp_path],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

    measured = json.loads(printed.stdout)
    ours = measured["rounds"][0]["ours"]
    assert measured["base_bytes"] > 1.9 * 1024**3
    assert 0 < ours["peak_rss_over_interpreter_mib"] < 600
    assert ours["peak_disk_mib"] <= ours["output_mib"]
