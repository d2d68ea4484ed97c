"""The gates of one row: each a condition that its own record meets or not.  Pure."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from fastsft import sampler, stack
from fastsft.bench.gate import gate, not_run, words
from fastsft.bench.row import Counts, Gate, Row

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


def finished(row: Row) -> Gate:
    """The process did every step, and ended by itself."""
    wanted, done = row.work.steps + row.work.warmup_steps, len(row.losses)
    return gate(
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
    return gate(
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
    return gate(
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
        return not_run("adapter", "above zero", "every weight is trained, there is no adapter")
    norm = row.adapter_norm
    return gate(
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
        return not_run("utilisation", wanted, "FLOPs or the matmul were not measured")
    return gate(
        "utilisation",
        done <= peak * MATMUL_TOLERANCE,
        measured=f"{done / peak:.1%} of {peak / 1e12:.3g} TFLOP/s",
        wanted=wanted,
        why="more than a matmul reaches is a fault of the clock, of the count, or of both",
    )


def token_counts(row: Row) -> Gate:
    """The tokens that were counted are those that the token arrays hold."""
    faults = list(_count_faults(row))
    done = (
        f"all {len(row.counts.slots)} steps as worked out from the token arrays"
        if row.expected.order_hash
        else "the order of rows is unknown; steps are within bounds, whole epochs add up"
    )
    return gate(
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
    if not data.order_hash:  # an order that nobody can work out
        yield from _out_of_bounds(row)
    else:
        yield from _unlike(found, data.steps)
        yield from _disordered(row)
    yield from _wrong_window(row)


def _unlike(found: Counts, wanted: Counts) -> Iterator[str]:
    """Steps whose counts are not those of the rows that were fed."""
    for name in ("slots", "real_tokens", "trained_tokens", "documents"):
        pairs = zip(getattr(found, name), getattr(wanted, name), strict=False)
        for step, (counted, held) in enumerate(pairs, 1):
            if counted != held:
                yield f"step {step}: {counted:,} {words(name)} counted, {held:,} in its rows"


def _disordered(row: Row) -> Iterator[str]:
    """Another order of rows than the one that the token arrays and the seed give."""
    told, wanted = row.identity.order_hash, row.expected.order_hash
    if told != wanted:
        yield f"fed in the order {told[:12] or 'unknown'}, the token arrays give {wanted[:12]}"


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
    if size < 1:
        yield f"{size} steps in an epoch"
        return
    for name, held in sums.items():
        values = getattr(found, name)
        for start in range(0, len(values) - size + 1, size):
            if (total := sum(values[start : start + size])) != held:
                epoch = start // size + 1
                yield f"epoch {epoch}: {total:,} {words(name)} counted, {held:,} in the data"


def _wrong_window(row: Row) -> Iterator[str]:
    """The totals of the measured window, against its steps."""
    for name in ("slots", "real_tokens", "trained_tokens", "documents"):
        total = sum(getattr(row.counts, name)[row.work.warmup_steps :])
        told = getattr(row.work, name)
        if total != told:
            yield f"{told:,} {words(name)} in the window, its steps have {total:,}"


def recompilation(row: Row) -> Gate:
    """Nothing was compiled inside the measured window."""
    seen = row.recompiles
    before = seen[row.work.warmup_steps - 1] if len(seen) >= row.work.warmup_steps > 0 else 0
    inside = seen[-1] - before if seen else 0
    return gate(
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
        return not_run("warm-up", wanted, "fewer than three steps were measured")
    per_slot = [seconds / max(n, 1) for seconds, n in zip(steps, slots, strict=True)]
    times = min(_slower(steps, first), _slower(per_slot, first))
    return gate(
        "warm-up",
        times <= SLOW_START,
        measured=f"the first {first} measured took {times:.2f} times the others",
        wanted=wanted,
        why="a window that begins before the pace is steady mixes two paces",
    )


def _slower(values: Sequence[float], first: int) -> float:
    return median(values[:first]) / max(median(values[first:]), 1e-12)


def device(row: Row) -> Gate:
    """The GPU that trained is the one that is described."""
    gpu, told = row.identity.gpu, row.identity.device
    wanted = "the same name by torch and by the driver"
    if gpu is None or told is None:
        why = "there is no GPU here" if gpu is None else "the process did not tell its device"
        return not_run("device", wanted, why)
    return gate(
        "device",
        told == gpu.name,
        measured=told if told == gpu.name else f"trained on {told}, described is {gpu.name}",
        wanted=wanted,
        why="where there are several GPUs, figures may be filed under the wrong one",
    )


def alone(row: Row) -> Gate:
    """Nobody else used the GPU."""
    if row.gpu_state is None:
        return not_run("alone", "no other process", "there is no GPU here")
    others = row.gpu_state.other_processes
    if others is None:
        return not_run("alone", "no other process", "the driver does not tell who computes")
    return gate(
        "alone",
        others == 0,
        measured=f"{others} other processes on the GPU",
        wanted="no other process",
        why="a shared card is as fast as its neighbours allow",
    )


def throttling(row: Row) -> Gate:
    """The GPU was not slowed down by heat or by its supply."""
    if row.gpu_state is None:
        return not_run("throttling", "none", "there is no GPU here")
    wanted, told = "neither heat nor a failing supply", row.gpu_state.throttle
    if told is None:
        return not_run("throttling", wanted, "the driver does not tell why clocks are low")
    return gate(
        "throttling",
        not HARMFUL & set(told),
        measured=", ".join(told) or "none",
        wanted=wanted,
        why="a card that is too hot is another card",
    )


def host_spill(row: Row) -> Gate:
    """What is in use on the GPU fits it: what torch reserved, CUDA itself, and what was there."""
    gpu, wanted = row.identity.gpu, "no more than there is"
    if gpu is None:
        return not_run("host spill", wanted, "there is no GPU here")
    cap, before = row.identity.vram_cap_gib, row.memory.device_before_bytes
    if row.memory.reserved_bytes is None or (cap is None and before is None):
        return not_run("host spill", wanted, "the memory in use is not known")
    used = row.memory.reserved_bytes + _runtime_bytes(row) + ((before or 0) if cap is None else 0)
    room = gpu.memory_bytes if cap is None else min(gpu.memory_bytes, int(cap * 2**30))
    return gate(
        "host spill",
        used <= room,
        measured=f"{used / 2**30:.2f} GiB in use of {room / 2**30:.2f}",
        wanted=wanted,
        why="Windows and WSL lend host memory to a full card, at a fraction of its speed",
    )


def _runtime_bytes(row: Row) -> int:
    """CUDA's context and kernels: what the process has beyond torch, or should have.

    A process with less than torch reserved is one whose memory spilled, or was not told.
    """
    beyond = (row.memory.process_bytes or 0) - (row.memory.reserved_bytes or 0)
    usual = stack.UNSLOTH if row.identity.engine == "unsloth" else stack.REFERENCE
    return beyond if beyond > 0 else usual.runtime_bytes


ALONE: Sequence[Callable[[Row], Gate]] = (
    finished,
    finite,
    gradients,
    adapter,
    utilisation,
    token_counts,
    recompilation,
    warm_up,
    device,
    alone,
    throttling,
    host_spill,
)
