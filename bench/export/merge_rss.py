"""Measures the merge: peak memory above the bare interpreter, and speed beside the disk's own.

    python bench/export/merge_rss.py [--gib 2] [--rank 16] [--folder /tmp]  -> one JSON object

The base is synthetic, sharded, bfloat16 and shaped like Llama; the merge runs in a fresh process.
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

import numpy as np

from fastsft.weights import INDEX, header

HIDDEN, FFN, KV, VOCAB = 4096, 14336, 1024, 32000
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
Shapes = dict[str, tuple[int, int]]

# What the child runs: the interpreter alone, with its imports, and with a merge.
# (VmHWM, because ru_maxrss of a child begins with what its parent held.)
PEAK = """
import pathlib
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
"""
BARE = f"{PEAK}\nprint(peak())"
CHILD = (
    f"{PEAK}"
    + """
import json, os, sys
import fastsft.export.merge as m
imported = peak()
report = m.merge(*map(pathlib.Path, sys.argv[1:4]), stop_ids=[2])
used = os.times()
print(json.dumps({"imported": imported, "peak": peak(), "seconds": report.seconds,
  "user_s": used.user, "system_s": used.system, "bytes": report.bytes_written,
  "files": report.files}))
"""
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--gib", type=float, default=2.0)
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--folder", type=Path, default=None)
    options.add_argument("--cold", action="store_true", help="drop the base from the page cache")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        print(json.dumps(measure(Path(folder), asked.gib, asked.rank, cold=asked.cold), indent=2))


def measure(folder: Path, gib: float, rank: int, *, cold: bool = False) -> dict[str, Any]:
    """Makes the models under `folder`, merges in a fresh process, returns the figures."""
    layers = make_base(folder / "base", gib)
    make_adapter(folder / "adapter", layers, rank)
    disk_before = dd(folder)
    bare = int(subprocess.check_output([sys.executable, "-c", BARE]))
    if cold:
        drop_cache(folder / "base")
    paths = [str(folder / name) for name in ("base", "adapter", "out")]
    ran = json.loads(subprocess.check_output([sys.executable, "-c", CHILD, *paths]))
    read = sum(path.stat().st_size for path in folder.glob("[ab]*/*.safetensors"))
    mib = 1024**2
    return {
        "base_gib": round(ran["bytes"] / 1024**3, 3),
        "rank": rank,
        "layers": layers,
        "files": ran["files"],
        "base_in_page_cache": not cold,
        "interpreter_rss_mib": round(bare / mib, 1),
        "imports_rss_mib": round((ran["imported"] - bare) / mib, 1),
        "peak_rss_over_interpreter_mib": round((ran["peak"] - bare) / mib, 1),
        "seconds": round(ran["seconds"], 2),
        "user_s": round(ran["user_s"], 2),
        "system_s": round(ran["system_s"], 2),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_1min": os.getloadavg()[0],
        "read_gb_s": round(read / ran["seconds"] / 1e9, 3),
        "written_gb_s": round(ran["bytes"] / ran["seconds"] / 1e9, 3),
        "dd_write_gb_s": [round(disk_before, 3), round(dd(folder), 3)],
    }


def make_base(folder: Path, gib: float) -> int:
    """A base of about `gib` GiB in shards of a layer or so; returns its layers."""
    per_layer = sum(rows * columns for rows, columns in LAYER.values()) * 2
    ends = 2 * VOCAB * HIDDEN * 2
    layers = max(1, round((gib * 1024**3 - ends) / per_layer))
    shards = [{"model.embed_tokens.weight": (VOCAB, HIDDEN)}]
    shards += [_named(f"model.layers.{i}", ".weight") for i in range(layers)]
    shards += [{"lm_head.weight": (VOCAB, HIDDEN)}]
    folder.mkdir(parents=True)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shapes in zip(names, shards, strict=True):
        _write(folder / name, shapes, "BF16")
    index = {t: name for name, shapes in zip(names, shards, strict=True) for t in shapes}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
    (folder / "tokenizer.json").write_text("{}")
    return layers


def make_adapter(folder: Path, layers: int, rank: int) -> None:
    """An adapter on every linear layer."""
    shapes: Shapes = {}
    for i in range(layers):
        for name, (rows, columns) in LAYER.items():
            path = f"base_model.model.model.layers.{i}.{name}"
            shapes[f"{path}.lora_A.weight"] = (rank, columns)
            shapes[f"{path}.lora_B.weight"] = (rows, rank)
    folder.mkdir(parents=True)
    _write(folder / "adapter_model.safetensors", shapes, "F32")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank})
    )


def dd(folder: Path) -> float:
    """Bytes a second, in GB, that dd writes there with a sync at the end."""
    target = folder / "dd"
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=16M", "count=64", "conv=fsync"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    seconds = time.monotonic() - started
    target.unlink()
    return 64 * 16 * 1024**2 / seconds / 1e9


def drop_cache(folder: Path) -> None:
    """Asks the kernel to forget the files, which it does for what is on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _named(prefix: str, end: str) -> Shapes:
    return {f"{prefix}.{name}{end}": shape for name, shape in LAYER.items()}


def _write(path: Path, shapes: Shapes, dtype: Any) -> None:
    """Random values of an ordinary size, from a seeded generator, a few MiB at a time."""
    random = np.random.default_rng(len(path.name) + len(shapes))
    with path.open("wb") as file:
        file.write(header((name, dtype, shape) for name, shape in shapes.items()))
        for rows, columns in shapes.values():
            for first in range(0, rows, 1024):
                count = min(1024, rows - first) * columns
                values = random.standard_normal(count, np.float32) * np.float32(0.02)
                bits = values.view(np.uint32) >> 16
                file.write(values.tobytes() if dtype == "F32" else bits.astype(np.uint16).tobytes())


if __name__ == "__main__":
    main()
