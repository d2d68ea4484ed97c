"""Measures the GGUF writer beside merging with PEFT and then converting: time, memory, disk.

    python bench/export/gguf_rate.py [--converter LLAMA_CPP_FOLDER] [--gib 2] [--rounds 2]

Prints one JSON object.  The base is synthetic, bfloat16, sharded and shaped like Llama 3.1 8B
with fewer layers.  Ours and theirs take turns, each in fresh processes, from a cold page cache;
without `--converter` only ours run.  `LLAMA_CPP_FOLDER` has `convert_hf_to_gguf.py`,
`conversion/` and `gguf-py/` of one revision; its vocabulary step is replaced by the same
stand-in as ours, because the base has no tokenizer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merge_rss import BARE, FFN, HIDDEN, KV, LAYER, PEAK, VOCAB, dd, drop_cache
from merge_rss import make_adapter as adapter_weights
from merge_rss import make_base as base_weights

from fastsft.weights import INDEX, header

VOCABULARY = f"""
def add_vocabulary(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"t{{i}}" for i in range({VOCAB})])
    writer.add_token_types([1] * {VOCAB})
    writer.add_token_merges([f"t {{i}}" for i in range({VOCAB})])
"""
OURS = (
    PEAK
    + VOCABULARY
    + """
import sys
from fastsft.export.gguf import write
class Vocabulary:
    def add_to(self, writer):
        add_vocabulary(writer)
base, adapter, out = map(pathlib.Path, sys.argv[1:4])
write(base, adapter, {"q8_0": out / "q8_0.gguf"}, vocabulary=Vocabulary(), general={})
print(peak())
"""
)
MERGE = (
    PEAK
    + """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload()
model.save_pretrained(sys.argv[3] + "/merged")
print(peak())
"""
)
CONVERT = (
    PEAK
    + VOCABULARY
    + """
import sys
tree, out = sys.argv.pop(1), sys.argv.pop(1)
sys.path[:0] = [tree, tree + "/gguf-py"]
from conversion.llama import LlamaModel
LlamaModel.set_vocab = lambda self: add_vocabulary(self.gguf_writer)
import convert_hf_to_gguf
sys.argv = ["convert", out + "/merged", "--outtype", "q8_0", "--outfile", out + "/q8_0.gguf"]
convert_hf_to_gguf.main()
print(peak())
"""
)
NORMS = ("input", "post_attention")
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_attention_heads": HIDDEN // 128,
    "num_key_value_heads": KV // 128,
    "vocab_size": VOCAB,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--converter", type=Path, default=None)
    options.add_argument("--gib", type=float, default=2.0)
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--folder", type=Path, default=None)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        print(json.dumps(measure(Path(folder), asked), indent=2))


def measure(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Makes base and adapter, lets both take turns, returns the figures."""
    base, adapter = folder / "base", folder / "adapter"
    make_base(base, adapter, asked.gib, asked.rank)
    nbytes = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    disk = {"read_gb_s": [read_rate(base)], "write_gb_s": [dd(folder)]}
    bare = int(subprocess.check_output([sys.executable, "-c", BARE]))
    rounds = [turn(folder, asked.converter, bare) for _ in range(asked.rounds)]
    disk["read_gb_s"].append(read_rate(base))
    disk["write_gb_s"].append(dd(folder))
    return {
        "base_bytes": nbytes,
        "rank": asked.rank,
        "cores": len(os.sched_getaffinity(0)),
        "load_average_1min": os.getloadavg()[0],
        "disk": {key: [round(rate, 3) for rate in rates] for key, rates in disk.items()},
        "rounds": rounds,
        **compared(nbytes, rounds),
    }


