"""A plan in words: the facts, the table of what was considered, the words to type.  Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from fastsft.cards import Card
from fastsft.hardware import gib
from fastsft.plan import Plan, Settled
from fastsft.plan_problem import USABLE
from fastsft.plan_search import Candidate

COLUMNS = ("", "base", "recomputed", "at once", "needs", "time", "why not")
CHOSEN = "best"
AS_IS = "as it is"


def facts(plan: Plan) -> dict[str, str]:
    """What to know, by name, in the order in which to read it."""
    told = plan.chosen or plan.as_is
    found = {
        "card": _card(plan.card, plan.usable_bytes),
        "rows": _rows(plan),
        "as it is": _as_is(plan),
    }
    if plan.chosen is not None:
        found["best"] = _best(plan, plan.chosen)
    found["memory"] = parts(told)
    if (seconds := plan.seconds(told)) is not None:
        what = "a million tokens" if plan.tokens is None else "an epoch"
        energy = plan.joules(told)
        at_most = "" if energy is None else f", at most {_energy(energy)} by the card"
        found[what] = f"{span(*seconds)}{at_most} ({_pace_source(plan)})"
        found["at once"] = _at_once(plan, told)
    found["RAM"] = _ram(told)
    found["rests on"] = _rests_on(plan)
    return found


def _card(card: Card, usable_bytes: int) -> str:
    state = "free now" if usable_bytes < int(USABLE * card.vram_bytes) else "usable"
    return f"{card.name}, {gib(card.vram_bytes)}, {gib(usable_bytes)} of them {state}"


def _rows(plan: Plan) -> str:
    if plan.rows is None or plan.tokens is None:
        tokens = plan.recipe.data.max_tokens
        return f"each taken to be {tokens:,} tokens long; --data reads the real ones"
    return f"{plan.rows:,}, {plan.tokens:,} tokens an epoch"


def _as_is(plan: Plan) -> str:
    own = plan.as_is
    if own.fits:
        spare = gib(own.spare_bytes)
        return f"fits: needs {gib(own.need_bytes)}, {spare} to spare; {_kind(own)}"
    if own.spare_bytes < 0:
        return f"does not fit: needs {gib(own.need_bytes)}, {gib(-own.spare_bytes)} too much"
    return f"does not fit: pins {gib(own.memory.pinned)} of RAM"


def _best(plan: Plan, chosen: Candidate) -> str:
    needs = f"needs {gib(chosen.need_bytes)}, {gib(chosen.spare_bytes)} to spare"
    if not chosen.changes(plan.recipe) or _is_same(chosen, plan.as_is):
        return "as it is; nothing that fits is faster"
    pace = "" if plan.gain is None else f"{plan.gain:.2f} times as fast (estimate), "
    return f"{pace}{needs}; {_kind(chosen)}"


def _is_same(one: Candidate, other: Candidate) -> bool:
    return one.values == other.values


def _kind(candidate: Candidate) -> str:
    setting = candidate.setting
    rows = f"{setting.rows} x {candidate.accumulation_steps} rows"
    kept = f", {setting.skip_layers} layers kept" if setting.skip_layers else ""
    packed = ", packed" if candidate.packing else ""
    return f"{bits(candidate)}, checkpointing {setting.checkpointing}{kept}, {rows}{packed}"


def bits(candidate: Candidate) -> str:
    """`4-bit` or `16-bit`."""
    return "4-bit" if candidate.setting.quantization == "nf4" else "16-bit"


def parts(candidate: Candidate) -> str:
    """What takes the card's memory, the largest parts first, as estimated."""
    found = candidate.memory
    named = {
        "weights": found.weights,
        "adapter and optimizer": found.adapter + found.gradients + found.optimizer,
        "layers kept": found.kept_layers,
        "hidden states": found.hidden_states,
        "one layer's work": found.working if found.working > found.loss else 0,
        "loss": found.loss if found.loss >= found.working else 0,
        "scratch": found.scratch,
        "CUDA and slack": found.runtime + found.slack,
    }
    falling = sorted(named.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in falling if size > 0.05 * 2**30)


