"""Decides which rows are evaluated on, by their content alone.  Reads no file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fractions(exact: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) [N] from the rows' content hashes [N, 2].

    They depend on nothing but what a row says, so a row lands on the same side in every run,
    wherever it stands and whatever else is in the file, and copies of a row land together.
    """
    numbers: NDArray[np.float64] = (exact[:, 0] >> np.uint64(11)) / float(1 << 53)
    return numbers


def evaluated(fractions: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Whether each row is evaluated on: those whose fraction is below `share`."""
    chosen: NDArray[np.bool_] = fractions < share
    return chosen
