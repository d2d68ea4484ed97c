"""What the check's report says, in words that terminal and page share.  Draws nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from fastsft.data.report import FindingReport, Report, Sample

Kind = Literal["trained", "given", "cut"]
"""A stretch of a row: trained on, only read by the model, or words of ours for what is left out."""

FOLLOWS: Mapping[str, str] = {"report": "kept", "drop": "dropped", "error": "refused"}
"""What a check's action did with the rows that it found."""

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that a reader cannot see, or that move what he sees: controls, formats
(bidi overrides, zero width, tags), lone surrogates, line and paragraph separators."""
JOINERS = "\u200c\u200d"  # emoji, Persian and Indic scripts are written with them


@dataclass(frozen=True, slots=True)
class Part:
    """Input rows of one fate; `reasons` says how many for which cause."""

    fate: Literal["trained", "held out", "dropped", "bad rows"]
    rows: int
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FaultGroup:
    """Bad rows of one kind; `what` and `hint` are those of the first."""

    reason: str
    rows: int
    what: str
    hint: str
    where: tuple[str, ...]


def visible(text: str, *, keep: str = "\n\t") -> str:
    """The text with every character that cannot be seen spelled out, as `⟨U+202E⟩`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    if unicodedata.category(character) not in HIDDEN or character in JOINERS:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def one_line(text: str) -> str:
    """Visible text that cannot begin a line of its own."""
    return visible(text.replace("\n", "↵"), keep="")


def pieces(sample: Sample, *, limit: int | None) -> list[tuple[str, Kind]]:
    """The row's visible text in stretches; of one longer than `limit` characters, its ends."""
    total = sum(len(text) for text, _ in sample.segments)
    if limit is None or total <= limit:
        return list(_between(sample, 0, total))
    head = limit // 2
    gap = f" … {total - limit:,} characters hidden … "
    end = total - limit + head
    return [*_between(sample, 0, head), (gap, "cut"), *_between(sample, end, total)]


def _between(sample: Sample, start: int, stop: int) -> Iterator[tuple[str, Kind]]:
    at = 0
    for text, is_trained in sample.segments:
        shown = text[max(0, start - at) : max(0, stop - at)]
        at += len(text)
        if shown:
            yield visible(shown), "trained" if is_trained else "given"


def parts(report: Report) -> list[Part]:
    """Every input row by its fate, those that no row met left out; together, the rows in."""
    unread = {fault.reason for fault in report.faults}
    dropped: Mapping[str, int] = report.totals["dropped"]
    bad = {reason: rows for reason, rows in dropped.items() if reason in unread}
    left = {reason: rows for reason, rows in dropped.items() if reason not in unread}
    found = (
        Part("trained", report.totals["train"]),
        Part("held out", report.totals["evaluation"]),
        Part("dropped", sum(left.values()), left),
        Part("bad rows", sum(bad.values()), bad),
    )
    return [part for part in found if part.rows or part.fate == "trained"]


def adds_up(report: Report) -> str:
    """`1,200 in = 1,100 trained + 50 held out + 30 dropped (overlength 30) + 20 bad rows`."""
    told = " + ".join(map(_part_words, parts(report)))
    return f"{report.totals['rows_in']:,} in = {told}"


def changed(report: Report) -> str:
    """What was done to rows that are used otherwise than they stood; empty where nothing was."""
    rows: Mapping[str, int] = report.totals.get("changed", {})
    return f"used otherwise than they stood: {reason_words(rows)}" if rows else ""


def _part_words(part: Part) -> str:
    reasons = f" ({reason_words(part.reasons)})" if part.fate == "dropped" else ""
    fate = "bad row" if part.fate == "bad rows" and part.rows == 1 else part.fate
    return f"{part.rows:,} {fate}{reasons}"


