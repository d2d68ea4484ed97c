"""What a row must satisfy to count: each gate a condition, judged from the record alone.  Pure.

Nothing here looks at the machine: whoever has a row's file can judge it again.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from fastsft import sampler
from fastsft.bench.row import Counts, Gate, Result, Row, Validity

MATMUL_TOLERANCE = 1.05
"""Nothing computes faster than a plain matmul of the same process does; 5 % for clocks that drift
between the two."""

SLOW_START = 2.0
"""How much slower the first measured steps may be than the rest: compiling and autotuning make a
step ten times slower, a busy host by half."""
FIRST_STEPS = 3
"""Their median is judged, so that one hiccup is none."""

HARMFUL = frozenset(sampler.THROTTLE[bit] for bit in (0x8, 0x20, 0x40, 0x80))
"""Reasons for which a card is slower than its own figures: heat, and a failing supply.  A power
limit is none: it is in the record, and GeForce cards run at it."""


@dataclass(frozen=True)
class Band:
    """How far two loss curves of one recipe may lie apart, relatively, and why so far."""

    first: float
    growth: float
    most: float
    why: str

    def at(self, step: int) -> float:
        """The band at a step, counted from 1."""
        return min(self.most, self.first * self.growth ** (step - 1))


BANDS: Mapping[str, Band] = {
    "float32": Band(
        5e-6, 4.0, 0.25, "float32 sums in another order, which Adam magnifies at every step"
    ),
    "bfloat16": Band(0.01, 1.25, 0.25, "8 bits of mantissa rounded otherwise, magnified by Adam"),
    "float16": Band(0.005, 1.25, 0.25, "11 bits of mantissa rounded otherwise, magnified by Adam"),
}
"""Early steps are held tightly, for later ones no two orders of summation agree: Adam's first steps
follow the sign of every gradient, however small.