def _ram(candidate: Candidate) -> str:
    pinned = candidate.memory.pinned
    paged = candidate.setting.optimizer == "paged_adamw_8bit"
    for_what = ["hidden states"] * candidate.offloads + ["the optimizer"] * paged
    told = f", of them {gib(pinned)} pinned for {' and '.join(for_what)}" if pinned else ""
    return f"{gib(candidate.memory.host)}{told} (estimate)"


def _at_once(plan: Plan, candidate: Candidate) -> str:
    """Tokens of the mean micro-batch, and below how many of them the card is idle."""
    least = plan.busy_from(candidate)
    about = "" if least is None else f"; below some {least:,.0f} the card waits for Python"
    return f"{candidate.batches.slots:,.0f} tokens{about}"


def _pace_source(plan: Plan) -> str:
    if plan.speed.margin is None:
        return "published runs' share of the card's peak"
    return plan.speed.words


def _rests_on(plan: Plan) -> str:
    found = plan.correction
    if found.margin is None:
        return f"{found.words}; some 2 % and 0.2 GiB are kept in reserve"
    return f"{found.words}: times {found.ratio:.3f}, {found.margin:.1%} in reserve"


UNITS = {"h": 3600.0, "min": 60.0, "s": 1.0}


def unit_of(seconds: float) -> str:
    """The unit in which so long a time is told."""
    return next((unit for unit, size in UNITS.items() if seconds >= 1.5 * size), "s")


def span(low_s: float, high_s: float, *, unit: str = "") -> str:
    """`3.1-3.9 h`, in the unit that suits the longer unless one is given."""
    unit = unit or unit_of(high_s)
    low, high = (f"{seconds / UNITS[unit]:.1f}" for seconds in (low_s, high_s))
    return f"{low} {unit}" if low == high else f"{low}-{high} {unit}"


def _energy(joules: float) -> str:
    kilowatt_hours = joules / 3.6e6
    if kilowatt_hours >= 1:
        return f"{kilowatt_hours:.1f} kWh"
    return f"{1000 * kilowatt_hours:.3g} Wh"


def table(plan: Plan) -> list[tuple[str, ...]]:
    """The settings worth telling, the best first: of each kind the fastest that fits, or else the
    one that needs least."""
    shown = told(plan)
    seconds = plan.seconds(shown[0])
    unit = "" if seconds is None else unit_of(seconds[1])
    return [_row(plan, candidate, unit) for candidate in shown]


def told(plan: Plan) -> list[Candidate]:
    """One candidate of each kind; the recipe's own among them."""
    kinds: dict[tuple[Any, ...], Candidate] = {}
    for candidate in plan.considered:
        setting, is_offloaded = candidate.setting, candidate.offloads
        how = "none" if setting.checkpointing == "none" else setting.skip_layers > 0
        kind = (setting.quantization, how, is_offloaded, candidate.packing)
        known = kinds.setdefault(kind, candidate)
        if not known.fits and candidate.need_bytes < known.need_bytes:
            kinds[kind] = candidate
    found = list(kinds.values())
    own = next((c for c in plan.considered if _is_same(c, plan.as_is)), None)
    if own is not None and own not in found:
        found.append(own)
    return [c for c in plan.considered if c in found]


def _row(plan: Plan, candidate: Candidate, unit: str) -> tuple[str, ...]:
    setting, seconds = candidate.setting, plan.seconds(candidate)
    is_own = _is_same(candidate, plan.as_is)
    is_best = plan.chosen is not None and _is_same(candidate, plan.chosen)
    return (
        CHOSEN if is_best else AS_IS if is_own else "",
        bits(candidate) + (", packed" if candidate.packing else ""),
        _recomputed(plan, candidate),
        f"{setting.rows} x {setting.length:,}",
        gib(candidate.need_bytes),
        "n/a" if seconds is None else span(*seconds, unit=unit),
        candidate.lost,
    )


