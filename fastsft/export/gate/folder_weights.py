"""Checks the weights of a merged folder against base and adapter.  Runs no model."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import safetensors

from fastsft.export.gate.compare import WORKERS, Compared, plainly
from fastsft.export.gate.expected import EMBEDDING, HEAD, Expected
from fastsft.export.gate.tally import Tally, name_list, report, report_delta
from fastsft.export.gate.verdict import Checks
from fastsft.weights import Checkpoint, Reader, Tensor, read_object

FOUR_BIT = "bitsandbytes"
# Settings that an export may write anew.  The others stay the base's, or the model is another.
_FREE = (
    *("dtype", "torch_dtype", "tie_word_embeddings", "quantization_config"),
    *("transformers_version", "_name_or_path", "use_cache"),
    *("eos_token_id", "pad_token_id", "bos_token_id"),
)


def merged(
    folder: Path, kind: str, expected: Expected, checks: Checks, step: Callable[[int], None]
) -> None:
    """Every weight of a 16- or 32-bit folder; `kind` is its dtype, "base" for the base's own."""
    tensors = Checkpoint.open(folder).tensors
    _config(folder, expected, checks)
    pairs = _names(folder, dict(tensors), expected, checks)
    tally = Tally()
    with Reader() as reader, ThreadPoolExecutor(WORKERS) as pool:
        for name, tensor in pairs:
            if name in expected.deltas:
                tally.targets += 1
            one = partial(_block, reader, expected, name, tensor)
            tally.add(name, tensor.dtype, list(pool.map(one, expected.cuts(name))))
            step(tensor.nbytes)
    _types(tensors.values(), kind, expected, tally)
    report(tally, "", kind, checks)
    report_delta(tally, "", expected, checks)


def _block(
    reader: Reader, expected: Expected, name: str, tensor: Tensor, cut: tuple[int, int]
) -> Compared:
    first, rows = cut
    raw = np.empty(tensor.nbytes // tensor.shape[0] * rows, np.uint8)
    reader.read_into(tensor, tensor.nbytes // tensor.shape[0] * first, raw)
    return plainly(expected.block(name, first, rows), raw, tensor.dtype)


def _types(tensors: Iterable[Tensor], kind: str, expected: Expected, tally: Tally) -> None:
    wanted = {"bfloat16": {"BF16"}, "float16": {"F16"}, "float32": {"F32"}}
    allowed = wanted.get(kind, {tensor.dtype for tensor in expected.base.values()})
    for tensor in tensors:
        if tensor.dtype not in allowed:
            tally.wrong[tensor.name] = f"is stored as {tensor.dtype}, not {' or '.join(allowed)}"


def _names(
    folder: Path, found: dict[str, Tensor], expected: Expected, checks: Checks
) -> list[tuple[str, Tensor]]:
    count = len(found)
    if HEAD in expected.names and _is_tied(folder) and EMBEDDING in found:
        found[HEAD] = found[EMBEDDING]  # what transformers takes for the head
    wanted = [*expected.names, *([HEAD] if HEAD in found and HEAD not in expected.names else [])]
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [
        f"{name} is {[*found[name].shape]}, not {[*expected.source(name).shape]}"
        for name in wanted
        if name in found and found[name].shape != expected.source(name).shape
    ]
    extra = found.keys() - set(wanted) - expected.base.keys()
    wrong += [f"{name} is one too many" for name in sorted(extra)]
    threshold = "names and shapes of the model"
    if wrong:
        checks.failed("tensors", "", name_list(wrong), threshold)
    else:
        checks.passed("tensors", "", f"{count} tensors", threshold)
    fits = (n for n in wanted if n in found and found[n].shape == expected.source(n).shape)
    return [(name, found[name]) for name in fits]


def _config(folder: Path, expected: Expected, checks: Checks) -> None:
    found, base = read_object(folder / "config.json"), expected.config
    keys = (found.keys() | base.keys()) - {*_FREE}
    wrong = sorted(key for key in keys if found.get(key) != base.get(key))
    if wrong:
        listed = [f"{key} is {json.dumps(found.get(key))[:60]}" for key in wrong]
        checks.failed("settings", "config.json", name_list(listed), "those of the base")
    else:
        checks.passed("settings", "config.json", f"{len(keys)} as in the base", "those of the base")


def _is_tied(folder: Path) -> bool:
    return read_object(folder / "config.json").get("tie_word_embeddings") is True


def four_bit(folder: Path, expected: Expected, checks: Checks) -> None:
    """Names, sizes and config of a folder in bitsandbytes' NF4; its values are scored, not read."""
    _config(folder, expected, checks)
    settings = read_object(folder / "config.json").get("quantization_config") or {}
    of = [settings.get("quant_method"), settings.get("bnb_4bit_quant_type")]
    checks.judged(
        "quantisation",
        "config.json",
        f"{of[0]}, {of[1]}",
        f"{FOUR_BIT}, nf4",
        holds=of == [FOUR_BIT, "nf4"] and settings.get("load_in_4bit") is True,
    )
    shapes = _shapes(folder)
    wrong = []
    for name in expected.names:
        count, quantised = expected.source(name).count, f"{name}.quant_state.bitsandbytes__nf4"
        size = int(np.prod(shapes[name])) if name in shapes else None
        if size != ((count + 1) // 2 if quantised in shapes else count):
            wrong.append(f"{name} has {size} entries for {count} weights")
    packed = sum(name.endswith("__nf4") for name in shapes)
    if not packed:
        wrong.append("no tensor is quantised")
    if wrong:
        checks.failed("tensors", "", name_list(wrong), "names and sizes of the model")
    else:
        measured = f"{packed} in NF4, {len(expected.names) - packed} as they were"
        checks.passed("tensors", "", measured, "names and sizes of the model")


def _shapes(folder: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return found
