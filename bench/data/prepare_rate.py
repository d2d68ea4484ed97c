"""Rows per second from a file to labelled arrays: ours against TRL's own preparation.

    python bench/data/prepare_rate.py --tokenizer FOLDER [--rows 50000] [--rounds 3] [--out FILE]

Each measurement is a fresh process; the arms take turns.  Ours is what `fastsft train` does, with
every check on and no prepared data in the cache (that tiktoken agrees with the tokenizer is proved
once for each tokenizer, in the round before the first); TRL's is `SFTTrainer`'s preparation with
assistant masks, in one process (its default) and in as many as there are cores.  Cached is ours a
second time.  A hash over all rows' ids shows that the arms made the same.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench" / "data"))


def ours(rows: Path, tokenizer: Path) -> dict[str, Any]:
    """Seconds, and the hashes of the arrays."""
    from fastsft import families
    from fastsft.base import Base
    from fastsft.recipe import Data, Model, Recipe, Train
    from fastsft.start import prepare_rows

    began = time.perf_counter()
    base = Base(tokenizer, families.QWEN25, None, "bench", 0)
    recipe = Recipe(
        model=Model(base="bench", family="qwen2.5"), data=Data(path=str(rows)), train=Train(steps=1)
    )
    prepared = prepare_rows(recipe, base)
    seconds = time.perf_counter() - began
    prepared.require()
    pairs = ((ids.tolist(), labels.tolist()) for ids, labels in prepared.train)
    return {"seconds": seconds, **_work(pairs)}


def trl(rows: Path, tokenizer: Path, processes: int | None) -> dict[str, Any]:
    """The same by TRL; loading of libraries and of the tokenizer is not counted."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokens = AutoTokenizer.from_pretrained(tokenizer)
    shape = {"vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=1, **shape))
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        assistant_only_loss=True,
        max_length=2048,
        dataset_num_proc=processes,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    began = time.perf_counter()
    data = load_dataset("json", data_files=str(rows), split="train")
    made = SFTTrainer(model, arguments, train_dataset=data, processing_class=tokens).train_dataset
    seconds = time.perf_counter() - began
    pairs = ((row["input_ids"], row["labels"]) for row in made)
    return {"seconds": seconds, **_work(pairs)}


def _work(pairs: Iterable[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """What was made: rows, a hash of all their ids, and the trained tokens.

    TRL's template trains the line breaks before an answer and after its stop token too: two more
    tokens a row than ours.
    """
    digest, rows, trained = hashlib.sha256(), 0, 0
    for ids, labels in pairs:
        digest.update(json.dumps(list(ids)).encode())
        rows += 1
        trained += sum(label != -100 for label in labels)
    return {"rows": rows, "ids": digest.hexdigest()[:16], "trained_tokens": trained}


ARMS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "fastsft": ours,
    "fastsft, cached": ours,
    "trl": lambda rows, tokenizer: trl(rows, tokenizer, None),
    "trl, all cores": lambda rows, tokenizer: trl(rows, tokenizer, os.cpu_count()),
}


def measure(arm: str, rows: Path, tokenizer: Path, caches: Path) -> dict[str, Any]:
    """One arm in a fresh process; TRL's caches are always new, ours as the arm says."""
    datasets = tempfile.mkdtemp(dir=caches)
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(caches / "ours"),
        "HF_DATASETS_CACHE": datasets,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    if arm == "fastsft":
        shutil.rmtree(caches / "ours" / "fastsft" / "data", ignore_errors=True)
    command = [sys.executable, __file__, "--arm", arm, "--data", str(rows)]
    done = subprocess.run(
        [*command, "--tokenizer", str(tokenizer)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, print a table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--data", type=Path)
    asked = parser.parse_args()
    if asked.arm:
        found = ARMS[asked.arm](asked.data, asked.tokenizer)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(json.dumps({**found, "peak_rss_bytes": peak, "largest_worker_rss_bytes": workers}))
        return
    with tempfile.TemporaryDirectory() as folder:
        record = _compare(asked, Path(folder))
    print(_table(record))
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(record, indent=2) + "\n")


def _compare(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from alpaca_like import write

    rows = folder / "rows.jsonl"
    write(rows, asked.rows)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    measure("fastsft", rows, asked.tokenizer, folder)
    for number in range(asked.rounds):
        for arm in ARMS:
            found[arm].append(measure(arm, rows, asked.tokenizer, folder))
            print(f"round {number + 1}: {arm}: {found[arm][-1]}", file=sys.stderr, flush=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    return {"rows": asked.rows, "bytes": rows.stat().st_size, "machine": machine, "arms": found}


def _table(record: dict[str, Any]) -> str:
    lines = []
    best_peer = min(
        mean(m["seconds"] for m in record["arms"][a]) for a in ("trl", "trl, all cores")
    )
    for arm, runs in record["arms"].items():
        seconds = [run["seconds"] for run in runs]
        spread = stdev(seconds) / mean(seconds) if len(seconds) > 1 else 0.0
        lines.append(
            f"{arm:18} {mean(seconds):8.2f} s ±{spread:4.0%} "
            f"{record['rows'] / mean(seconds):9,.0f} rows/s   "
            f"{best_peer / mean(seconds):5.1f} x the faster TRL   ids {runs[0]['ids']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
