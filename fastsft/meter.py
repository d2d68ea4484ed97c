"""What is counted and timed, defined once.  Pure: numbers in, numbers out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tokens:
    """Positions of a step, counted three ways.

    `trained`: the loss sees them (label not -100, the first position of a row aside, which has
    nothing before it to be predicted from); `real`: not padding; `slots`: computed.
    """

    trained: int = 0
    real: int = 0
    slots: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.trained + other.trained, self.real + other.real, self.slots + other.slots
        )

    def per_second(self, seconds: float) -> tuple[float, float, float]:
        """Rates of (trained, real, slots)."""
        span = max(seconds, 1e-9)
        return self.trained / span, self.real / span, self.slots / span
