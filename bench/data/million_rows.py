"""Peak memory of preparing a file of a million rows: the main process, and all of them together.

    python bench/data/million_rows.py --tokenizer FOLDER [--rows 1000000] [--median 60] [--out FILE]

RSS is read from /proc four times a second.  Pages that processes share are counted for each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench" / "data"))

CHILD = """
import sys, time
from pathlib import Path
from fastsft import families
from fastsft.base import Base
from fastsft.recipe import Data, Model, Recipe, Train
from fastsft.start import prepare_rows
if __name__ == "__main__":
    base = Base(Path(sys.argv[2]), families.QWEN25, None, "bench", 0)
    model, data = Model(base="bench", family="qwen2.5"), Data(path=sys.argv[1])
    began = time.perf_counter()
    prepared = prepare_rows(Recipe(model=model, data=data, train=Train(steps=1)), base)
    print(len(prepared.train), prepared.train.tokens, time.perf_counter() - began)
"""


def resident(pid: int) -> int:
    """Resident bytes of a process, 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in found.split()]


def watch(process: "subprocess.Popen[str]") -> tuple[int, int]:
    """Peak bytes of the process, and of it and its children together."""
    alone = together = 0
    while process.poll() is None:
        own = resident(process.pid)
        alone = max(alone, own)
        together = max(together, own + sum(map(resident, children(process.pid))))
        time.sleep(0.25)
    return alone, together


def measure(rows: Path, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Prepare the rows in a fresh process and watch it."""
    script = folder / "child.py"
    script.write_text(CHILD)
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(rows), str(tokenizer)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    alone, together = watch(process)
    assert process.stdout is not None
    count, tokens, seconds = process.stdout.read().split()
    return {
        "rows": int(count),
        "tokens": int(tokens),
        "seconds": float(seconds),
        "peak_rss_bytes_main": alone,
        "peak_rss_bytes_all_processes": together,
    }


def main() -> None:
    """Write the rows, prepare them, print the record."""
    import alpaca_like

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--median", type=int, default=60)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        alpaca_like.write(rows, asked.rows, median_tokens=asked.median)
        found = measure(rows, asked.tokenizer, Path(folder))
        record = {"file_bytes": rows.stat().st_size, **found, "cores": os.cpu_count()}
    print(json.dumps(record, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