Source: float32, tiny-qwen2.5 at its own 2e-3, Unsloth against the reference: 3e-7 at steps 1 to 4,
then four times as much at each step up to 2.5e-2 at step 11 and 9.5e-2 at step 30, the loss having
fallen to a thirteenth.  At 1e-4 (tests/engine/test_engine_parity.py) 5e-6 holds for 20 steps.  The
16-bit bands are not measured yet."""

LAYOUT = ("micro_batch_rows", "accumulation_steps", "max_tokens", "batching")
"""Settings by which rows become batches."""
LEARNING = ("quantization", "dtype", "rank", "targets", "learning_rate", "parameters")
"""Settings on which the loss depends."""


def judged(rows: Sequence[Row]) -> list[Row]:
    """The rows with every gate judged, each against its peer."""
    return [replace(row, validity=judge(row, peer_of(row, rows))) for row in rows]


def judge(row: Row, peer: Row | None = None) -> Validity:
    """Every gate of a row; `peer` is the row that it is compared with, None for none."""
    gates = [gate(row) for gate in ALONE] + [gate(row, peer) for gate in TOGETHER]
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


# Gates of one row.


def finished(row: Row) -> Gate:
    """The process did every step, and ended by itself."""
    wanted, done = row.work.steps + row.work.warmup_steps, len(row.losses)
    return _gate(
        "finished",
        row.error is None and done == wanted,
        measured=f"{done} steps" + (f"; {row.error}" if row.error else ""),
        wanted=f"{wanted} steps and no error",
        why="half a run is not the run that is named",
    )


def finite(row: Row) -> Gate:
    """Every loss and every gradient norm is a number."""
    odd = [
        f"{name} {value} at step {step}"
        for name, values in (("loss", row.losses), ("gradient norm", row.grad_norms))
        for step, value in enumerate(values, 1)
        if not math.isfinite(value)
    ]
    return _gate(
        "finite",
        not odd and bool(row.losses),
        measured=odd[0] if odd else f"{len(row.losses)} losses and gradient norms",
        wanted="all finite",
        why="a step that computes no number trains nothing",
    )


def gradients(row: Row) -> Gate:
    """No gradient is zero."""
    zero = [step for step, norm in enumerate(row.grad_norms, 1) if norm == 0]
    least = min((norm for norm in row.grad_norms if norm == norm), default=math.nan)
    return _gate(
        "gradients",
        not zero and bool(row.grad_norms),
        measured=f"zero at step {zero[0]}, {len(zero)} times in all"
        if zero
        else f"smallest norm {least:.3g}",
        wanted="above zero at every step",
        why="speed without gradients is speed without learning",
    )


def adapter(row: Row) -> Gate:
    """The adapter is not as it began, where B is zero."""
    if row.settings.parameters == "all":
        return _not_run("adapter", "above zero", "every weight is trained, there is no adapter")
    norm = row.adapter_norm
    return _gate(
        "adapter",
        norm is not None and math.isfinite(norm) and norm > 0,
        measured="unknown" if norm is None else f"norm of all B {norm:.3g}",
        wanted="above zero",
        why="B begins at zero: a norm of zero means that nothing was learnt",
    )


def utilisation(row: Row) -> Gate:
    """No more arithmetic is claimed than the device can do."""
    done, peak = row.rates.hardware_flops_per_s, row.rates.matmul_flops_per_s
    wanted = f"at most {MATMUL_TOLERANCE:.0%} of a matmul in the same process"
    if done is None or not peak:
        return _not_run("utilisation", wanted, "FLOPs or the matmul were not measured")
    return _gate(
        "utilisation",
        done <= peak * MATMUL_TOLERANCE,
        measured=f"{done / peak:.1%} of {peak / 1e12:.3g} TFLOP/s",
        wanted=wanted,
        why="more than a matmul reaches is a fault of the clock, of the count, or of both",
    )


def token_counts(row: Row) -> Gate:
    """The tokens that were counted are those that the token arrays hold."""
    faults = list(_count_faults(row))
    is_known = row.expected.order_hash == row.identity.order_hash
    done = (
        f"all {len(row.counts.slots)} steps as worked out from the token arrays"
        if is_known
        else "the order of rows is unknown; steps are within bounds, whole epochs add up"
    )
    return _gate(
        "token counts",
        not faults,
        measured=faults[0] if faults else done,
        wanted="trained <= real <= slots, and what the token arrays hold",
        why="tokens per second are worth what the count of tokens is worth",
    )


def _count_faults(row: Row) -> Iterator[str]:
    found, data = row.counts, row.expected
    if len(found.slots) != len(row.losses) or not found.slots:
        yield f"{len(found.slots)} steps counted, {len(row.losses)} steps done"
        return
    for step, (slots, real, trained) in enumerate(
        zip(found.slots, found.real_tokens, found.trained_tokens, strict=True), 1
    ):
        if not 0 < trained <= real <= slots:
            yield f"step {step}: {trained:,} trained, {real:,} real, {slots:,} slots"
    if data.order_hash == row.identity.order_hash:
        yield from _unlike(found, data.steps)
    else:
        yield from _out_of_bounds(row)
    yield from _wrong_window(row)


def _unlike(found: Counts, wanted: Counts) -> Iterator[str]:
    """Steps whose counts are not those of the rows that were fed."""
    for name in ("slots", "real_tokens", "trained_tokens", "documents"):
        pairs = zip(getattr(found, name), getattr(wanted, name), strict=False)
        for step, (counted, held) in enumerate(pairs, 1):
            if counted != held:
                yield f"step {step}: {counted:,} {_words(name)} counted, {held:,} in its rows"


def _out_of_bounds(row: Row) -> Iterator[str]:
    """What no order of rows could give: a step's bounds, and the sums of whole epochs."""
    found, data = row.counts, row.expected
    most = data.items_per_step * data.longest_item
    for step, slots in enumerate(found.slots, 1):
        if slots > most:
            yield f"step {step}: {slots:,} slots, its longest rows would make {most:,}"
    sums = {
        "real_tokens": data.real_tokens,
        "trained_tokens": data.trained_tokens,
        "documents": data.rows,
    }
    size = data.steps_per_epoch
    for name, held in sums.items():
        values = getattr(found, name)
        for start in range(0, len(values) - size + 1, size):
            if (total := sum(values[start : start + size])) != held:
                epoch = start // size + 1
                yield f"epoch {epoch}: {total:,} {_words(name)} counted, {held:,} in the data"


