"""Decides which rows are evaluated on, by their content alone.  Reads no file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

BITS = 48  # exact in a float


def fraction(value: Mapping[str, Any]) -> float:
    """A number in [0, 1) that depends on nothing but the row's JSON, keys sorted.

    So a row lands on the same side in every run, wherever it stands and whatever else is
    in the file, and copies of a row land together.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[: BITS // 8], "big") / float(1 << BITS)


def evaluated(fractions: Sequence[float], share: float) -> list[bool]:
    """Whether each row is evaluated on: those whose fraction is below `share`.

    Of two rows or more at least one goes to each side, the smallest fraction to evaluation.
    """
    chosen = [value < share for value in fractions]
    if share <= 0 or len(chosen) < 2:
        return [False] * len(chosen)
    if not any(chosen):
        chosen[fractions.index(min(fractions))] = True
    if all(chosen):
        chosen[fractions.index(max(fractions))] = False
    return chosen
