"""Makes a row of a process that is gone, from its events, samples and run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from statistics import mean

from fastsft import __version__, cards, estimate, events, meter, recipe_file, sampler
from fastsft.base import Base
from fastsft.bench import row
from fastsft.bench.arms import ArmPlan
from fastsft.bench.machine import BUSY_SHARE
from fastsft.bench.row import Expected, GpuFacts, Row
from fastsft.data import arrays
from fastsft.engine.settings import Resolved
from fastsft.run import Run
from fastsft.sampler import Peaks, Sample
from fastsft.shapes import Shape


@dataclass(frozen=True)
class Subject:
    """What all processes of a bench have in common."""

    bench: str
    recipe: str
    base: Base
    base_name: str
    base_stored: str | None
    is_synthetic: bool
    shape: Shape | None
    overrides: tuple[str, ...]
    has_data: bool
    vram_cap_gib: float | None
    warmup: int
    steps: int
    gpu: GpuFacts | None
    cpu: row.CpuFacts
    system: str
    python: str
    versions: dict[str, str]
    commit: str | None


@dataclass(frozen=True)
class Process:
    """One process that is gone, and what was seen of it from outside."""

    subject: Subject
    arm: ArmPlan
    repeat: int
    order: int
    run: Run
    resolved: Resolved
    expected: Expected
    samples: Sequence[Sample]
    peaks: Peaks
    began_s: float
    others_cpu_share: float
    error: str | None = None
    merge_s: float | None = None
    gguf_s: float | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def told(self) -> list[events.Event]:
        """Its events."""
        return [event for event, _ in events.read(self.run.events_path)]

    @cached_property
    def steps(self) -> list[events.Step]:
        """Its optimizer steps, the warm-up's included."""
        return [event for event in self.told if isinstance(event, events.Step)]

    @property
    def window(self) -> list[events.Step]:
        """The measured steps."""
        return self.steps[self.subject.warmup :]

    @cached_property
    def measured(self) -> events.Measured | None:
        """None where the process ended early."""
        found = [event for event in self.told if isinstance(event, events.Measured)]
        return found[-1] if found else None


def row_of(process: Process) -> Row:
    """The process as a row, not judged yet."""
    steps = process.steps
    return Row(
        identity=_identity(process),
        settings=_settings(process),
        work=_work(process),
        time=_time(process),
        rates=_rates(process),
        memory=_memory(process),
        gpu_state=_gpu_state(process),
        losses=[step.loss for step in steps],
        grad_norms=[step.grad_norm for step in steps],
        counts=row.Counts(
            slots=[step.slots for step in steps],
            real_tokens=[step.real_tokens for step in steps],
            trained_tokens=[step.trained_tokens for step in steps],
            documents=[step.documents for step in steps],
        ),
        recompiles=[step.recompiles for step in steps],
        expected=process.expected,
        adapter_norm=process.measured.adapter_norm if process.measured else None,
        others_cpu_share=process.others_cpu_share,
        error=process.error,
        notes=[*process.arm.changes, *process.notes, *_remarks(process)],
        validity=row.Validity(is_valid=False, gates=[]),
    )


def _identity(process: Process) -> row.Identity:
    subject, recipe = process.subject, process.arm.recipe
    return row.Identity(
        bench=subject.bench,
        arm=process.arm.name,
        repeat=process.repeat,
        order=process.order,
        recipe=subject.recipe,
        recipe_hash=recipe_file.digest(recipe),
        engine=recipe.engine,
        base=row.Base(
            name=subject.base_name,
            params=subject.shape.params if subject.shape else None,
            is_synthetic=subject.is_synthetic,
            fingerprint=subject.base.fingerprint,
            stored=subject.base_stored,
        ),
        fastsft=__version__,
        commit=subject.commit,
        versions=subject.versions,
        gpu=subject.gpu,
        vram_cap_gib=subject.vram_cap_gib,
        cpu=subject.cpu,
        os=subject.system,
        python=subject.python,
        seed=recipe.train.seed,
        tokens_sha256=arrays.load(process.run.tokens_path)[0].sha256(),
        order_hash=process.measured.order_hash if process.measured else "",
        time_s=process.began_s,
        device=process.run.manifest().get("device"),
        overrides=list(subject.overrides),
        has_data=subject.has_data,
    )


