"""Where every input row went, and why, in totals that add up.  Judges no row itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastsft.errors import DataError

Reason = Literal["evaluation", "overlength"]
"""Why a row is not trained on: it is evaluated on, or it was dropped for its length."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One input row that is not trained on as it stood."""

    file: str
    line: int
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Ledger:
    """The fate of every row; `notes` are facts about the whole file."""

    rows_in: int
    train: int
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises `DataError` if the totals do not add up: a row would be lost."""
        placed = self.train + self.evaluation + sum(self.dropped.values())
        if placed != self.rows_in:
            raise DataError(
                f"the ledger does not add up: {self.rows_in} rows in, {placed} accounted for",
                hint="this is a fault in fastsft; please report it with the ledger",
            )

    @property
    def evaluation(self) -> int:
        """Rows that are evaluated on."""
        return sum(entry.reason == "evaluation" for entry in self.entries)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Rows used for nothing, by reason."""
        return Counter(e.reason for e in self.entries if e.reason != "evaluation")

    def totals(self) -> dict[str, Any]:
        """What `ledger.json` says."""
        return {
            "rows_in": self.rows_in,
            "train": self.train,
            "evaluation": self.evaluation,
            "dropped": dict(self.dropped),
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> None:
        """Writes `ledger.jsonl`, one line per entry, and `ledger.json`, the totals."""
        lines = (
            json.dumps(
                {"file": e.file, "line": e.line, "reason": e.reason, "detail": e.detail},
                ensure_ascii=False,
            )
            for e in self.entries
        )
        (folder / "ledger.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        totals = json.dumps(self.totals(), ensure_ascii=False, indent=2)
        (folder / "ledger.json").write_text(f"{totals}\n", "utf-8")
