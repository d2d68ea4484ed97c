"""Adds up what comparing a file's weights gave, and judges the sum.  Reads no file."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastsft.export.gate import thresholds
from fastsft.export.gate.compare import Compared, Sums
from fastsft.export.gate.expected import Expected
from fastsft.export.gate.verdict import Checks

_NAMED = 3


@dataclass
class Tally:
    """What comparing a file's tensors gave."""

    values: int = 0
    near_ties: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    errors: dict[str, tuple[float, str]] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    targets: int = 0
    sums: Sums = field(default_factory=Sums)
    unread: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, kind: str, blocks: list[Compared]) -> None:
        """Take in one tensor's blocks; `kind` is its type."""
        self.values += sum(block.values for block in blocks)
        self.near_ties += sum(block.near_ties for block in blocks)
        wrong = sum(block.wrong for block in blocks)
        if not all(block.is_finite for block in blocks):
            self.wrong[name] = "has values that are not finite"
        elif wrong:
            total = sum(block.values for block in blocks)
            self.wrong[name] = f"{wrong:,} of {total:,} values are not base + adapter"
        if any(block.changed for block in blocks):
            self.changed.add(name)
        sums = sum((block.sums for block in blocks if block.sums), Sums())
        if sums.vv or sums.error:
            self._measure(name, kind, sums)

    def _measure(self, name: str, kind: str, sums: Sums) -> None:
        error = sums.relative_error
        self.errors[kind] = max(self.errors.get(kind, (0.0, "")), (error, name))
        bound = thresholds.ROUNDING_ERROR.get(kind, thresholds.COARSEST)
        if not error <= bound:
            self.wrong.setdefault(
                name, f"lies {error:.3f} of its size from base + adapter, {bound} at most as {kind}"
            )
        if sums.dd:
            self.sums += sums


def name_list(wrong: list[str]) -> str:
    """The first few, and how many more."""
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return "; ".join(wrong[:_NAMED]) + more


def report(tally: Tally, name: str, kind: str, checks: Checks) -> None:
    """The checks of a file's values."""
    exact = "bit-equal to base + adapter" if kind != "q8_0" else "byte-equal to base + adapter"
    threshold = exact if not tally.errors else "within the type's rounding of base + adapter"
    if tally.near_ties > thresholds.NEAR_TIES * max(tally.values, 10**6):
        tally.wrong["values"] = f"{tally.near_ties:,} lie on the other side of a tie"
    if tally.wrong:
        listed = [f"{tensor} {why}" for tensor, why in tally.wrong.items()]
        checks.failed("weights", name, name_list(listed), threshold)
    elif tally.unread:
        kinds = ", ".join(f"{count} of type {of}" for of, count in tally.unread.items())
        checks.not_run("weights", name, f"the gguf package reads no such tensors: {kinds}")
    else:
        checks.passed("weights", name, "; ".join(_measured(tally)), threshold, values=tally.values)


def _measured(tally: Tally) -> Iterator[str]:
    yield f"{tally.values:,} values"
    if tally.near_ties:
        yield f"{tally.near_ties} at a tie"
    for kind, (error, _) in sorted(tally.errors.items()):
        bound = thresholds.ROUNDING_ERROR.get(kind, thresholds.COARSEST)
        yield f"{kind} error {error:.3f} (at most {bound})"


def report_delta(tally: Tally, name: str, expected: Expected, checks: Checks) -> None:
    """The checks that what LoRA adds is there."""
    if not expected.deltas:
        return
    targets = len(expected.deltas)
    checks.judged(
        "adapter changes weights",
        name,
        f"{len(tally.changed)} of {targets} targets changed",
        "1 or more",
        holds=bool(tally.changed),
        cure="the adapter is as it was before training; train it, then export again",
        numbers={"changed": len(tally.changed), "targets": targets},
    )
    found = tally.sums.arrived()
    if found is None or not tally.changed:
        return
    open_ = thresholds.DEVIATIONS * found.deviation
    if open_ > thresholds.UNDECIDED:
        checks.notes.append(
            f"{name}: the adapter's change is so small against the rounding that its share "
            f"cannot be measured ({found.share:.2f} +- {open_:.2f})"
        )
        return
    bound = thresholds.ARRIVED + open_ + tally.sums.relative_error**2
    checks.judged(
        "share of the adapter's change",
        name,
        f"{found.share:.3f}",
        f"1 +- {bound:.3f}",
        holds=abs(found.share - 1) <= bound,
        numbers={"share": found.share},
    )
