"""The quantised types that llama.cpp makes: names, numbers, sizes, needs.  Quantises nothing."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fastsft.errors import ExportError

BLOCK = 256
"""Weights of one row that a K-quant or IQ-quant packs together.  Source: QK_K in ggml-common.h."""

_ROUGH, _FINE, _PLAIN = 5.5, 6.5625, 8.5  # bits of Q5_K, Q6_K, Q8_0
_HEADS = ("output.weight", "lm_head.weight")
_EMBEDDINGS = ("token_embd.weight", "model.embed_tokens.weight")


@dataclass(frozen=True)
class QuantType:
    """One file type; the bits are a weight's, measured as upper bounds.

    `number` is llama.cpp's `llama_ftype`; `bits` holds for the layers, `head_bits` for the output
    matrix (the embedding where both are one), `odd_bits` for rows that do not divide into blocks,
    which llama.cpp gives a coarser-packed type.
    """

    name: str
    number: int
    bits: float
    head_bits: float = _FINE
    odd_bits: float = 5.5
    needs_imatrix: bool = False


def _rough(name: str, number: int, bits: float) -> QuantType:
    return QuantType(name, number, bits, head_bits=_ROUGH, needs_imatrix=True)


_ALL = (
    QuantType("q4_k_m", 15, 4.81, odd_bits=6.0),
    QuantType("q4_k_s", 14, 4.55, odd_bits=6.0),
    QuantType("q5_k_m", 17, 5.66, odd_bits=6.5),
    QuantType("q5_k_s", 16, 5.51, odd_bits=6.5),
    QuantType("q6_k", 18, 6.57, odd_bits=8.51),
    QuantType("q3_k_l", 13, 4.22, odd_bits=6.0),
    QuantType("q3_k_m", 12, 3.85, odd_bits=6.0),
    QuantType("q3_k_s", 11, 3.45),
    QuantType("q2_k", 10, 2.95),
    QuantType("q2_k_s", 21, 2.73, needs_imatrix=True),
    QuantType("q4_0", 2, 4.51, odd_bits=4.51),
    QuantType("q4_1", 3, 5.01, odd_bits=5.01),
    QuantType("q5_0", 8, 5.51, odd_bits=5.51),
    QuantType("q5_1", 9, 6.01, odd_bits=6.01),
    QuantType("iq4_nl", 25, 4.56, odd_bits=4.56),
    QuantType("iq4_xs", 30, 4.33),
    QuantType("iq3_m", 27, 3.61),
    QuantType("iq3_s", 26, 3.46),
    QuantType("iq3_xs", 22, 3.29, needs_imatrix=True),
    _rough("iq3_xxs", 23, 3.23),
    _rough("iq2_m", 29, 2.75),
    _rough("iq2_s", 28, 2.55),
    _rough("iq2_xs", 20, 2.39),
    _rough("iq2_xxs", 19, 2.17),
    _rough("iq1_m", 31, 1.92),
    _rough("iq1_s", 24, 1.76),
    QuantType("tq2_0", 37, 2.26),
    QuantType("tq1_0", 36, 1.91),
    QuantType("q2_0", 41, 2.43, odd_bits=2.43),
    QuantType("q1_0", 40, 1.13, odd_bits=1.13),
)
TYPES: Mapping[str, QuantType] = MappingProxyType({found.name: found for found in _ALL})
"""llama.cpp's quantised file types by lower-case name, less q8_0, which needs no llama.cpp here,
and mxfp4_moe, which leaves a model without experts in q8_0.

Sources: names and numbers, QUANT_OPTIONS in llama.cpp's tools/quantize; bits, its dry run over the
shapes of Qwen2.5 0.5B and 7B, Llama 3.1 8B, 3.2 1B and 3B and Mistral 7B (llama.cpp 0.5.0-dev in
llama-cpp-python 0.3.36), the largest of six; needs, the same dry run's warning.
"""


def named(name: str) -> QuantType:
    """The type of a name.

    Raises: ExportError naming the nearest, when llama.cpp has none of that name.
    """
    if name in TYPES:
        return TYPES[name]
    near = difflib.get_close_matches(name.lower(), TYPES, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise ExportError(
        f"{name} is not a type that llama.cpp quantises to",
        where="--quant",
        hint=f"{guess}The types are {', '.join(TYPES)}",
    )


def estimate(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """About how many bytes the weights take; the file's header comes on top.

    Over the six models of `TYPES` it is never too little, and at most 12 % too much.

    `shapes` are the model's by name, rows first, in GGUF's names or transformers'.
    """
    kind = named(name)
    is_tied = not any(tensor in _HEADS for tensor in shapes)
    heads = _EMBEDDINGS if is_tied else _HEADS
    return sum(
        _nbytes(shape, kind, is_head=tensor in heads, is_embedding=tensor in _EMBEDDINGS)
        for tensor, shape in shapes.items()
    )


def _nbytes(shape: tuple[int, ...], kind: QuantType, *, is_head: bool, is_embedding: bool) -> int:
    elements = 1
    for size in shape:
        elements *= size
    if len(shape) < 2:
        return 4 * elements
    if is_head:
        bits = _PLAIN if shape[-1] % BLOCK else kind.head_bits
    else:
        bits = max(kind.bits, kind.odd_bits) if shape[-1] % BLOCK else kind.bits
        if is_embedding:  # two bits' types keep it in up to four and a half
            bits = max(bits, min(4.5, kind.bits + 1.5))
    return -(-int(elements * bits) // 8) + 32
