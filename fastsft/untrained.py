"""Tells whether a base has learnt the tokens that a chat template writes.  Loads no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastsft.errors import ExportError
from fastsft.weights import Checkpoint, Floats, Reader, Tensor

SAMPLE_ROWS = 512
SMALL_NORM = 0.2
"""A row shorter than this share of the median row has hardly moved from its start near zero, as
the reserved tokens of Llama 3's bases.  Source: unsloth#915 and #1258 (which tokens); the share
is our own, well below what the trained rows of the tiny bases show.
"""
SAME = 1e-6
"""Rows that differ by no more than this have kept the value that they began with."""
CURE = (
    "use the Instruct checkpoint of the same model, or set data.template to alpaca or "
    "human-assistant, which end a turn with the base's own end-of-text token"
)


def find(
    folder: Path, tokens: Mapping[str, int], stop_id: int, eos_ids: Collection[int]
) -> str | None:
    """A warning, with its cure, that the base has not learnt the template's tokens; None if well.

    `tokens` are the special tokens that the template writes, by text; `stop_id` ends a turn;
    `eos_ids` are those at which the base itself stops, as its configuration says (none given:
    unknown).  Without readable weights in the folder only the stop token is judged.

    Source: QwenLM/Qwen3#1064 (answers without end), unsloth#915 (untrained headers).
    """
    signs = [*_another_stop(tokens, stop_id, eos_ids), *_untrained(folder, tokens)]
    return f"{'; '.join(signs)}: answers may never end; {CURE}" if signs else None


def _another_stop(
    tokens: Mapping[str, int], stop_id: int, eos_ids: Collection[int]
) -> Iterator[str]:
    if eos_ids and stop_id not in eos_ids:
        names = {token_id: token for token, token_id in tokens.items()}
        known = ", ".join(names.get(i, f"token {i}") for i in sorted(eos_ids))
        stop = names.get(stop_id, f"token {stop_id}")
        yield f"the template ends a turn with {stop}, but this base stops at {known}"


def _untrained(folder: Path, tokens: Mapping[str, int]) -> Iterator[str]:
    try:
        fresh = _fresh_rows(folder, tokens)
    except (ExportError, OSError):  # resolving the base tells what is wrong with its weights
        return
    if fresh:
        yield f"the base's embeddings of {', '.join(fresh)} are untrained"


def _fresh_rows(folder: Path, tokens: Mapping[str, int]) -> list[str]:
    """The tokens whose embedding is near zero, like another token's, or missing."""
    table = _embeddings(Checkpoint.open(folder))
    if table is None or not tokens:
        return []
    special = {token: row for token, row in tokens.items() if row < table.shape[0]}
    with Reader() as reader:
        rows = {token: _row(reader, table, at) for token, at in special.items()}
        usual = _usual_norm(reader, table, set(special.values()))
    return [
        token
        for token in tokens
        if token not in rows or _is_fresh(rows[token], usual, _others(rows, token))
    ]


def _embeddings(checkpoint: Checkpoint) -> Tensor | None:
    tables = [
        tensor
        for name, tensor in checkpoint.tensors.items()
        if name.endswith("embed_tokens.weight") and len(tensor.shape) == 2
    ]
    return tables[0] if len(tables) == 1 else None


def _row(reader: Reader, table: Tensor, at: int) -> Floats:
    return reader.floats(table, at * table.row_length, table.row_length)


def _usual_norm(reader: Reader, table: Tensor, special: set[int]) -> float:
    """The median length of rows taken evenly from the whole table; 0 where none is a number."""
    count = min(SAMPLE_ROWS, table.shape[0])
    places: NDArray[np.int64] = np.linspace(0, table.shape[0] - 1, count).astype(np.int64)
    norms = [_norm(_row(reader, table, at)) for at in places.tolist() if at not in special]
    numbers = [norm for norm in norms if np.isfinite(norm)]
    return float(np.median(numbers)) if numbers else 0.0


def _norm(row: Floats) -> float:
    return float(np.linalg.norm(row.astype(np.float64)))


def _others(rows: Mapping[str, Floats], token: str) -> list[Floats]:
    return [row for name, row in rows.items() if name != token]


def _is_fresh(row: Floats, usual: float, others: list[Floats]) -> bool:
    if _norm(row) < SMALL_NORM * usual:
        return True
    return any(float(np.abs(row - other).max(initial=0.0)) <= SAME for other in others)
