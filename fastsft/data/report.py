"""What `fastsft check` has to say, as plain values.  Draws nothing, computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """One row to look at: its place, and its text as (text, is it trained)."""

    where: str
    segments: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source: what it holds, and how many of its rows an epoch uses.

    `use` says how it is mixed: "once", "weight 2", "share 10%".  `used` counts its training
    rows in one epoch, repetitions included; `held_out` those that are evaluated on.
    """

    name: str
    shape: str
    files: int
    rows_in: int
    kept: int
    held_out: int
    used: int
    use: str
    tokens: int  # trained on in one epoch: real tokens of the used rows


@dataclass(frozen=True, slots=True)
class FindingReport:
    """What one check found.  `where` has up to 20 places, as `file:line` or, for a pair,
    `file:line ~ file:line`; `action` is what followed: report, drop or error."""

    check: str
    what: str
    rows: int
    action: str
    where: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """One row that could not be read; `reason` is the ledger's word for its kind."""

    where: str
    reason: str
    what: str
    hint: str


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the training rows: quantiles, and a histogram over `edges` (one more than
    `counts`, rising, in tokens)."""

    shortest: int
    median: int
    p95: int
    longest: int
    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """The template that renders the rows; `adds` is text that it writes by itself (a system
    prompt, a date), empty where it adds none.

    `written` are the special tokens that it writes, with their ids, `stop_id` the one that ends
    a turn, `base_stop_ids` those at which the base itself stops.
    """

    name: str
    stop_token: str
    pad_token: str
    bos_token: str | None
    adds: str
    written: Mapping[str, int] = field(default_factory=dict)
    stop_id: int = -1
    base_stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Batching:
    """How full the computed positions are: real tokens per slot, 0 to 1, for each way.

    `padded`: random micro-batches; `grouped`: batches of like lengths; `packed`: best-fit
    sequences of `max_tokens`, `sequences` of them.  `chosen` names the one that is used.
    """

    padded: float
    grouped: float
    packed: float
    sequences: int
    chosen: str


@dataclass(frozen=True)
class Report:
    """Everything that the check tells; `totals` are those of `ledger.json`.

    `refused` is empty for data that can be trained on, else the reasons, one sentence each.
    `scripts` counts characters by script.  `stop_share` is the share of rows whose every
    trained turn ends in its stop token.
    """

    recipe: str
    method: str
    template: Template | None
    max_tokens: int
    sources: tuple[SourceReport, ...]
    totals: Mapping[str, Any]
    samples: tuple[Sample, ...]
    tokens: int  # of the training rows of one epoch
    trained_tokens: int
    stop_share: float
    lengths: Lengths | None
    scripts: Mapping[str, int]
    steps_per_epoch: int
    total_steps: int
    batching: Batching | None
    findings: tuple[FindingReport, ...]
    notes: tuple[str, ...]
    faults: tuple[Fault, ...]
    refused: tuple[str, ...]
    seconds: float
    from_cache: bool
    bad_rows: str = "error"  # or "skip": what a faulty row leads to

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)
