"""The data rooms must start in a blink: nothing here loads torch, transformers or datasets."""

import subprocess
import sys

CHECK = """
import sys
import fastsft.data.prepare, fastsft.data.arrays, fastsft.data.show, fastsft.families
heavy = {"torch", "transformers", "datasets", "unsloth", "trl"}
print(sorted({name.partition(".")[0] for name in sys.modules} & heavy))
"""


def test_the_data_rooms_load_no_torch():
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
