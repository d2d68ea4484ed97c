"""The record of one measured process, and the summary of a bench.  Reads and writes them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fastsft.errors import DataError
from fastsft.run import write_atomically

SCHEMA = 1
SUMMARY = "summary.json"
MAX_SAMPLES = 600
"""Of memory over time; more of them draw no better picture."""

Result = Literal["passed", "failed", "not run"]
_STRICT = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that is trained; `params` is None where its shape is not known.

    `stored`: how its files hold the weights, such as `bfloat16`, or `nf4` for random ones that are
    written in 4 bits; None where that is not known.
    """

    name: str
    params: int | None
    is_synthetic: bool
    fingerprint: str
    stored: str | None = None


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """The GPU as its driver describes it; what it does not tell is None."""

    name: str
    memory_bytes: int
    driver: str
    compute_capability: str
    power_limit_w: float | None = None
    sm_clock_max_mhz: int | None = None
    pcie: str | None = None


@dataclass(frozen=True, kw_only=True)
class CpuFacts:
    """The host's processor and memory; `cores` that this process may use."""

    name: str
    cores: int
    ram_bytes: int


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What ran, on what.  `order` is the process's place in the bench, from 1.

    `device`: as torch names it in the process that trained; `gpu`: as the driver does.
    `tokens_sha256`: of the file that this process read; `overrides`: the recipe's keys that were
    changed, as `key=value`; `has_data`: its data was named too.
    """

    bench: str
    arm: str
    repeat: int
    order: int
    recipe: str
    recipe_hash: str
    engine: str
    base: Base
    fastsft: str
    commit: str | None
    versions: dict[str, str]
    gpu: GpuFacts | None
    vram_cap_gib: float | None
    cpu: CpuFacts
    os: str
    python: str
    seed: int
    tokens_sha256: str
    order_hash: str
    time_s: float
    device: str | None = None
    overrides: list[str] = field(default_factory=list)
    has_data: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the recipe became on this device."""

    quantization: str
    dtype: str
    gradient_checkpointing: str
    checkpoint_skip_layers: int
    micro_batch_rows: int
    accumulation_steps: int
    max_tokens: int
    batching: str
    optimizer: str
    rank: int
    targets: list[str]
    learning_rate: float
    parameters: str = "lora"
    double_quant: bool = True


