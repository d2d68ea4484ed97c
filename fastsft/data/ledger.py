"""Where every input row went, and why, in totals that add up.  Judges no row itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastsft.errors import DataError

EVALUATION = "evaluation"
LINES, TOTALS = "ledger.jsonl", "ledger.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One input row that is not trained on as it stood.

    `reason` is "evaluation", why the row was dropped or could not be read, or for a row that is
    used all the same (`is_used`) what was done to it.
    """

    file: str
    line: int
    reason: str
    detail: str = ""
    is_used: bool = False


@dataclass(frozen=True)
class Ledger:
    """The fate of every row; `notes` are facts about the whole data."""

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
        return sum(entry.reason == EVALUATION for entry in self.entries)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Rows used for nothing, by reason."""
        return Counter(e.reason for e in self.entries if e.reason != EVALUATION and not e.is_used)

    @property
    def changed(self) -> Mapping[str, int]:
        """Rows used otherwise than they stood, by what was done to them."""
        return Counter(entry.reason for entry in self.entries if entry.is_used)

    def totals(self) -> dict[str, Any]:
        """What `ledger.json` says."""
        return {
            "rows_in": self.rows_in,
            "train": self.train,
            "evaluation": self.evaluation,
            "dropped": dict(self.dropped),
            "changed": dict(self.changed),
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> None:
        """Writes `ledger.jsonl`, one line per entry, and `ledger.json`, the totals."""
        lines = (json.dumps(asdict(entry), ensure_ascii=False) for entry in self.entries)
        with (folder / LINES).open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        totals = json.dumps(self.totals(), ensure_ascii=False, indent=2)
        (folder / TOTALS).write_text(f"{totals}\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """The ledger that `write` wrote."""
        totals = json.loads((folder / TOTALS).read_text("utf-8"))
        return cls(
            rows_in=totals["rows_in"],
            train=totals["train"],
            entries=tuple(_entries(folder / LINES)),
            notes=tuple(totals["notes"]),
        )


def _entries(path: Path) -> Iterator[Entry]:
    with path.open(encoding="utf-8") as file:
        yield from (Entry(**json.loads(line)) for line in file)
