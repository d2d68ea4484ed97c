"""Cuts a row of tokens into trained and untrained text, for whoever draws it.  Draws nothing."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from fastsft.data.encode import UNTRAINED
from fastsft.data.tokenizer import ChatTokenizer


def segments(
    ids: NDArray[np.int32], labels: NDArray[np.int32], tokenizer: ChatTokenizer
) -> list[tuple[str, bool]]:
    """The row's text in order, in stretches of (text, is it trained); ids and labels are [T]."""
    pairs = zip(ids.tolist(), (labels != UNTRAINED).tolist(), strict=True)
    return [
        (tokenizer.decode([token for token, _ in group]), trained)
        for trained, group in groupby(pairs, key=lambda pair: pair[1])
    ]
