"""Encodes float blocks as GGUF stores them: f32, f16, bf16 and q8_0.  Pure numpy, no files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from fastsft.export.rounding import Doubles, Scalar, Scratch, all_finite, narrow
from fastsft.weights import ITEM_BYTES, Bytes, Dtype, Floats, widen

FileType = Literal["f32", "f16", "bf16", "q8_0"]
Encoding = Literal["F32", "F16", "BF16", "Q8_0"]

LLAMA_FILE_TYPES: Mapping[FileType, LlamaFileType] = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
"""What `general.file_type` says."""

QUANTIZATION_VERSION = 2
"""Source: ggml.h, GGML_QNT_VERSION."""

Q8_VALUES = 32
"""Values that share a scale.  Source: ggml-common.h, QK8_0."""
Q8_BYTES = 34  # a float16 scale, then the values as int8

_WANTED: Mapping[FileType, Encoding] = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
_BELOW_HALF = np.float32(0.49999997)
_SIGN = np.uint32(0x80000000)


@dataclass(frozen=True)
class Stored:
    """One tensor as a GGUF holds it; `shape` has the longest stride first, as in torch."""

    name: str
    encoding: Encoding
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return encoded_bytes(self.encoding, math.prod(self.shape))

    @property
    def ggml_type(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.encoding]


def encoding(file_type: FileType, shape: tuple[int, ...]) -> Encoding:
    """How a tensor of this shape is stored in a file of this type.

    Vectors are F32 in every file, and rows that q8_0 cannot cut into blocks are F16.
    Source: llama.cpp b10605, conversion/base.py, `prepare_tensors`.
    """
    if len(shape) < 2:
        return "F32"
    wanted = _WANTED[file_type]
    return "F16" if wanted == "Q8_0" and shape[-1] % Q8_VALUES else wanted


def encoded_bytes(encoding: Encoding, count: int) -> int:
    """Bytes that `count` values take, a whole number of blocks."""
    return count // Q8_VALUES * Q8_BYTES if encoding == "Q8_0" else count * ITEM_BYTES[encoding]


def encode(values: Doubles | Floats, encoding: Encoding, scratch: Scratch) -> Bytes:
    """The stored bytes of `values`, valid until the scratch is next used to encode."""
    if encoding != "Q8_0":
        return narrow(values, encoding, scratch)
    return _q8_0(narrow(values, "F32", scratch).view(np.float32), scratch)


def fits(raw: Bytes, encoding: Encoding, scratch: Scratch) -> bool:
    """Whether no stored value, or scale of values, is infinite or NaN."""
    if encoding != "Q8_0":
        return all_finite(raw, encoding, scratch)
    return bool(np.isfinite(_scales(raw)).all())


def same(one: Bytes, other: Bytes, encoding: Encoding) -> bool:
    """Whether two blocks' bytes mean the same values; a zero's sign means nothing."""
    if encoding == "Q8_0":
        return np.array_equal(one, other)
    plain: Dtype = encoding
    return np.array_equal(widen(one, plain), widen(other, plain))


def interleave(
    values: NDArray[Scalar], head_rows: int, *, width: int, out: NDArray[Scalar]
) -> None:
    """Copies rows of `width` values, whole heads, to `out`: each head's two halves in turns.

    transformers rotates row i of a head with row i + head_rows/2, llama.cpp's `llama` 2i with
    2i + 1.  Source: llama.cpp b10605, conversion/llama.py, `permute`.
    """
    halves = values.reshape(-1, 2, head_rows // 2, width).swapaxes(1, 2)
    np.copyto(out.reshape(halves.shape), halves)


def _scales(raw: Bytes) -> NDArray[np.float16]:
    return raw.reshape(-1, Q8_BYTES)[:, :2].view(np.float16)


def _q8_0(values: Floats, scratch: Scratch) -> Bytes:
    """Blocks of 32: scale d = largest magnitude / 127, values / d to the nearest, half away.

    Source: llama.cpp, ggml-quants.c, `quantize_row_q8_0_ref`, to the bit.  A block whose scale
    has no finite inverse (all values below 4e-37) is stored as zeros; there it overflows.
    """
    blocks = values.reshape(-1, Q8_VALUES)
    work = scratch.take("q8 work", values.size, np.float32).reshape(blocks.shape)
    np.abs(blocks, out=work)
    scale = _row_maxima(work)[:, None] / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0
    with np.errstate(invalid="ignore", over="ignore"):  # not finite: refused by its scale
        np.multiply(blocks, inverse, out=work)
        raw = scratch.take("q8", values.size // Q8_VALUES * Q8_BYTES, np.uint8)
        rows = raw.reshape(-1, Q8_BYTES)
        rows[:, :2] = scale.astype(np.float16).view(np.uint8)
        np.copyto(rows[:, 2:].view(np.int8), _towards_nearest(work, scratch), casting="unsafe")
    return raw


def _row_maxima(values: Floats) -> Floats:
    """The largest value of each row, by columns: rows this short are 3 times as slow by rows."""
    largest = values[:, 0].copy()
    for column in values.T[1:]:
        np.maximum(largest, column, out=largest)
    return largest


def _towards_nearest(values: Floats, scratch: Scratch) -> Floats:
    """Values that truncate to what `values` round to, half away from zero; changes them.

    Adding the float just below one half is exact for this; one half itself would round
    0.49999997 up.
    """
    half = scratch.take("q8 half", values.size, np.float32).reshape(values.shape)
    np.bitwise_and(values.view(np.uint32), _SIGN, out=half.view(np.uint32))
    np.bitwise_or(half.view(np.uint32), _BELOW_HALF.view(np.uint32), out=half.view(np.uint32))
    return np.add(values, half, out=values)