def _wrong_window(row: Row) -> Iterator[str]:
    """The totals of the measured window, against its steps."""
    for name in ("slots", "real_tokens", "trained_tokens", "documents"):
        total = sum(getattr(row.counts, name)[row.work.warmup_steps :])
        told = getattr(row.work, name)
        if total != told:
            yield f"{told:,} {_words(name)} in the window, its steps have {total:,}"


def recompilation(row: Row) -> Gate:
    """Nothing was compiled inside the measured window."""
    seen = row.recompiles
    before = seen[row.work.warmup_steps - 1] if len(seen) >= row.work.warmup_steps > 0 else 0
    inside = seen[-1] - before if seen else 0
    return _gate(
        "recompilation",
        bool(seen) and inside == 0,
        measured=f"{inside} graphs compiled in the window, {before} before it",
        wanted="none in the window",
        why="compiling inside the window measures the compiler",
    )


def warm_up(row: Row) -> Gate:
    """The first measured steps are as fast as the others."""
    steps, slots = row.time.steps_s, row.counts.slots[row.work.warmup_steps :]
    first = min(FIRST_STEPS, len(steps) // 3)
    wanted = f"at most {SLOW_START:g} times the others"
    if not first or len(slots) != len(steps):
        return _not_run("warm-up", wanted, "fewer than three steps were measured")
    per_slot = [seconds / max(n, 1) for seconds, n in zip(steps, slots, strict=True)]
    times = min(_slower(steps, first), _slower(per_slot, first))
    return _gate(
        "warm-up",
        times <= SLOW_START,
        measured=f"the first {first} measured took {times:.2f} times the others",
        wanted=wanted,
        why="a window that begins before the pace is steady mixes two paces",
    )


def _slower(values: Sequence[float], first: int) -> float:
    return median(values[:first]) / max(median(values[first:]), 1e-12)


def alone(row: Row) -> Gate:
    """Nobody else used the GPU."""
    if row.gpu_state is None:
        return _not_run("alone", "no other process", "there is no GPU here")
    others = row.gpu_state.other_processes
    return _gate(
        "alone",
        others == 0,
        measured=f"{others} other processes on the GPU",
        wanted="no other process",
        why="a shared card is as fast as its neighbours allow",
    )


def throttling(row: Row) -> Gate:
    """The GPU was not slowed down by heat or by its supply."""
    if row.gpu_state is None:
        return _not_run("throttling", "none", "there is no GPU here")
    reasons = HARMFUL & set(row.gpu_state.throttle)
    told = ", ".join(row.gpu_state.throttle) or "none"
    return _gate(
        "throttling",
        not reasons,
        measured=told,
        wanted="neither heat nor a failing supply",
        why="a card that is too hot is another card",
    )


def host_spill(row: Row) -> Gate:
    """What was reserved on the GPU fits the GPU."""
    gpu = row.identity.gpu
    if gpu is None:
        return _not_run("host spill", "none", "there is no GPU here")
    cap = row.identity.vram_cap_gib
    room = gpu.memory_bytes if cap is None else min(gpu.memory_bytes, int(cap * 2**30))
    known = [row.memory.reserved_bytes, row.memory.process_bytes if cap is None else None]
    used = max((count for count in known if count is not None), default=None)
    if used is None:
        return _not_run("host spill", "none", "the memory in use is not known")
    return _gate(
        "host spill",
        used <= room,
        measured=f"{used / 2**30:.2f} GiB used of {room / 2**30:.2f}",
        wanted="no more than the card has",
        why="Windows and WSL lend host memory to a full card, at a fraction of its speed",
    )


# Gates of a row beside its peer.


def same_tokens(row: Row, peer: Row | None) -> Gate:
    """Both rows trained the same tokens, in the same order."""
    wanted = "the peer's tokens, in the peer's order"
    if peer is None:
        return _not_run("same tokens", wanted, "there is no sound row to compare with")
    fault = _other_tokens(row, peer)
    return _gate(
        "same tokens",
        fault is None,
        measured=fault or f"same as {_name(peer)}",
        wanted=wanted,
        why="rates compare only where the work is the same",
    )


def _other_tokens(row: Row, peer: Row) -> str | None:
    one, other = row.identity, peer.identity
    if one.tokens_sha256 != other.tokens_sha256:
        return f"tokens {one.tokens_sha256[:12]}, {_name(peer)} has {other.tokens_sha256[:12]}"
    if _alike(row, peer, LAYOUT):
        if one.order_hash != other.order_hash:
            return f"order {one.order_hash[:12]}, {_name(peer)} has {other.order_hash[:12]}"
        return None
    for name in ("trained_tokens", "documents"):
        mine, its = (sum(getattr(r.counts, name)) for r in (row, peer))
        if _rows_a_step(row) == _rows_a_step(peer) and mine != its:
            return f"{mine:,} {_words(name)}, {_name(peer)} has {its:,}"
    return None


def _rows_a_step(row: Row) -> tuple[int, str]:
    settings = row.settings
    return settings.micro_batch_rows * settings.accumulation_steps, settings.batching


def loss(row: Row, peer: Row | None) -> Gate:
    """The loss is the peer's at every step, but for rounding."""
    band = BANDS.get(row.settings.dtype, BANDS["float16"])
    wanted = f"within {band.first:g} at step 1, growing to {band.most:g}: {band.why}"
    if peer is None:
        return _not_run("loss", wanted, "there is no sound row to compare with")
    if not (_alike(row, peer, LEARNING) and _rows_a_step(row) == _rows_a_step(peer)):
        return _not_run("loss", wanted, f"{_name(peer)} has other settings and may learn otherwise")
    apart = [_apart(*pair) for pair in zip(row.losses, peer.losses, strict=False)]
    off = [step for step, far in enumerate(apart, 1) if not far <= band.at(step)]
    widest = max(apart, default=math.nan)
    return _gate(
        "loss",
        bool(apart) and not off,
        measured=f"{apart[off[0] - 1]:.2g} from {_name(peer)} at step {off[0]}"
        if off
        else f"at most {widest:.2g} from {_name(peer)}",
        wanted=wanted,
        why="another loss is another training, however fast",
    )


def _apart(one: float, other: float) -> float:
    return abs(one - other) / max(abs(other), 1e-12)


def _alike(row: Row, peer: Row, keys: Sequence[str]) -> bool:
    return all(getattr(row.settings, key) == getattr(peer.settings, key) for key in keys)


def _name(row: Row) -> str:
    return f"{row.identity.arm} {row.identity.repeat}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _gate(name: str, is_met: bool, *, measured: str, wanted: str, why: str) -> Gate:
    result: Result = "passed" if is_met else "failed"
    return Gate(name=name, result=result, measured=measured, wanted=wanted, why=why)


def _not_run(name: str, wanted: str, why: str) -> Gate:
    return Gate(name=name, result="not run", measured="", wanted=wanted, why=why)


ALONE: Sequence[Callable[[Row], Gate]] = (
    finished,
    finite,
    gradients,
    adapter,
    utilisation,
    token_counts,
    recompilation,
    warm_up,
    alone,
    throttling,
    host_spill,
)
TOGETHER: Sequence[Callable[[Row, Row | None], Gate]] = (same_tokens, loss)
