"""Says what is wrong with the rows as a whole, from their features.  Reads no text, drops nothing.

Evaluation rows are looked at too, each side by itself; only leakage is about both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsft.data import features as flags
from fastsft.data import minhash
from fastsft.data.features import Features
from fastsft.recipe_data import Action, Checks

BOILERPLATE_SHARE, BOILERPLATE_ROWS = 0.02, 10
"""A sentence is boilerplate from this share of the rows on, and from this many rows."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Finding:
    """What one check found: the rows, ascending, and beside each the row that it repeats.

    Of boilerplate, `of` is the first row with the same sentence (for the first row itself).
    """

    check: str
    rows: Rows  # [K]
    of: Rows | None  # [K]
    what: str
    action: Action


@dataclass(frozen=True)
class _Facts:
    """What the checks look at."""

    features: Features
    is_eval: NDArray[np.bool_]
    trained_tokens: NDArray[np.int64]
    copied: Rows  # [N] the first row of the same side that is exactly the same, mostly itself
    leaked: Rows  # [N] an evaluation row that is exactly the training row, or -1
    near: minhash.Near | None


def find(
    features: Features,
    is_eval: NDArray[np.bool_],
    trained_tokens: NDArray[np.int64],
    checks: Checks,
) -> list[Finding]:
    """What the checks that are on have found, in the order of the recipe's fields."""
    is_near_asked = checks.near_duplicates != "off" or checks.leakage != "off"
    near = minhash.near(features.signatures, is_eval) if is_near_asked else None
    copied, leaked = _copies(features.exact, is_eval)
    facts = _Facts(features, is_eval, trained_tokens, copied, leaked, near)
    return [
        Finding(check, rows, of, what, action)
        for check, look in _LOOKS.items()
        if (action := getattr(checks, check)) != "off"
        for rows, of, what in look(facts)
        if len(rows)
    ]


_Found = list[tuple[Rows, Rows | None, str]]