def _recomputed(plan: Plan, candidate: Candidate) -> str:
    """Layers that are recomputed, and where their inputs wait."""
    count, layers = candidate.setting.recomputed_layers(plan.shape), plan.shape.layers
    if not count:
        return "none"
    where = ", host" if candidate.offloads else ""
    return f"{'all' if count == layers else f'{count} of'} {layers}{where}"


def words(plan: Plan) -> str:
    """The `--set` words that make the recipe the best plan; empty where it is already."""
    if plan.chosen is None or _is_same(plan.chosen, plan.as_is):
        return ""
    changes = plan.chosen.changes(plan.recipe)
    return " ".join(f"--set {key}={_value(value)}" for key, value in sorted(changes.items()))


def _value(value: object) -> str:
    return "null" if value is None else str(value).lower()


def as_dict(plan: Plan) -> dict[str, Any]:
    """The whole plan for `--json`; bytes, seconds and joules."""
    return {
        "base": plan.recipe.model.base,
        "shape": plan.shape.name,
        "card": {**asdict(plan.card), "usable_bytes": plan.usable_bytes},
        "rows": plan.rows,
        "tokens": plan.tokens,
        "fits": plan.chosen is not None,
        "as_is": _as_json(plan, plan.as_is),
        "best": None if plan.chosen is None else _as_json(plan, plan.chosen),
        "gain": plan.gain,
        "set": {} if not words(plan) or plan.chosen is None else plan.chosen.changes(plan.recipe),
        "cures": list(plan.cures),
        "notes": list(plan.notes),
        "rests_on": plan.correction.words,
        "considered": [_as_json(plan, candidate) for candidate in plan.considered],
    }


def _as_json(plan: Plan, candidate: Candidate) -> dict[str, Any]:
    seconds = plan.seconds(candidate)
    sizes: Mapping[str, int] = asdict(candidate.memory)
    return {
        **candidate.values,
        "slots": candidate.setting.slots,
        "fits": candidate.fits,
        "need_bytes": candidate.need_bytes,
        "spare_bytes": candidate.spare_bytes,
        "memory_bytes": {**sizes, "process": candidate.memory.process},
        "host_bytes": candidate.memory.host,
        "pinned_bytes": candidate.memory.pinned,
        "seconds": seconds,
        "seconds_of": "epoch" if plan.tokens is not None else "million tokens",
        "joules_at_most": plan.joules(candidate),
        "waits_for_python": candidate.waits,
        "lost": candidate.lost,
    }


def refusal(plan: Plan) -> Iterator[str]:
    """Why nothing fits, and what would have to change."""
    least = min(plan.considered, key=lambda c: c.need_bytes)
    whole = least.memory.weights
    if least.spare_bytes >= 0:
        yield f"the setting that needs least of the card {least.lost}"
    elif whole > plan.usable_bytes:
        yield f"the weights alone take {gib(whole)}, {gib(plan.usable_bytes)} can be had"
    else:
        yield (
            f"the thriftiest setting needs {gib(least.need_bytes)}, "
            f"{gib(plan.usable_bytes)} can be had"
        )
    if plan.cures:
        yield f"would fit with: {', or '.join(plan.cures)}"


def settled(found: Settled) -> dict[str, str]:
    """What the planner decided and predicts for a run, a fact a line."""
    told = {
        _named(key): _decided(found, key, why)
        for key, why in found.why.items()
        if not key.endswith(("_layers", "_steps"))  # told with their partners
    }
    if found.predicted is not None:
        need = gib(found.planned["need_bytes"])
        told["memory"] = f"up to {need} of {gib(found.planned['usable_bytes'])} (estimate)"
    return told


def _named(key: str) -> str:
    return key.partition(".")[2].replace("_", " ")


def _decided(found: Settled, key: str, why: str) -> str:
    section, _, leaf = key.partition(".")
    return f"{getattr(getattr(found.recipe, section), leaf)}: {why}"
