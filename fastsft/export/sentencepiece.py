"""Turns merges into the scores by which llama.cpp merges as SentencePiece does.  No files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from fastsft.errors import ExportError

Merge = tuple[str, str]

BYTES: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""The tokens of single bytes, which stand for characters that the vocabulary lacks."""


def scores(tokens: Collection[str], merges: Sequence[Merge]) -> dict[str, float]:
    """The score of each token that two others merge into: the earlier, the higher.

    llama.cpp knows no merges for such a vocabulary.  It joins the two neighbours whose joined
    text is the token of the highest score, which is the same as going through the merges in
    order when all merges into one token follow each other and none is missing.  Both are proved
    here.
    Raises: ExportError, with the token, when that is not so.
    """
    found: dict[str, float] = {}
    latest = ""
    for left, right in merges:
        token = left + right
        if token != latest and token in found:
            raise _refused(f"the merges into {token!r} do not follow each other")
        found.setdefault(token, -float(len(found)))
        latest = token
    missing = next((byte for byte in BYTES if byte not in tokens), None)
    if missing is not None:
        raise _refused(f"the token {missing} is missing")
    _prove_whole(tokens, set(merges))
    return found


def _prove_whole(tokens: Collection[str], merges: set[Merge]) -> None:
    """Every way to join two tokens, or characters, into a token has to be a merge."""
    for token in tokens:
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            joins = (len(left) == 1 or left in tokens) and (len(right) == 1 or right in tokens)
            if joins and (left, right) not in merges:
                raise _refused(f"{left!r} and {right!r} do not merge into the token {token!r}")


def _refused(what: str) -> ExportError:
    return ExportError(
        f"llama.cpp would make other tokens of the same text: {what}",
        where="tokenizer.json",
        hint="export with --to merged, or start from a base whose tokenizer has no tokens "
        "added to its vocabulary",
    )
