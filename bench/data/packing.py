"""Measures the packer beside TRL's, on the same rows.

    python bench/data/packing.py [--rows 50000]  -> a table on stderr, one JSON object on stdout

The rows are synthetic (log-normal lengths, as chat data has), so the figures are of the method.
Every token of a row is the row's number, so that it shows which rows were cut.  A time is the
best of three and includes moving the tokens; `lengths` is our packer without that.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsft.data.pack import efficiency, join, pack

SHAPES = {"median 179, p95 565": (179, 565, 2048), "median 698, p95 3077": (698, 3077, 4096)}
REPEATS = 3
ALL = None  # `datasets` packs within batches of 1,000 rows unless told otherwise
Sequences = list[NDArray[np.int32]]


@dataclass(frozen=True)
class Result:
    """One packer on one set of rows; `efficiency`: tokens of all slots at the full budget."""

    packer: str
    seconds: float
    efficiency: float
    sequences: int
    tokens_lost: int
    rows_cut: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    count = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        found = {name: measure(drawn(count, *shape), shape[2]) for name, shape in SHAPES.items()}
    for name, case in found.items():
        show(name, case)
    print(json.dumps(found))


def drawn(count: int, median: float, p95: float, cap: int) -> NDArray[np.int64]:
    """Log-normal lengths."""
    spread = np.log(p95 / median) / 1.645
    lengths = np.random.default_rng(0).lognormal(np.log(median), spread, count)
    return np.clip(np.rint(lengths), 1, cap).astype(np.int64)


def measure(lengths: NDArray[np.int64], budget: int) -> dict[str, Any]:
    rows = [np.full(length, number, np.int32) for number, length in enumerate(lengths)]
    results = [ours(rows, lengths, budget)]
    for strategy in ("bfd", "bfd_split", "wrapped"):
        for batch in (1000, ALL):
            results.append(trl(rows, lengths, budget, strategy, batch))
    alone, _ = timed(lambda: pack(lengths, budget))
    shares = {rows: asdict(shares_of(lengths, budget, rows)) for rows in (2, 4, 8, 16)}
    return {
        "budget": budget,
        "rows": len(lengths),
        "tokens": int(lengths.sum()),
        "lengths_seconds": alone,
        "packers": [asdict(result) for result in results],
        "real_share_by_batch_rows": shares,
    }


def shares_of(lengths: NDArray[np.int64], budget: int, batch_rows: int) -> Any:
    return efficiency(lengths, budget=budget, batch_rows=batch_rows, seed=0)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The best time, and what came of it."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        made = work()
        seconds.append(time.perf_counter() - began)
    return min(seconds), made


def ours(rows: Sequences, lengths: NDArray[np.int64], budget: int) -> Result:
    pairs = [(row, row) for row in rows]

    def work() -> Sequences:
        bins = pack(lengths, budget)
        return [join([pairs[row] for row in bins[i]]).input_ids for i in range(len(bins))]

    return judged("fastsft", *timed(work), lengths, budget)


def trl(
    rows: Sequences, lengths: NDArray[np.int64], budget: int, strategy: str, batch: int | None
) -> Result:
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    dataset = Dataset.from_dict({"input_ids": rows, "labels": rows})
    kwargs = {"batch_size": batch, "load_from_cache_file": False}
    seconds, packed = timed(lambda: pack_dataset(dataset, budget, strategy, kwargs))
    column = packed.with_format("numpy")["input_ids"]
    name = f"trl {strategy}, {'all rows' if batch is ALL else f'{batch} rows'} at once"
    return judged(name, seconds, [np.asarray(ids) for ids in column], lengths, budget)


def judged(
    packer: str, seconds: float, sequences: Sequences, lengths: NDArray[np.int64], budget: int
) -> Result:
    tokens = sum(len(ids) for ids in sequences)
    homes = np.concatenate([np.unique(ids) for ids in sequences])  # one a row unless it is cut
    is_short = np.bincount(np.concatenate(sequences), minlength=len(lengths)) < lengths
    is_split = np.bincount(homes, minlength=len(lengths)) > 1
    return Result(
        packer=packer,
        seconds=seconds,
        efficiency=tokens / (len(sequences) * budget),
        sequences=len(sequences),
        tokens_lost=int(lengths.sum()) - tokens,
        rows_cut=int((is_short | is_split).sum()),
    )


def show(name: str, case: dict[str, Any]) -> None:
    title = f"{name}: {case['rows']:,} rows, {case['tokens']:,} tokens, budget {case['budget']}"
    lines = [title, f"{'packer':<36}{'s':>8}{'efficiency':>12}{'tokens lost':>13}{'rows cut':>10}"]
    for found in case["packers"]:
        lines.append(
            f"{found['packer']:<36}{found['seconds']:>8.2f}{found['efficiency']:>12.2%}"
            f"{found['tokens_lost']:>13,}{found['rows_cut']:>10,}"
        )
    lines.append(f"{'fastsft, lengths alone':<36}{case['lengths_seconds']:>8.2f}")
    for batch_rows, shares in case["real_share_by_batch_rows"].items():
        told = ", ".join(f"{way} {share:.1%}" for way, share in shares.items())
        lines.append(f"batches of {batch_rows}: {told}")
    print("", *lines, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
