"""Checks an adapter's GGUF against the adapter: what it adds to each weight.  Runs no model."""

from collections.abc import Callable

import numpy as np

from fastsft.export.gate import layout
from fastsft.export.gate.expected import Doubles, Expected
from fastsft.export.gate.gguf_file import GgufFile, GgufTensor
from fastsft.export.gate.tally import name_list
from fastsft.export.gate.verdict import Checks
from fastsft.weights import Dtype, Reader, Tensor, widen

# float16 rounds a value by 2**-11 of it at most; a product of two and its sum stay below this.
LARGEST_ERROR = 2e-3
_BLOCK_ROWS = 1024
_PLAIN: dict[str, Dtype] = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


def check(
    file: GgufFile, expected: Expected, reader: Reader, checks: Checks, step: Callable[[int], None]
) -> None:
    """What the file adds to each weight must be what the adapter adds."""
    name = file.path.name
    _kind(file, expected, checks)
    wanted = {str(layout.gguf_name(ours)): ours for ours in expected.deltas}
    parts = {f"{of}.lora_{part}" for of in wanted for part in "ab"}
    wrong = [f"{one} is missing" for one in sorted(parts - file.tensors.keys())]
    wrong += [f"{one} is one too many" for one in sorted(file.tensors.keys() - parts)]
    wrong += [
        f"{tensor.name} is stored as {tensor.type.name}"
        for tensor in file.tensors.values()
        if tensor.type.name not in _PLAIN
    ]
    threshold = "A and B of each target"
    if wrong:
        checks.failed("tensors", name, name_list(wrong), threshold)
        return
    checks.passed("tensors", name, f"{len(wanted)} targets", threshold)
    worst, zero = 0.0, 0
    for theirs, ours in wanted.items():
        error, is_zero = _error(file, theirs, ours, expected, reader)
        worst, zero = max(worst, error), zero + is_zero
        step(sum(file.tensors[f"{theirs}.lora_{part}"].nbytes for part in "ab"))
    _judge(worst, len(wanted) - zero, len(wanted), name, checks)


def _judge(worst: float, changed: int, targets: int, name: str, checks: Checks) -> None:
    checks.judged(
        "weights",
        name,
        f"scale * B @ A differs by {worst:.1e} of itself",
        f"at most {LARGEST_ERROR:.0e}",
        holds=worst <= LARGEST_ERROR,
        numbers={"error": worst},
    )
    checks.judged(
        "adapter changes weights",
        name,
        f"{changed} of {targets} targets changed",
        "1 or more",
        holds=changed > 0,
        cure="the adapter is as it was before training; train it, then export again",
    )


def _kind(file: GgufFile, expected: Expected, checks: Checks) -> None:
    arch = layout.ARCHITECTURES.get(str(expected.config.get("model_type")))
    wanted = {
        "general.architecture": arch,
        "general.type": "adapter",
        "adapter.type": "lora",
    }
    wrong = [
        f"{k} is {file.fields.get(k)}, not {v}"
        for k, v in wanted.items()
        if file.fields.get(k) != v
    ]
    if wrong:
        checks.failed("settings", file.path.name, name_list(wrong), "an adapter for the base")
    else:
        checks.passed("settings", file.path.name, f"{arch} LoRA", "an adapter for the base")


def _error(
    file: GgufFile, theirs: str, ours: str, expected: Expected, reader: Reader
) -> tuple[float, bool]:
    """The largest share by which the file's product differs, over blocks; whether it is zero."""
    a, b = (_values(file, file.tensors[f"{theirs}.lora_{part}"]) for part in "ab")
    delta = expected.deltas[ours]
    true_a, true_b = (_read(reader, part) for part in (delta.a, delta.b))
    if a.shape != true_a.shape or b.shape != true_b.shape:
        return np.inf, False
    true_b = _interleaved(ours, true_b, expected)
    # Source: llama.cpp src/llama-adapter.h, `get_scale`: alpha over the rank of B.
    scale = float(file.fields.get("adapter.lora.alpha", 0)) / b.shape[1]
    worst, is_zero = 0.0, True
    for first in range(0, len(b), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        found, true = scale * (b[rows] @ a), delta.scale * (true_b[rows] @ true_a)
        size = float(np.linalg.norm(true))
        distance = float(np.linalg.norm(found - true))
        worst = max(worst, distance / size if size else (np.inf if distance else 0.0))
        is_zero &= not size
    return (worst if np.isfinite(worst) else np.inf), is_zero


def _interleaved(name: str, b: Doubles, expected: Expected) -> Doubles:
    if not layout.heads(name, expected.config):
        return b
    within = layout.rows_of_head(expected.config)
    found: Doubles = b.reshape(-1, len(within), b.shape[1])[:, within].reshape(b.shape)
    return found


def _values(file: GgufFile, tensor: GgufTensor) -> Doubles:
    raw = file.read(tensor, 0, tensor.nbytes)
    plain = widen(raw, _PLAIN[tensor.type.name])
    return plain.reshape(tensor.shape).astype(np.float64)


def _read(reader: Reader, part: Tensor) -> Doubles:
    return reader.floats(part).reshape(part.shape).astype(np.float64)