def reason_words(reasons: Mapping[str, int]) -> str:
    """`overlength 20, leakage 10`, the most frequent first."""
    ranked = sorted(reasons.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{words(reason)} {rows:,}" for reason, rows in ranked)


def words(slug: str) -> str:
    """`near duplicates` for `near_duplicates`."""
    return one_line(slug).replace("_", " ")


def percent(share: float) -> str:
    """A share as `51.5%`; what is not all is never told as 100%, nor what is not nothing as 0%."""
    bounded = min(share, 0.999) if share < 1 else share
    return "<0.1%" if 0 < bounded < 0.0005 else f"{100 * bounded:.1f}".removesuffix(".0") + "%"


def many(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def verdict(report: Report) -> str:
    """Whether it can be trained on, in one line; the reasons of a refusal stand in the report."""
    if report.refused:
        return f"refused, for {many(len(report.refused), 'reason')}"
    looks = f", {many(len(report.findings), 'finding')} to look at" if report.findings else ""
    return f"clean: {many(report.totals['train'], 'row')} to train on{looks}"


def took(report: Report) -> str:
    """How long the check took."""
    return f"{report.seconds:.1f} s{', from the cache' if report.from_cache else ''}"


def training(report: Report) -> dict[str, str]:
    """Named facts about what is trained; empty where no row is left."""
    if not report.tokens:
        return {}
    share = percent(report.trained_tokens / report.tokens)
    return {
        "method": f"{report.method}, rows of at most {report.max_tokens:,} tokens",
        "trained tokens": f"{report.trained_tokens:,} of {report.tokens:,} an epoch ({share})",
        "stop token": f"trained in {percent(report.stop_share)} of the rows"
        + ("" if report.stop_share == 1 else "; it must be 100%"),
        "steps": f"{report.total_steps:,} in all, {report.steps_per_epoch:,} an epoch",
        "scripts": ", ".join(
            f"{one_line(script)} {percent(share)}" for script, share in scripts(report)
        ),
    }


def scripts(report: Report) -> list[tuple[str, float]]:
    """The five commonest scripts with their share of the characters."""
    total = sum(report.scripts.values())
    ranked = sorted(report.scripts.items(), key=lambda pair: -pair[1])[:5]
    return [(script, characters / total) for script, characters in ranked if characters]


def template(report: Report) -> dict[str, str]:
    """Named facts about the chat template; empty where none is used."""
    used = report.template
    if used is None:
        return {}
    adds = f"“{used.adds}”; pin it with data.system or data.date" if used.adds else "nothing"
    told = {
        "name": used.name,
        "stop token": used.stop_token,
        "padding": used.pad_token,
        "begins with": used.bos_token or "no token",
        "adds by itself": adds,
    }
    return {name: one_line(value) for name, value in told.items()}


def batching(report: Report) -> list[tuple[str, float, bool]]:
    """Each way of making batches: (its name, real tokens per computed position, is it used)."""
    found = report.batching
    if found is None:
        return []
    many_full = f"packed, {many(found.sequences, 'sequence')}"
    ways = {"packed": many_full, "grouped": "like lengths together", "padded": "in random order"}
    return [(told, getattr(found, way), way == found.chosen) for way, told in ways.items()]


def fault_groups(report: Report) -> list[FaultGroup]:
    """The bad rows by kind, the most frequent first."""
    by_reason = groupby(sorted(report.faults, key=lambda f: f.reason), key=lambda f: f.reason)
    groups = [(reason, list(faults)) for reason, faults in by_reason]
    made = [
        FaultGroup(reason, len(of), of[0].what, of[0].hint, tuple(fault.where for fault in of))
        for reason, of in groups
    ]
    return sorted(made, key=lambda group: -group.rows)


def places(where: Sequence[str], *, limit: int) -> list[str]:
    """The first places, each on one line."""
    return [one_line(place) for place in where[:limit]]


def more(found: FindingReport | FaultGroup, *, limit: int) -> str:
    """` and 12 more`, for rows beyond the places that are shown."""
    rest = found.rows - len(found.where[:limit])
    return f" and {rest:,} more" if rest > 0 else ""
