"""A finished run with a random adapter, in a second and without training."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fastsft import base as bases
from fastsft import recipe_file, start
from fastsft.demo import data
from fastsft.run import Run
from fastsft.weights import Checkpoint

ROWS = Path(data.__file__).parent / "train.jsonl"
TARGET = re.compile(r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight$")
RANK = 4


def make(folder: Path, recipe: str = "tiny-qwen2.5", *sets: str, rows: int = 40) -> Run:
    """A run of a shipped tiny recipe on the demo's first rows, a fifth of them held out."""
    lines = ROWS.read_text("utf-8").splitlines(keepends=True)[:rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(lines), "utf-8")
    path = f"data.path={folder / 'rows.jsonl'}"
    made = recipe_file.load(recipe, ["engine=reference", path, "eval.share=0.2", *sets])
    base = bases.resolve(made.model)
    prepared = start.prepare_rows(made, base)
    run = start.start(made, base, prepared, runs=folder / "runs", name=recipe)
    write_adapter(run.adapter, base.folder)
    return run


def write_adapter(adapter: Path, base: Path, *, size: float = 0.02) -> None:
    """LoRA on every linear layer of `base`, as PEFT saves it, with values that matter."""
    rng = np.random.default_rng(7)
    tensors: dict[str, np.ndarray] = {}
    for tensor in Checkpoint.open(base).tensors.values():
        if TARGET.search(tensor.name):
            out, width = tensor.shape
            name = f"base_model.model.{tensor.name.removesuffix('.weight')}"
            tensors[f"{name}.lora_A.weight"] = size * rng.standard_normal((RANK, width), np.float32)
            tensors[f"{name}.lora_B.weight"] = size * rng.standard_normal((out, RANK), np.float32)
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none"}
    targets = sorted({name.split(".")[-3] for name in tensors})
    config |= {"target_modules": targets, "task_type": "CAUSAL_LM"}
    config |= {"base_model_name_or_path": base.name, "lora_dropout": 0.0}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).is_file():
            shutil.copyfile(base / name, adapter / name)
