"""Many faulty rows as one error, so that they are mended in one go."""

from __future__ import annotations

from collections.abc import Iterable

from fastsft.data.report import Fault
from fastsft.errors import DataError

MAX_FAULTS = 20


def together(faults: Iterable[Fault], count: int, *, is_all: bool = True) -> DataError:
    """One error for all: the first one's place, a line for each other, every cure once."""
    first, *others = list(faults)[:MAX_FAULTS]
    lines = [first.what, *dict.fromkeys(f"{fault.where}: {fault.what}" for fault in others)]
    if not is_all:
        lines.append(f"stopped after {count} faulty rows; `fastsft check` shows all of them")
    elif count > MAX_FAULTS:
        lines.append(f"and {count - MAX_FAULTS} more faulty rows; `fastsft check` shows all")
    hints = dict.fromkeys(fault.hint for fault in (first, *others))
    return DataError("\n".join(lines), where=first.where, hint="\n  hint: ".join(hints))