@dataclass(frozen=True, kw_only=True)
class Work:
    """What was computed in the measured window, the warm-up left out."""

    steps: int
    warmup_steps: int
    micro_batches: int
    slots: int
    real_tokens: int
    trained_tokens: int
    documents: int
    attention_pairs: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of every optimizer step, the warm-up's included; tokens as `meter.py` counts them."""

    slots: list[int]
    real_tokens: list[int]
    trained_tokens: list[int]
    documents: list[int]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the token arrays say of the steps, counted without the trainer (`order.py`).

    An item is a row, or a packed sequence of rows.  `real_tokens` and `trained_tokens` are an
    epoch's.  `order_hash` is empty where the order of rows cannot be worked out.
    """

    order_hash: str
    rows: int
    items: int
    items_per_step: int
    steps_per_epoch: int
    real_tokens: int
    trained_tokens: int
    shortest_item: int
    longest_item: int
    steps: Counts


@dataclass(frozen=True, kw_only=True)
class Time:
    """Seconds.  `steps_s` is every measured step.

    `to_first_step_s` counts from the launch of the process; preparing the data comes before it.
    """

    import_s: float | None
    load_s: float | None
    preflight_s: float | None
    first_step_s: float | None
    to_first_step_s: float | None
    warmup_steps_s: list[float]
    steps_s: list[float]
    step_median_s: float | None
    step_p10_s: float | None
    step_p90_s: float | None
    step_mad_s: float | None
    save_s: float | None
    merge_s: float | None = None
    gguf_s: float | None = None
    overhead_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Per second of the measured window.  Tokens three ways (`meter.py`), FLOPs two ways.

    `mfu_of_peak` and `hfu_of_peak` are shares of the card's dense peak, None where that is not
    known; `hfu_of_matmul` of a matrix product measured in the same process.
    """

    trained_tokens_per_s: float | None
    real_tokens_per_s: float | None
    slots_per_s: float | None
    model_flops_per_s: float | None = None
    hardware_flops_per_s: float | None = None
    matmul_flops_per_s: float | None = None
    mfu_of_peak: float | None = None
    hfu_of_peak: float | None = None
    hfu_of_matmul: float | None = None
    real_tokens_per_joule: float | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the estimator says of the same setting, in bytes."""

    allocated_bytes: int
    reserved_bytes: int
    process_bytes: int
    host_bytes: int


@dataclass(frozen=True, kw_only=True)
class PredictionError:
    """Predicted over measured, less one: +0.05 is 5 % too much."""

    allocated: float | None = None
    process: float | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peaks in bytes.  None is what this device does not have, or nobody could ask.

    `allocated`, `active`, `reserved`: of torch's allocator; `process`, `device`: as the driver
    tells, sampled; `device_before`: what others had in use as the process began.
    `is_vram_by_difference`: the driver did not tell the process's share, so that `process` is what
    the device had in use, less what it had before.  `samples` are (seconds since the start, host,
    process); `marks` are seconds at which phases begin.
    """

    allocated_bytes: int | None
    active_bytes: int | None
    reserved_bytes: int | None
    process_bytes: int | None
    device_bytes: int | None
    host_rss_bytes: int | None
    pinned_bytes: int | None
    device_before_bytes: int | None = None
    is_vram_by_difference: bool = False
    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    predicted: Predicted | None = None
    error: PredictionError | None = None
    samples: list[tuple[float, int, int | None]] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """How the card fared in the measured window; None is what its driver did not tell."""

    mean_power_w: float | None
    sm_clock_mhz: tuple[int, int] | None
    temperature_c: int | None
    throttle: list[str] | None
    other_processes: int | None


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition of a row's worth: what was measured, what was wanted, and why it matters."""

    name: str
    result: Result
    measured: str
    wanted: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Validity:
    """Every gate; the row counts only if none failed."""

    is_valid: bool
    gates: list[Gate]

    @property
    def failed(self) -> list[Gate]:
        """The gates that this row does not pass."""
        return [gate for gate in self.gates if gate.result == "failed"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One process, measured.

    `recompiles` are the graphs that torch.compile had made by each step; `adapter_norm` is the
    norm of all B matrices at the end; `error` is what ended the process early;
    `others_cpu_share` is the part of the machine's processors that other processes took.
    """

    __pydantic_config__ = _STRICT

    schema: int = SCHEMA
    identity: Identity
    settings: Settings
    work: Work
    time: Time
    rates: Rates
    memory: Memory
    gpu_state: GpuState | None
    losses: list[float]
    grad_norms: list[float]
    counts: Counts
    recompiles: list[int]
    expected: Expected
    adapter_norm: float | None = None
    others_cpu_share: float | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    validity: Validity


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Over the valid rows of an arm."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm's figures; None where no row is valid, or the device has none."""

    arm: str
    engine: str
    rows: int
    valid_rows: int
    trained_tokens_per_s: Spread | None
    real_tokens_per_s: Spread | None
    slots_per_s: Spread | None
    step_median_s: Spread | None
    to_first_step_s: Spread | None
    allocated_bytes: Spread | None
    process_bytes: Spread | None
    host_rss_bytes: Spread | None
    losses: list[float]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a bench found.

    `ratio`: the first arm's median trained tokens/s over the second's; `aa_band`: the widest
    relative spread among repeats of one arm; `is_difference`: the ratio lies outside of it.
    `differences`: the settings in which the arms are not alike; where there are any, the ratio
    speaks of those too, and not of kernels.
    """

    __pydantic_config__ = _STRICT

    schema: int = SCHEMA
    bench: str
    recipe: str
    device: str
    speaks_of: Literal["pipeline", "kernels", "settings"]
    arms: list[Arm]
    differences: list[str] = field(default_factory=list)
    ratio: float | None
    aa_band: float | None
    is_difference: bool
    statement: str


_ROW = TypeAdapter(Row)
_SUMMARY = TypeAdapter(Summary)


def text(record: Row | Summary) -> str:
    """The record as JSON; a number that is not finite becomes a string."""
    adapter: TypeAdapter[Any] = _ROW if isinstance(record, Row) else _SUMMARY
    return adapter.dump_json(record, indent=1).decode() + "\n"


def as_dict(record: Row | Summary) -> dict[str, Any]:
    """The record as JSON values; a number that is not finite is a string."""
    found: dict[str, Any] = json.loads(text(record))
    return found


def row(record: object) -> Row:
    """The row that JSON values stand for; raises ValueError for anything else."""
    return _ROW.validate_python(record)


def summary(record: object) -> Summary:
    """The summary that JSON values stand for; raises ValueError for anything else."""
    return _SUMMARY.validate_python(record)


def write(path: Path, record: Row | Summary) -> None:
    """Replace a file by the record."""
    write_atomically(path, text(record))


def read(path: Path) -> Row:
    """The row of a file.

    Raises DataError when it is none.
    """
    try:
        return _ROW.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _no_record(path, error) from error


def read_summary(path: Path) -> Summary:
    """The summary of a file.

    Raises DataError when it is none.
    """
    try:
        return _SUMMARY.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise _no_record(path, error) from error


def read_folder(folder: Path) -> tuple[list[Row], Summary]:
    """Rows, in the order in which they ran, and summary of a bench's folder.

    Raises DataError when something in it is no record.
    """
    files = [path for path in folder.glob("*.json") if path.name != SUMMARY]
    rows = sorted((read(path) for path in files), key=lambda row: row.identity.order)
    return rows, read_summary(folder / SUMMARY)


def _no_record(path: Path, error: Exception) -> DataError:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        what = str(error)
    return DataError(
        f"not a bench record of schema {SCHEMA}: {what[:200]}",
        where=str(path),
        hint="run the bench again, or leave the file out",
    )
