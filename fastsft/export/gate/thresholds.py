"""What an export of each type must keep to, and why.  Numbers only."""

from dataclasses import dataclass

ROUNDING_ERROR: dict[str, float] = {
    **dict.fromkeys(("Q8_0",), 0.02),
    **dict.fromkeys(("Q6_K",), 0.05),
    **dict.fromkeys(("Q5_K", "Q5_1"), 0.09),
    **dict.fromkeys(("Q5_0",), 0.12),
    **dict.fromkeys(("Q4_K", "Q4_1", "IQ4_NL", "IQ4_XS"), 0.18),
    **dict.fromkeys(("Q4_0",), 0.22),
    **dict.fromkeys(("Q3_K",), 0.3),
    **dict.fromkeys(("IQ3_S", "IQ3_XXS"), 0.45),
    **dict.fromkeys(("Q2_K",), 0.6),
    **dict.fromkeys(("IQ2_S", "IQ2_XS", "IQ2_XXS"), 0.7),
}
"""Largest root mean square error of one tensor, as a share of its weights' own, by tensor type.

About 1.6 times the worst of normal, uniform, Student-t (4 degrees) and column-scaled weights
through llama.cpp's quantizer (0.3.36): Q8_0 0.010, Q6_K 0.029, Q5_K 0.053, Q4_K 0.102, Q4_0 0.138,
Q3_K 0.186, IQ3_S 0.278, Q2_K 0.388.  Another tensor in its place gives 1.4, none at all 1.0.
"""

COARSEST = 0.95
"""The same for types below two bits, whose error comes close to the weights themselves."""

ARRIVED = 0.1
"""How far the share of LoRA's change that is stored may lie from 1, beside what a finite number
of weights leaves open (six standard deviations) and the shrinking of coarse types (error²)."""
DEVIATIONS = 6.0
UNDECIDED = 0.5
"""From this uncertainty of that share on, nothing is said: no change and all of it look alike."""

NEAR_TIES = 1e-6
"""Share of values that may lie on the other side of a tie: float64 sums in another order.
Expected about 1e-8 in float32 and 1e-13 in 16 bits; see `blocks`."""

CONVERSATIONS = 300
"""Rendered conversations whose ids must be identical."""


@dataclass(frozen=True)
class Behaviour:
    """What the logits along the reference's own greedy answers must keep to.

    `noise` is the largest difference of a logit that rounding alone explains, as a share of the
    logits' standard deviation: where the reference's two likeliest tokens lie within twice that,
    either may win, and it counts as a tie.  None: greedy tokens are told, not judged.
    `stops` is the share of the answers that end in a stop token which the export must end too.
    """

    mean_cosine: float
    noise: float | None
    stops: float


BFLOAT16_NOISE = 0.2
"""Noise, as below, where the adapter itself had to be computed in bfloat16 for want of memory."""


# Measured on tiny random models, the worst case (no trained model is as undecided): f16 differs
# by 0.010 of logits with deviation 1.28, q8_0 has cosine 0.9995, q4_k_m 0.945.
# (llama-cpp-python 0.3.36 on a CPU); the coarser types follow their rounding error above.
_EXACT = Behaviour(0.99999, 0.005, 1.0)
_HALF = Behaviour(0.9999, 0.02, 1.0)
_BRAIN = Behaviour(0.999, 0.1, 1.0)
_EIGHT = Behaviour(0.999, None, 1.0)
_SIX = Behaviour(0.995, None, 0.9)
_FIVE = Behaviour(0.98, None, 0.75)
_FOUR = Behaviour(0.9, None, 0.75)
_THREE = Behaviour(0.7, None, 0.5)
_TWO = Behaviour(0.3, None, 0.25)

BEHAVIOUR: dict[str, Behaviour] = {
    "f32": _EXACT,
    "float32": _EXACT,
    "lora": _HALF,
    "f16": _HALF,
    "float16": _HALF,
    "bf16": _BRAIN,
    "bfloat16": _BRAIN,
    "q8_0": _EIGHT,
    "q6_k": _SIX,
    "nf4": _FOUR,
}


def behaviour(kind: str) -> Behaviour:
    """What a file of this type (`q8_0`, `bfloat16`, `nf4`) must keep to."""
    if kind in BEHAVIOUR:
        return BEHAVIOUR[kind]
    bits = next((digit for digit in kind if digit.isdigit()), "1")
    return {"5": _FIVE, "4": _FOUR, "3": _THREE}.get(bits, _TWO)
