"""Encodes random values in NF4 as bitsandbytes stores them, tensor by tensor.  No torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsft.weights import Floats, StoredDtype

BLOCK = 64
"""Values that share one absmax."""
NESTED_BLOCK = 256
"""Absmax values that share one float32 with double quantisation."""
STATE = "quant_state.bitsandbytes__nf4"
_STATE_BYTES = 256
"""Room for the state's JSON, padded with spaces, so that a file's header can be written first."""

# Source: QLoRA (Dettmers et al. 2023) appendix E, as float32.
_CODE = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)

Piece = tuple[str, StoredDtype, tuple[int, ...]]


def settings(*, double_quant: bool) -> dict[str, object]:
    """The `quantization_config` of a base whose linear layers are stored in NF4."""
    return {
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double_quant,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


def pieces(name: str, shape: tuple[int, ...], *, double_quant: bool) -> list[Piece]:
    """What a file holds of one quantised tensor, in the order of `Codes.parts`.

    Source: bitsandbytes 0.50 `QuantState.as_dict(packed=True)`.
    """
    blocks = int(np.prod(shape)) // BLOCK
    nested = -(-blocks // NESTED_BLOCK)
    absmax: StoredDtype = "U8" if double_quant else "F32"
    found: list[Piece] = [
        (name, "U8", (blocks * BLOCK // 2, 1)),
        (f"{name}.absmax", absmax, (blocks,)),
        (f"{name}.quant_map", "F32", (16,)),
    ]
    if double_quant:
        found.append((f"{name}.nested_absmax", "F32", (nested,)))
        found.append((f"{name}.nested_quant_map", "F32", (256,)))
    return [*found, (f"{name}.{STATE}", "U8", (_STATE_BYTES,))]


@dataclass(frozen=True)
class Codes:
    """Values already quantised, of which tensors take stretches; offsets are multiples of 64."""

    packed: NDArray[np.uint8]  # [N / 2], two codes a byte, the first in the high half
    absmax: Floats  # [N / 64]

    @classmethod
    def of(cls, values: Floats) -> "Codes":
        """The nearest code of each value, by its block's largest."""
        blocks = values.reshape(-1, BLOCK)
        absmax = np.abs(blocks).max(axis=1)
        codes = _nearest(_CODE, (blocks / absmax[:, None]).ravel())
        packed: NDArray[np.uint8] = codes[::2] * np.uint8(16) + codes[1::2]
        return cls(packed, absmax)

    def parts(
        self, offset: int, shape: tuple[int, ...], *, double_quant: bool
    ) -> Iterator[NDArray[np.generic]]:
        """What a file holds of the tensor that starts at value `offset`, over and over.

        In the order of `pieces`; the codes may come in several stretches.
        """
        count = int(np.prod(shape))
        yield from stretches(self.packed, offset // 2, count // 2)
        absmax = np.concatenate([*stretches(self.absmax, offset // BLOCK, count // BLOCK)])
        state: dict[str, object] = {"quant_type": "nf4", "blocksize": BLOCK}
        state |= {"dtype": "bfloat16", "shape": list(shape)}
        if double_quant:
            mean = absmax.mean(dtype=np.float32)
            nested, codes = _nested(absmax - mean)
            yield from (codes, _CODE, nested, _DYNAMIC)
            state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
            state |= {"nested_offset": float(mean)}
        else:
            yield from (absmax, _CODE)
        yield np.frombuffer(json.dumps(state).encode().ljust(_STATE_BYTES), np.uint8)


def stretches(
    values: NDArray[np.generic], offset: int, count: int
) -> Iterator[NDArray[np.generic]]:
    """`count` values from `offset` on; after the last comes the first."""
    while count:
        stretch = values[offset : offset + count]
        yield stretch
        offset, count = 0, count - len(stretch)


def _nested(values: Floats) -> tuple[Floats, NDArray[np.uint8]]:
    """Each 256 values' largest, and the nearest 8-bit code of each value by it."""
    padded = np.zeros(-(-values.size // NESTED_BLOCK) * NESTED_BLOCK, np.float32)
    padded[: values.size] = values
    blocks = padded.reshape(-1, NESTED_BLOCK)
    absmax = np.abs(blocks).max(axis=1)
    scaled = (blocks / np.maximum(absmax, np.float32(1e-38))[:, None]).ravel()[: values.size]
    return absmax, _nearest(_DYNAMIC, scaled)


def _nearest(code: Floats, scaled: Floats) -> NDArray[np.uint8]:
    """The place in `code` of the value next to each; a little at a time, for it gives int64."""
    between = (code[1:] + code[:-1]) / 2
    found = np.empty(scaled.size, np.uint8)
    for at in range(0, scaled.size, 2**20):
        found[at : at + 2**20] = np.searchsorted(between, scaled[at : at + 2**20])
    return found


def _dynamic() -> Floats:
    """bitsandbytes' 8-bit type, rising: fine near zero, coarse near one.

    Source: 8-bit Optimizers via Block-wise Quantization (Dettmers et al. 2021) section 2.1:
    a sign, an exponent of ten in the leading zeros, and what bits are left for the fraction.
    """
    found = [0.0, 1.0]
    for exponent in range(7):
        bounds = np.linspace(0.1, 1, 2**exponent + 1, dtype=np.float32)
        means = np.float32(10.0 ** (exponent - 6)) * ((bounds[:-1] + bounds[1:]) / 2)
        found += [*means.tolist(), *(-means).tolist()]
    return np.array(sorted(found), np.float32)


_DYNAMIC = _dynamic()


def is_ours(config: object) -> bool:
    """Whether a `quantization_config` is one that `settings` writes."""
    return any(config == settings(double_quant=double) for double in (True, False))
