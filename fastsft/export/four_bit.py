"""A model's weights through NF4: as 4-bit training sees them, or stored in 4 bits.

The work is a child's, `engine/nf4.py`, through bitsandbytes itself; nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastsft import scoring
from fastsft.base import LIGHT_FILES
from fastsft.child import started
from fastsft.errors import ExportError
from fastsft.export import record, sidecars
from fastsft.export.merge import Progress
from fastsft.export.staging import copy_file
from fastsft.scoring import Dtype, Nf4
from fastsft.weights import INDEX, Checkpoint

_LIBRARIES_BYTES = 3 * 2**29
"""Measured: 0.8 GiB with torch 2.10 and bitsandbytes 0.50 on a CPU, and up to 0.4 GiB that the
allocator keeps of tensors let go."""

_FILE_BYTES = 2**30
"""What is held until it makes a file; `engine/tensor_files.py` has the same."""

_BYTES_A_WEIGHT = 16
"""Of the linear layer in hand: read, quantised, read back.  Measured on 4096 x 4096: 8 and the
codes beside what is read and written (bitsandbytes 0.50 on a CPU)."""

_NOT_COPIED = (INDEX, sidecars.CONFIG, record.NAME, record.VERDICT)


@dataclass(frozen=True)
class FourBitReport:
    """What was written; `relative_error` is how far NF4 moved the weights it holds.

    That is the root mean square of the change over that of the weights: about 0.09 for weights
    that are normally distributed.
    """

    tensors: int
    quantised_tensors: int
    bytes_written: int  # weights only
    relative_error: float
    seconds: float


def dequantised_base(
    base: Path,
    out: Path,
    *,
    double_quant: bool,
    dtype: Dtype | None = None,
    progress: Progress | None = None,
) -> FourBitReport:
    """Writes the folder `out`: `base` with the weights that training in NF4 multiplied with.

    Every linear layer but the output's is quantised and dequantised; the rest stays to the bit.
    `dtype` is what training held the weights in; None is the base's own type, which gives the same
    codes, and values rounded once to that type.

    Raises: ExportError when `base` cannot be read or the child failed; `out` is then not whole.
    """
    arguments = ["dequantise", str(base), str(out)]
    arguments += ["--double-quant"] if double_quant else []
    arguments += ["--dtype", dtype] if dtype else []
    return _converted(base, out, arguments, progress)


def write(
    merged: Path,
    out: Path,
    *,
    double_quant: bool,
    compute: Dtype | None = None,
    progress: Progress | None = None,
) -> FourBitReport:
    """Writes the folder `out`: `merged` held in NF4, as transformers itself would save it.

    It loads with plain `AutoModelForCausalLM.from_pretrained`, and in vLLM.  `compute` is the type
    that it is multiplied in; None: the type of the merged weights.

    Raises: ExportError when `merged` cannot be read or the child failed; `out` is then not whole.
    """
    arguments = ["quantise", str(merged), str(out), "--compute", compute or _widest(merged)]
    arguments += ["--double-quant"] if double_quant else []
    return _converted(merged, out, arguments, progress)


def ram_bytes(folder: Path) -> int:
    """Memory that either takes at most: the libraries, a file's tensors, and the one in hand."""
    tensors = Checkpoint.open(folder).tensors.values()
    largest = max(tensor.nbytes for tensor in tensors)
    linear = max((t.count for t in tensors if scoring.is_linear(t)), default=0)
    in_hand = max(largest, _BYTES_A_WEIGHT * linear)
    return _LIBRARIES_BYTES + max(_FILE_BYTES, largest) + in_hand


def disk_bytes(folder: Path, *, double_quant: bool) -> int:
    """Bytes of weights that `write` makes of `folder`, to within a few KiB a tensor."""
    tensors = Checkpoint.open(folder).tensors.values()
    nf4 = Nf4(double_quant)
    return sum(scoring.held(tensor, None, nf4) for tensor in tensors)


def _converted(
    source: Path, out: Path, arguments: Sequence[str], progress: Progress | None
) -> FourBitReport:
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ExportError("is not empty", where=str(out), hint="name a new folder")
    for path in sorted({path for glob in LIGHT_FILES for path in source.glob(glob)}):
        if path.name not in _NOT_COPIED and path.is_file():
            copy_file(path, out / path.name)
    with started("fastsft.engine.nf4", arguments, name=f"NF4 of {source.name}") as child:
        while "report" not in (told := child.read()):
            if progress:
                progress(told["done"], told["total"])
    return FourBitReport(**told["report"])


def _widest(folder: Path) -> Dtype:
    kinds = {tensor.dtype for tensor in Checkpoint.open(folder).tensors.values()}
    if "F32" in kinds:
        return "float32"
    return "bfloat16" if "BF16" in kinds else "float16"