def _settings(process: Process) -> row.Settings:
    recipe, resolved = process.arm.recipe, process.resolved
    return row.Settings(
        quantization=recipe.model.quantization,
        dtype=resolved.dtype,
        gradient_checkpointing=resolved.gradient_checkpointing,
        checkpoint_skip_layers=recipe.train.checkpoint_skip_layers,
        micro_batch_rows=recipe.train.micro_rows,
        accumulation_steps=recipe.train.accumulation_steps,
        max_tokens=recipe.data.max_tokens,
        batching=resolved.batching,
        optimizer=resolved.optimizer,
        rank=recipe.lora.rank,
        targets=list(recipe.lora.targets),
        learning_rate=recipe.train.learning_rate,
        parameters=recipe.train.parameters,
        double_quant=recipe.model.double_quant,
    )


def _work(process: Process) -> row.Work:
    window = process.window
    return row.Work(
        steps=process.subject.steps,
        warmup_steps=process.subject.warmup,
        micro_batches=sum(step.micro_batches for step in window),
        slots=sum(step.slots for step in window),
        real_tokens=sum(step.real_tokens for step in window),
        trained_tokens=sum(step.trained_tokens for step in window),
        documents=sum(step.documents for step in window),
        attention_pairs=sum(step.attention_pairs for step in window),
    )


def _time(process: Process) -> row.Time:
    phases = process.measured.phases_s if process.measured else {}
    seconds = [step.seconds for step in process.steps]
    warmup, window = seconds[: process.subject.warmup], seconds[process.subject.warmup :]
    spread = meter.spread(window)
    return row.Time(
        import_s=phases.get("import"),
        load_s=phases.get("load"),
        preflight_s=phases.get("preflight"),
        first_step_s=phases.get("first_step", seconds[0] if seconds else None),
        to_first_step_s=process.steps[0].time_s - process.began_s if process.steps else None,
        warmup_steps_s=warmup,
        steps_s=window,
        step_median_s=spread.median if spread else None,
        step_p10_s=spread.p10 if spread else None,
        step_p90_s=spread.p90 if spread else None,
        step_mad_s=spread.mad if spread else None,
        save_s=phases.get("save"),
        merge_s=process.merge_s,
        gguf_s=process.gguf_s,
        overhead_share=_share([step.overhead_s for step in process.window], window),
    )


def _share(part: Sequence[float], whole: Sequence[float]) -> float | None:
    return sum(part) / sum(whole) if sum(whole) > 0 else None


def _rates(process: Process) -> row.Rates:
    work, measured = _work(process), process.measured
    seconds = sum(step.seconds for step in process.window)
    if seconds <= 0:
        return row.Rates(trained_tokens_per_s=None, real_tokens_per_s=None, slots_per_s=None)
    model, hardware = _flops_per_s(measured, work.slots / seconds)
    matmul = measured.matmul_flops_per_s if measured else None
    gpu = process.subject.gpu
    peak = cards.of_name(gpu.name, gpu.memory_bytes).peak_flops if gpu else None
    power = _mean_power(process)
    return row.Rates(
        trained_tokens_per_s=work.trained_tokens / seconds,
        real_tokens_per_s=work.real_tokens / seconds,
        slots_per_s=work.slots / seconds,
        model_flops_per_s=model,
        hardware_flops_per_s=hardware,
        matmul_flops_per_s=matmul,
        mfu_of_peak=meter.utilisation(model, peak),
        hfu_of_peak=meter.utilisation(hardware, peak),
        hfu_of_matmul=meter.utilisation(hardware, matmul),
        real_tokens_per_joule=work.real_tokens / seconds / power if power else None,
    )


def _flops_per_s(
    measured: events.Measured | None, slots_per_s: float
) -> tuple[float | None, float | None]:
    """Model's and hardware's FLOP/s of the window.

    The process tells them of all steps but the first; those of the window are as many more as its
    slots are, since a slot costs the same in both.
    """
    if measured is None or not measured.slots_per_s:
        return None, None
    scale = slots_per_s / measured.slots_per_s
    model, hardware = measured.model_flops_per_s, measured.hardware_flops_per_s
    return (
        None if model is None else model * scale,
        None if hardware is None else hardware * scale,
    )


