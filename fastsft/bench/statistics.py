"""What the rows of a bench amount to: medians, bands, and whether a difference is one.  Pure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from statistics import median

from fastsft.bench.row import Arm, Row, Settings, Spread, Summary

ENOUGH = 3
"""Valid rows of an arm from which a median is more than an anecdote.
Source: MLPerf Training takes ten runs, kernel authors three or more."""

PIPELINE = (
    "measured on a CPU, so it speaks of the pipeline (reading, padding, collating, Python) and "
    "not of kernels: no GPU figure follows from it"
)


def summarise(rows: Sequence[Row]) -> Summary:
    """The summary of a bench's rows, one or more; the rows that a gate failed count nowhere."""
    names = list(dict.fromkeys(row.identity.arm for row in rows))
    arms = [_arm([row for row in rows if row.identity.arm == name]) for name in names]
    first = rows[0].identity
    ratio, band, apart = _ratio(arms), _band(arms), differences(rows)
    is_difference = ratio is not None and band is not None and is_outside(ratio, band)
    return Summary(
        bench=first.bench,
        recipe=first.recipe,
        device=first.gpu.name if first.gpu else first.cpu.name,
        speaks_of="pipeline" if first.gpu is None else "settings" if apart else "kernels",
        arms=arms,
        differences=apart,
        ratio=ratio,
        aa_band=band,
        is_difference=is_difference,
        statement=_statement(arms, ratio, band, apart, is_cpu=first.gpu is None),
    )


def differences(rows: Sequence[Row]) -> list[str]:
    """The settings in which the first two arms are not alike, each with both values."""
    first = {row.identity.arm: row.settings for row in reversed(rows)}
    names = list(dict.fromkeys(row.identity.arm for row in rows))[:2]
    return list(_apart(*(first[name] for name in names))) if len(names) == 2 else []


def _apart(one: Settings, other: Settings) -> Iterator[str]:
    for each in fields(Settings):
        mine, its = getattr(one, each.name), getattr(other, each.name)
        if mine != its:
            yield f"{each.name.replace('_', ' ')} {_word(mine)} against {_word(its)}"


def _word(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def is_outside(ratio: float, band: float) -> bool:
    """Whether neither arm's repeats spread as far as the arms lie apart."""
    return max(ratio, 1 / ratio) - 1 > band


def _arm(rows: Sequence[Row]) -> Arm:
    valid = [row for row in rows if row.validity.is_valid]
    first = rows[0].identity

    def over(value: Callable[[Row], float | None]) -> Spread | None:
        known = [found for row in valid if (found := value(row)) is not None]
        if not known:
            return None
        return Spread(median=median(known), low=min(known), high=max(known))

    return Arm(
        arm=first.arm,
        engine=first.engine,
        rows=len(rows),
        valid_rows=len(valid),
        trained_tokens_per_s=over(lambda row: row.rates.trained_tokens_per_s),
        real_tokens_per_s=over(lambda row: row.rates.real_tokens_per_s),
        slots_per_s=over(lambda row: row.rates.slots_per_s),
        step_median_s=over(lambda row: row.time.step_median_s),
        to_first_step_s=over(lambda row: row.time.to_first_step_s),
        allocated_bytes=over(lambda row: row.memory.allocated_bytes),
        process_bytes=over(lambda row: row.memory.process_bytes),
        host_rss_bytes=over(lambda row: row.memory.host_rss_bytes),
        losses=(valid or list(rows))[0].losses,
    )


def _ratio(arms: Sequence[Arm]) -> float | None:
    """The first arm's trained tokens/s over the second's."""
    rates = [arm.trained_tokens_per_s for arm in arms[:2]]
    if len(rates) < 2 or rates[0] is None or rates[1] is None:
        return None
    if min(rates[0].median, rates[1].median) <= 0:
        return None
    return rates[0].median / rates[1].median


def _band(arms: Sequence[Arm]) -> float | None:
    """The widest (highest - lowest) / median among an arm's repeats; None without repeats."""
    spreads = [
        (rate.high - rate.low) / rate.median
        for arm in arms
        if (rate := arm.trained_tokens_per_s) and arm.valid_rows > 1 and rate.median
    ]
    return max(spreads, default=None)


def _statement(
    arms: Sequence[Arm],
    ratio: float | None,
    band: float | None,
    apart: Sequence[str],
    *,
    is_cpu: bool,
) -> str:
    """What may be said, and no more."""
    parts = [_figures(arms, ratio, band), _unlike(apart), _lost(arms), _few(arms)]
    told = ". ".join(part for part in parts if part)
    return f"{told}. {PIPELINE[0].upper()}{PIPELINE[1:]}." if is_cpu else f"{told}."


def _figures(arms: Sequence[Arm], ratio: float | None, band: float | None) -> str:
    if len(arms) == 1:
        return _alone(arms[0], band)
    one, other = arms[0].arm, arms[1].arm
    if ratio is None:
        missing = next((arm.arm for arm in arms if arm.trained_tokens_per_s is None), other)
        return f"{one} and {other} cannot be compared: no row of {missing} is valid"
    said = f"{one} trains {ratio:.2f} times the tokens per second of {other}"
    if band is None:
        return f"{said}; without valid repeats nothing says whether that is more than noise"
    if is_outside(ratio, band):
        return f"{said}, outside of the noise: repeats of one arm differ by {band:.1%} at most"
    return (
        f"no difference between {one} and {other} is shown: the ratio {ratio:.2f} lies within the "
        f"noise, repeats of one arm differ by {band:.1%}"
    )


def _alone(arm: Arm, band: float | None) -> str:
    rate = arm.trained_tokens_per_s
    if rate is None:
        return f"no row of {arm.arm} is valid, so nothing is said"
    noise = "" if band is None else f"; repeats differ by {band:.1%} at most"
    return f"{arm.arm} trains {rate.median:,.0f} tokens per second{noise}"


def _unlike(apart: Sequence[str]) -> str:
    if not apart:
        return ""
    return f"The arms differ in: {'; '.join(apart)}. So this is not a comparison of kernels"


def _lost(arms: Sequence[Arm]) -> str:
    lost = sum(arm.rows - arm.valid_rows for arm in arms)
    if not lost:
        return ""
    return f"{lost} of {sum(arm.rows for arm in arms)} rows failed a gate and count nowhere"


def _few(arms: Sequence[Arm]) -> str:
    fewest = min(arm.valid_rows for arm in arms)
    if fewest >= ENOUGH or fewest == 0:
        return ""
    told = "1 valid repeat is" if fewest == 1 else f"{fewest} valid repeats are"
    return f"{told} fewer than the {ENOUGH} that a claim needs"
