"""What a row must satisfy to count: each gate a condition, judged from the record alone.  Pure.

Nothing here looks at the machine: whoever has a row's file can judge it again.
"""

from collections.abc import Sequence
from dataclasses import replace

from fastsft.bench.peer_gates import BESIDE
from fastsft.bench.row import Row, Validity
from fastsft.bench.row_gates import ALONE


def judged(rows: Sequence[Row]) -> list[Row]:
    """The rows with every gate judged, each against its peer."""
    return [replace(row, validity=judge(row, peer_of(row, rows))) for row in rows]


def judge(row: Row, peer: Row | None = None) -> Validity:
    """Every gate of a row; `peer` is the row that it is compared with, None for none."""
    gates = [gate(row) for gate in ALONE] + [gate(row, peer) for gate in BESIDE]
    return Validity(is_valid=all(gate.result != "failed" for gate in gates), gates=gates)


def peer_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row to compare with: the last arm's of the same repeat, or its first that is sound.

    The last arm's own rows have their first sound repeat.  None where there is no such row.
    """
    standard = list(dict.fromkeys(other.identity.arm for other in rows))[-1]
    sound = [r for r in rows if r.identity.arm == standard and judge(r).is_valid]
    repeat = row.identity.repeat
    if row.identity.arm == standard:
        sound = [r for r in sound if r.identity.repeat < repeat]
    return next((r for r in sound if r.identity.repeat == repeat), sound[0] if sound else None)