def _memory(process: Process) -> row.Memory:
    measured, outside = process.measured, process.peaks
    phases = {name: dict(peaks) for name, peaks in measured.vram.items()} if measured else {}
    peaks = {
        key: max((peaks[key] for peaks in phases.values() if key in peaks), default=None)
        for key in ("allocated", "active", "reserved")
    }
    predicted = _predicted(process)
    return row.Memory(
        allocated_bytes=peaks["allocated"],
        active_bytes=peaks["active"],
        reserved_bytes=peaks["reserved"],
        process_bytes=outside.process_vram_bytes,
        device_bytes=outside.device_vram_bytes,
        host_rss_bytes=outside.host_rss_bytes,
        pinned_bytes=measured.pinned_bytes if measured else None,
        device_before_bytes=process.samples[0].device_vram_bytes if process.samples else None,
        is_vram_by_difference=outside.is_vram_by_difference,
        phases=phases,
        predicted=predicted,
        error=_error(predicted, peaks["allocated"], outside.process_vram_bytes),
        samples=_thinned(process),
        marks=_marks(process),
    )


def _most(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _predicted(process: Process) -> row.Predicted | None:
    """The estimator's figures for the longest micro-batch; it speaks of GPUs only."""
    subject = process.subject
    if subject.gpu is None or subject.shape is None:
        return None
    length = process.expected.longest_item
    found = estimate.memory(
        subject.shape, estimate.setting_of(process.arm.recipe, length=length, rows=None)
    )
    return row.Predicted(
        allocated_bytes=found.allocated,
        reserved_bytes=found.reserved,
        process_bytes=found.process,
        host_bytes=found.host,
    )


def _error(
    predicted: row.Predicted | None, allocated: int | None, held: int | None
) -> row.PredictionError | None:
    if predicted is None:
        return None
    return row.PredictionError(
        allocated=predicted.allocated_bytes / allocated - 1 if allocated else None,
        process=predicted.process_bytes / held - 1 if held else None,
    )


def _thinned(process: Process) -> list[tuple[float, int, int | None]]:
    """Memory over time, in at most `MAX_SAMPLES` points, while the process was there."""
    known = [
        (
            round(sample.time_s - process.began_s, 3),
            sample.host_rss_bytes,
            sample.process_vram_bytes,
        )
        for sample in process.samples
        if sample.host_rss_bytes is not None
    ]
    return known[:: -(-len(known) // row.MAX_SAMPLES) or 1]


def _marks(process: Process) -> dict[str, float]:
    """Seconds at which phases begin; `load` follows the import of the stack."""
    found: dict[str, float] = {}
    for event in process.told:
        if isinstance(event, events.Phase) and event.name in ("load", "preflight", "train"):
            found[event.name] = event.time_s - process.began_s  # the later of the two loads
    if process.told:
        found["end"] = process.told[-1].time_s - process.began_s
    return {name: round(seconds, 3) for name, seconds in found.items()}


def _in_window(process: Process) -> list[Sample]:
    """Samples of the measured window; all of them where nothing was measured."""
    warmup, steps = process.subject.warmup, process.steps
    if len(steps) <= warmup:
        return list(process.samples)
    since, until = steps[warmup - 1].time_s, steps[-1].time_s
    inside = [sample for sample in process.samples if since <= sample.time_s <= until]
    return inside or list(process.samples)


def _mean_power(process: Process) -> float | None:
    known = [sample.power_w for sample in _in_window(process) if sample.power_w is not None]
    return mean(known) if known else None


def _gpu_state(process: Process) -> row.GpuState | None:
    if process.subject.gpu is None:
        return None
    samples = _in_window(process)
    clocks = [sample.sm_clock_mhz for sample in samples if sample.sm_clock_mhz is not None]
    reasons = reduce(sampler.either, [sample.throttle for sample in samples], None)
    return row.GpuState(
        mean_power_w=_mean_power(process),
        sm_clock_mhz=(min(clocks), max(clocks)) if clocks else None,
        temperature_c=_most([sample.temperature_c for sample in samples]),
        throttle=None if reasons is None else list(sampler.throttle_names(reasons)),
        other_processes=_most([sample.others for sample in samples]),
    )


def _remarks(process: Process) -> list[str]:
    """What lessens the figures without making them wrong."""
    share, found = process.others_cpu_share, []
    if share > BUSY_SHARE:
        found.append(
            f"other processes took {share:.0%} of the processors meanwhile; a quiet machine is "
            "faster, and its repeats differ less"
        )
    epochs = (process.subject.steps + process.subject.warmup) / process.expected.steps_per_epoch
    if epochs > 1:
        found.append(f"the data is short: its rows were trained {epochs:.1f} times")
    return found