def compared(nbytes: int, rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes of the base a second of each one's best round, and how many times apart those are."""
    best = {who: min(one[who]["seconds"] for one in rounds) for who in rounds[0]}
    rates = {f"{who}_base_gb_s": round(nbytes / best[who] / 1e9, 3) for who in best}
    faster = {"times_faster": round(best["theirs"] / best["ours"], 2)} if "theirs" in best else {}
    return rates | faster


def turn(folder: Path, converter: Path | None, bare: int) -> dict[str, Any]:
    """Ours, then theirs; the two files hold nearly the same bytes."""
    base, adapter = str(folder / "base"), str(folder / "adapter")
    found = {}
    with emptied(folder / "out") as out:
        found["ours"] = timed(folder, out, bare, [[OURS, base, adapter, str(out)]])
    if converter is None:
        return found
    with emptied(folder / "out") as out:
        steps = [[MERGE, base, adapter, str(out)], [CONVERT, str(converter), str(out)]]
        found["theirs"] = timed(folder, out, bare, steps)
    return found


def timed(folder: Path, out: Path, bare: int, steps: list[list[str]]) -> dict[str, Any]:
    """Wall and CPU seconds of the steps' processes, from start to exit, synced to the disk."""
    drop_cache(folder / "base")
    before, started = os.times(), time.monotonic()
    with peak_disk(out) as largest:
        printed = [subprocess.check_output([sys.executable, "-c", *step]) for step in steps]
    os.sync()
    seconds, after = time.monotonic() - started, os.times()
    peaks = [int(text.split()[-1]) for text in printed]
    mib = 1024**2
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(sum(after[2:4]) - sum(before[2:4]), 2),
        "peak_rss_over_interpreter_mib": round((max(peaks) - bare) / mib, 1),
        "output_mib": round((out / "q8_0.gguf").stat().st_size / mib, 1),
        "peak_disk_mib": round(largest[0] / mib, 1),
    }


@contextmanager
def peak_disk(out: Path) -> Iterator[list[int]]:
    """A list whose one value is the most bytes that the folder's files had so far."""
    largest, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            sizes = (path.stat().st_size for path in out.rglob("*") if path.is_file())
            try:
                largest[0] = max(largest[0], sum(sizes))
            except FileNotFoundError:  # renamed in between
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        ended.set()
        thread.join()


@contextmanager
def emptied(out: Path) -> Iterator[Path]:
    """A new folder, deleted at the end."""
    out.mkdir()
    try:
        yield out
    finally:
        subprocess.run(["rm", "-r", str(out)], check=True)


def make_base(base: Path, adapter: Path, gib: float, rank: int) -> None:
    """The weights of `merge_rss` with their norms and the configs that transformers needs."""
    layers = base_weights(base, gib)
    adapter_weights(adapter, layers, rank)
    add_norms(base, layers)
    config = {**CONFIG, "num_hidden_layers": layers}
    (base / "config.json").write_text(json.dumps(config))
    targets = [name.rpartition(".")[2] for name in LAYER]
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    lora |= {"target_modules": targets}
    (adapter / "adapter_config.json").write_text(json.dumps(lora))


def add_norms(base: Path, layers: int) -> None:
    """One more shard: norms of 1."""
    names = [f"model.layers.{i}.{n}_layernorm.weight" for i in range(layers) for n in NORMS]
    names.append("model.norm.weight")
    shapes = [(name, "BF16", (HIDDEN,)) for name in names]
    with (base / "model-norms.safetensors").open("wb") as file:
        file.write(header(shapes))  # type: ignore[arg-type]
        file.write(b"\x80\x3f" * (HIDDEN * len(names)))
    index = json.loads((base / INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(names, "model-norms.safetensors")
    index["metadata"] = {}
    (base / INDEX).write_text(json.dumps(index))


def read_rate(folder: Path) -> float:
    """Bytes a second, in GB, of reading the shards once from a cold cache."""
    drop_cache(folder)
    files = sorted(folder.glob("*.safetensors"))
    started = time.monotonic()
    for path in files:
        subprocess.run(
            ["dd", f"if={path}", "of=/dev/null", "bs=16M"], check=True, capture_output=True
        )
    return sum(path.stat().st_size for path in files) / (time.monotonic() - started) / 1e9


if __name__ == "__main__":
    main()
