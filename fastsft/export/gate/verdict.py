"""What the parity gate found: a line for each check, a word over all.  Measures nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from fastsft.errors import DataError, ExportError

Area = Literal["structure", "text", "behaviour"]
Result = Literal["passed", "failed", "not run"]
Outcome = Literal["passed", "passed in part", "failed"]

_NAMED = 3


@dataclass(frozen=True)
class Check:
    """One thing that was measured against its threshold, in one file or (empty) the folder.

    `why` says what was wrong, or why the check did not run; `cure` what to do about it.
    """

    area: Area
    name: str
    file: str
    result: Result
    measured: str = ""
    threshold: str = ""
    why: str = ""
    cure: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


class Row(NamedTuple):
    """A check as a line of a table."""

    check: str
    file: str
    result: str
    measured: str
    threshold: str


@dataclass(frozen=True)
class Verdict:
    """Everything that was checked in one export."""

    folder: str
    kind: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def outcome(self) -> Outcome:
        """Failed if a check failed, "passed" only where none had to be left out."""
        results = {check.result for check in self.checks}
        if "failed" in results or not results:
            return "failed"
        return "passed in part" if "not run" in results else "passed"

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed, in order."""
        return tuple(check for check in self.checks if check.result == "failed")

    @property
    def left_out(self) -> tuple[Check, ...]:
        """The checks that did not run, in order."""
        return tuple(check for check in self.checks if check.result == "not run")

    @property
    def summary(self) -> str:
        """One line for people: how many checks, and what did not run."""
        ran = len(self.checks) - len(self.left_out)
        text = f"{self.outcome}: {ran - len(self.failures)} of {ran} checks passed"
        if self.left_out:
            cures = dict.fromkeys(check.cure for check in self.left_out if check.cure)
            text += f"; {len(self.left_out)} not run" + (f" ({'; '.join(cures)})" if cures else "")
        return text

    def rows(self) -> list[Row]:
        """The table for people."""
        return [
            Row(f"{c.area}: {c.name}", c.file, c.result, c.why or c.measured, c.threshold)
            for c in self.checks
        ]

    def require(self) -> None:
        """Raises ExportError, naming the first failures and the cure, when a check failed."""
        if not self.failures:
            return
        named = "; ".join(map(_sentence, self.failures[:_NAMED]))
        rest = len(self.failures) - _NAMED
        raise ExportError(
            f"does not behave like what was trained: {named}"
            + (f"; and {rest} more, see verify.json" if rest > 0 else ""),
            where=self.folder,
            hint=next((c.cure for c in self.failures if c.cure), "")
            or "export again with --overwrite; if it repeats, please report it with verify.json",
        )

    def as_dict(self) -> dict[str, Any]:
        """What `verify.json` holds."""
        return {
            "result": self.outcome,
            "kind": self.kind,
            "checks": [asdict(check) for check in self.checks],
            "notes": list(self.notes),
            "versions": dict(self.versions),
        }


def _sentence(check: Check) -> str:
    place = f" of {check.file}" if check.file else ""
    return f"{check.name}{place}: {check.why or check.measured}"


class Checks:
    """Collects the checks of one area."""

    def __init__(self, area: Area) -> None:
        self._area: Area = area
        self.found: list[Check] = []
        self.notes: list[str] = []

    def passed(self, name: str, file: str, measured: str, threshold: str, **numbers: float) -> None:
        """Add a check that passed."""
        self._add(
            name, file, "passed", measured=measured, threshold=threshold, numbers=dict(numbers)
        )

    def failed(self, name: str, file: str, why: str, threshold: str, *, cure: str = "") -> None:
        """Add a check that failed, with what was wrong."""
        self._add(name, file, "failed", why=why, threshold=threshold, cure=cure)

    def not_run(self, name: str, file: str, why: str, *, cure: str = "") -> None:
        """Add a check that could not be made, with the reason and what to type."""
        self._add(name, file, "not run", why=why, cure=cure)

    def judged(
        self,
        name: str,
        file: str,
        measured: str,
        threshold: str,
        *,
        holds: bool,
        cure: str = "",
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """Add a check whose measurement says whether it holds."""
        result: Result = "passed" if holds else "failed"
        self._add(
            name,
            file,
            result,
            measured=measured,
            threshold=threshold,
            why="" if holds else f"{measured}, must be {threshold}",
            cure="" if holds else cure,
            numbers=numbers or {},
        )

    def _add(self, name: str, file: str, result: Result, **rest: Any) -> None:
        self.found.append(Check(self._area, name, file, result, **rest))


@contextmanager
def judged(checks: Checks, name: str, file: str) -> Iterator[None]:
    """Turns a file that cannot be read into a failed check."""
    try:
        yield
    except (ExportError, DataError) as error:
        checks.failed(name, file, error.what, "can be read", cure=error.hint)
