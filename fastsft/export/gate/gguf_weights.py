"""Checks a GGUF's metadata and every weight in it against base and adapter.  Runs no model."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from fastsft.export.gate import layout
from fastsft.export.gate.compare import WORKERS, Compared, compared
from fastsft.export.gate.expected import EMBEDDING, HEAD, Block, Expected, head_dim, rope_factors
from fastsft.export.gate.gguf_file import GgufFile, GgufTensor
from fastsft.export.gate.tally import Tally, name_list, report, report_delta
from fastsft.export.gate.verdict import Checks

OURS: Mapping[str, frozenset[str]] = {
    "f32": frozenset(["F32"]),
    "f16": frozenset(["F16", "F32"]),
    "bf16": frozenset(["BF16", "F32"]),
    "q8_0": frozenset(["Q8_0", "F16", "F32"]),
}
"""The tensor types in files that fastsft writes itself; other types are llama.cpp's work."""

_NAMED = 3


def check(
    file: GgufFile, kind: str, expected: Expected, checks: Checks, step: Callable[[int], None]
) -> None:
    """Everything that a model's GGUF must have, as checks of that file."""
    name = file.path.name
    _metadata(file, expected, checks)
    pairs = _names(file, expected, checks)
    tally = Tally()
    with ThreadPoolExecutor(WORKERS) as pool:
        for ours, tensor in pairs:
            _compare(file, kind, expected, ours, tensor, tally, pool)
            step(tensor.nbytes)
    _rope(file, expected, tally)
    report(tally, name, kind, checks)
    report_delta(tally, name, expected, checks)


def _metadata(file: GgufFile, expected: Expected, checks: Checks) -> None:
    """Architecture and the numbers that llama.cpp computes with."""
    arch = file.fields.get("general.architecture")
    wanted = layout.ARCHITECTURES.get(str(expected.config.get("model_type")))
    wrong = [] if arch == wanted else [f"general.architecture is {arch}, not {wanted}"]
    implied = layout.implied(expected.config)
    known = layout.metadata(expected.config)
    for key, value in known.items():
        found = file.fields.get(f"{arch}.{key}", implied.get(key))
        if not _is_same(found, value):
            wrong.append(f"{key} is {found}, not {value}")
    if wrong:
        checks.failed("settings", file.path.name, name_list(wrong), "those of config.json")
    else:
        checks.passed(
            "settings", file.path.name, f"{len(known)} as in config.json", "those of config.json"
        )


def _is_same(found: object, wanted: float | str) -> bool:
    if not isinstance(found, int | float) or isinstance(wanted, str):
        return found == wanted
    return abs(found - wanted) <= 1e-6 * abs(wanted)  # floats are stored in 32 bits


def _names(file: GgufFile, expected: Expected, checks: Checks) -> list[tuple[str, GgufTensor]]:
    """The tensors to compare, each with the name of what it must be."""
    wanted = {ours: layout.gguf_name(ours) for ours in expected.names}
    output = layout.gguf_name(HEAD)
    head_is_embedding = output not in file.tensors and HEAD in wanted
    pairs, wrong = [], []
    for ours, theirs in wanted.items():
        read = layout.gguf_name(EMBEDDING) if ours == HEAD and head_is_embedding else theirs
        tensor = file.tensors.get(str(read))
        if tensor is None:
            wrong.append(f"{theirs or ours} is missing")
        elif tensor.shape != expected.source(ours).shape:
            shape = [*expected.source(ours).shape]
            wrong.append(f"{tensor.name} is {[*tensor.shape]}, not {shape}")
        else:
            pairs.append((ours, tensor))
    allowed = {
        *wanted.values(),
        *([layout.ROPE] if rope_factors(expected.config) is not None else []),
    }
    if expected.is_tied and HEAD not in wanted and output in file.tensors:
        pairs.append((HEAD, file.tensors[str(output)]))  # the embedding's copy: harmless
        allowed.add(output)
    wrong += [f"{name} is one too many" for name in file.tensors if name not in allowed]
    _judge_names(wrong, file, checks)
    return pairs


def _judge_names(wrong: list[str], file: GgufFile, checks: Checks) -> None:
    threshold = "names and shapes of the model"
    if wrong:
        checks.failed("tensors", file.path.name, name_list(wrong), threshold)
    else:
        checks.passed("tensors", file.path.name, f"{len(file.tensors)} tensors", threshold)


def _compare(
    file: GgufFile,
    kind: str,
    expected: Expected,
    name: str,
    tensor: GgufTensor,
    tally: Tally,
    pool: ThreadPoolExecutor,
) -> None:
    of = tensor.type.name
    if kind in OURS and of not in OURS[kind]:
        tally.wrong[tensor.name] = f"is stored as {of} in a file of type {kind}"
        return
    if name in expected.deltas:
        tally.targets += 1
    one = partial(_block, file, kind, expected, name, tensor)
    try:
        blocks = list(pool.map(one, expected.cuts(name, multiple=_multiple(name, expected))))
    except NotImplementedError:
        tally.unread[of] += 1
        return
    tally.add(tensor.name, of, blocks)


def _multiple(name: str, expected: Expected) -> int:
    """Rows that belong together: those of one head where heads are interleaved."""
    return head_dim(expected.config) if layout.heads(name, expected.config) else 1


def _block(
    file: GgufFile,
    kind: str,
    expected: Expected,
    name: str,
    tensor: GgufTensor,
    cut: tuple[int, int],
) -> Compared:
    first, rows = cut
    block = expected.block(name, first, rows)
    if layout.heads(name, expected.config):
        block = _interleaved(block, expected)
    start = tensor.nbytes * first // tensor.rows
    end = tensor.nbytes * (first + rows) // tensor.rows
    raw = file.read(tensor, start, end - start)
    return compared(block, raw, tensor.type, ours=kind in OURS)


def _interleaved(block: Block, expected: Expected) -> Block:
    """The block's rows in the order in which a GGUF holds them."""
    within = layout.rows_of_head(expected.config)
    firsts = np.arange(0, len(block.values), len(within))
    order = (firsts[:, None] + within).reshape(-1)
    delta = None if block.delta is None else block.delta[order]
    return Block(block.first, block.values[order], block.base[order], delta)


def _rope(file: GgufFile, expected: Expected, tally: Tally) -> None:
    factors = rope_factors(expected.config)
    if factors is None:
        return
    tensor = file.tensors.get(layout.ROPE)
    if tensor is None:
        tally.wrong[layout.ROPE] = "is missing, though config.json scales the rotary frequencies"
        return
    found = file.read(tensor, 0, tensor.nbytes).view(np.float32)
    if found.shape != factors.shape or not np.allclose(found, factors, rtol=1e-6, atol=0):
        tally.wrong[layout.ROPE] = "is not what config.json scales the rotary frequencies by"