def _copies(exact: NDArray[np.uint64], is_eval: NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """The first row of each row's own side, and the first evaluation row, with its hash."""
    n = len(exact)
    order = np.lexsort((exact[:, 1], exact[:, 0]))
    is_new = np.append(True, (exact[order][1:] != exact[order][:-1]).any(axis=1))[:n]
    group = np.empty(n, dtype=np.int64)
    group[order] = np.cumsum(is_new) - 1
    first = np.full((2, n), n, dtype=np.int64)
    rows = np.arange(n)
    np.minimum.at(first, (is_eval.astype(np.int64), group), rows)
    held = first[1, group]
    return first[is_eval.astype(np.int64), group], np.where((held < n) & ~is_eval, held, -1)


def _duplicates(facts: _Facts) -> _Found:
    rows = np.flatnonzero(facts.copied < np.arange(len(facts.copied)))
    what = (
        f"{_rows(rows, 'repeats', 'repeat')} an earlier one exactly, and would be learnt again "
        "and again; set data.checks.duplicates to drop to keep the first of each"
    )
    return [(rows, facts.copied[rows], what)]


def _near_duplicates(facts: _Facts) -> _Found:
    if facts.near is None:
        return []
    is_first = facts.copied == np.arange(len(facts.copied))
    rows = np.flatnonzero((facts.near.earlier >= 0) & is_first)
    what = (
        f"{_rows(rows, 'is', 'are')} nearly the same as an earlier one (at least "
        f"{minhash.THRESHOLD:.0%} of the character n-grams in common), which teaches their wording "
        "by heart; look at some, then set data.checks.near_duplicates to drop"
    )
    return [(rows, facts.near.earlier[rows], what)]


def _leakage(facts: _Facts) -> _Found:
    if facts.near is None:
        return []
    of = np.where(facts.leaked >= 0, facts.leaked, facts.near.evaluated)
    rows = np.flatnonzero((of >= 0) & ~facts.is_eval)
    exact = int((facts.leaked[rows] >= 0).sum())
    what = (
        f"{_rows(rows, 'repeats', 'repeat', kind='training row')} an evaluation row ({exact:,} "
        f"exactly, {len(rows) - exact:,} nearly), so that the evaluation would measure memory; "
        "leave data.checks.leakage at drop, or take them out of one side"
    )
    return [(rows, of[rows], what)]


def _nothing_trained(facts: _Facts) -> _Found:
    rows = np.flatnonzero(facts.trained_tokens == 0)
    what = (
        f"{_rows(rows, 'has', 'have')} no trained token, and would only cost time; give an answer "
        "a weight other than 0, or let them be dropped"
    )
    return [(rows, None, what)]


def _short_answers(facts: _Facts) -> _Found:
    rows = _flagged(facts, flags.SHORT_ANSWER)
    what = (
        f"{_rows(rows, 'has', 'have')} an answer of at most one character, which teaches to say "
        "nothing more; complete the answers, or set data.checks.short_answers to drop (off if "
        "they are labels)"
    )
    return [(rows, None, what)]


def _boilerplate(facts: _Facts) -> _Found:
    return [
        _repeated(facts.features.openings, "begin", "first"),
        _repeated(facts.features.closings, "end", "last"),
    ]


def _repeated(hashes: NDArray[np.uint64], verb: str, place: str) -> tuple[Rows, Rows | None, str]:
    """Rows whose sentence is a common one, and the first row with that sentence."""
    _, first, group, counts = np.unique(
        hashes, return_index=True, return_inverse=True, return_counts=True
    )
    is_common = counts >= max(BOILERPLATE_ROWS, BOILERPLATE_SHARE * len(hashes))
    rows = np.flatnonzero(is_common[group] & (hashes != 0))
    of = first[group[rows]]
    sentences, most = len(np.unique(of)), int(counts[group[rows]].max(initial=0))
    what = (
        f"the answers of {len(rows):,} rows {verb} with one of {sentences:,} {place} sentences "
        f"that many share (the commonest in {most:,}), which the model will say everywhere; take "
        "the sentence out of the answers, or set data.checks.boilerplate to off if it is meant"
    )
    return rows, of.astype(np.int64), what


def _mojibake(facts: _Facts) -> _Found:
    rows = _flagged(facts, flags.MOJIBAKE)
    what = (
        f"{_rows(rows, 'has', 'have')} text that was decoded with the wrong encoding (as in "
        "`cafÃ©`), which the model would learn to write; read the source again as UTF-8 or GBK, or "
        "set data.checks.mojibake to drop"
    )
    return [(rows, None, what)]


def _control_characters(facts: _Facts) -> _Found:
    rows = _flagged(facts, flags.CONTROL)
    what = (
        f"{_rows(rows, 'has', 'have')} control characters, or characters that turn the direction "
        "of writing round, which nobody sees and the model learns; take them out of the text, or "
        "set data.checks.control_characters to drop"
    )
    return [(rows, None, what)]


def _personal_data(facts: _Facts) -> _Found:
    rows = _flagged(facts, flags.EMAIL | flags.PHONE | flags.ID_NUMBER)
    kinds = ", ".join(
        f"{name} in {len(found):,}"
        for name, flag in _PERSONAL.items()
        if len(found := _flagged(facts, flag))
    )
    what = (
        f"{_rows(rows, 'looks', 'look')} as if they named people ({kinds}), which the model may "
        "repeat to anybody; replace them by made-up ones, or set data.checks.personal_data to drop"
    )
    return [(rows, None, what)]


_PERSONAL = {
    "e-mail addresses": flags.EMAIL,
    "phone numbers": flags.PHONE,
    "identity numbers": flags.ID_NUMBER,
}
_LOOKS: dict[str, Callable[[_Facts], _Found]] = {
    "duplicates": _duplicates,
    "near_duplicates": _near_duplicates,
    "leakage": _leakage,
    "nothing_trained": _nothing_trained,
    "short_answers": _short_answers,
    "boilerplate": _boilerplate,
    "mojibake": _mojibake,
    "control_characters": _control_characters,
    "personal_data": _personal_data,
}


def _flagged(facts: _Facts, flag: int) -> Rows:
    return np.flatnonzero(facts.features.flags & np.uint32(flag))


def _rows(rows: Rows, one: str, many: str, *, kind: str = "row") -> str:
    return f"1 {kind} {one}" if len(rows) == 1 else f"{len(rows):,} {kind}s {many}"
