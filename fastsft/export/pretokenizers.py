"""Names in llama.cpp's words how a tokenizer.json splits text.  Knows no vocabulary."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from fastsft.errors import ExportError

Model = Literal["gpt2", "llama"]
Json = Mapping[str, Any]

_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2: Final = _WORDS + r"\p{N}" + _REST
LLAMA3: Final = _WORDS + r"\p{N}{1,3}" + _REST
TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

NAMES: Final[Mapping[tuple[str, bool], str]] = {
    (QWEN2, False): "qwen2",
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "smaug-bpe",
    (TEKKEN, True): "tekken",
}
"""llama.cpp's name for a pattern, by the pattern and whether a whole piece that is a token is
taken before any merge (`ignore_merges`).

Source: llama.cpp 0c1e570 src/llama-vocab.cpp, `llm_tokenizer_bpe` and `llama_vocab::impl::load`.
"""

SPACE: Final = "▁"


@dataclass(frozen=True)
class Difference:
    """A way in which llama.cpp splits otherwise, and whether it shows in a text.

    The text is given as its pieces between special tokens, the first one empty where the text
    begins with a special token.
    """

    note: str
    shows: Callable[[Sequence[str]], bool]


def _tekken_differs(pieces: Sequence[str]) -> bool:
    """Whether the pattern and llama.cpp's version of it split a piece at different places."""
    return any(
        TEKKEN_HERE.pre_tokenize_str(piece) != TEKKEN_THERE.pre_tokenize_str(piece)
        for piece in pieces
        if not piece.isascii()
    )


TEKKEN_HERE: Final = Split(Regex(TEKKEN), "isolated")
TEKKEN_THERE: Final = Split(
    Regex(
        r"[^\r\n\p{L}\p{N}]?(?:(?![a-z])\p{L})*(?:(?![A-Z])\p{L})+|"
        r"[^\r\n\p{L}\p{N}]?(?:(?![a-z])\p{L})+(?:(?![A-Z])\p{L})*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "isolated",
)
"""llama.cpp's version: every letter beyond a-z and A-Z is both small and capital, and marks are
no letters.  Source: llama.cpp 0c1e570 src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_TEKKEN.
"""

_NFC: Final = Difference(
    "the tokenizer composes Unicode (NFC) and llama.cpp does not: text with decomposed accents "
    "becomes other tokens there",
    lambda pieces: not all(unicodedata.is_normalized("NFC", piece) for piece in pieces),
)
_FIRST: Final = Difference(
    "the tokenizer puts a space before a text that begins without a special token and llama.cpp "
    "does not; chats begin with one",
    lambda pieces: pieces[0] != "",
)
_TEKKEN: Final = Difference(
    "llama.cpp splits words with combining marks (Thai, Hindi, Bengali, Tamil, vowelled Arabic) "
    "and words beyond ASCII that go from small letters to capitals at other places than the "
    "tokenizer: the same text becomes other tokens there",
    _tekken_differs,
)
_DIFFERENCES: Final[Mapping[str, Difference]] = {"tekken": _TEKKEN}


@dataclass(frozen=True)
class Splitting:
    """How text is split: llama.cpp's tokenizer `model`, its `pre`-tokenizer, and what differs.

    `has_space_prefix` says that a space goes before a text and after every special token.
    """

    model: Model
    pre: str
    has_space_prefix: bool = False
    differences: tuple[Difference, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What llama.cpp does otherwise, in plain words."""
        return tuple(difference.note for difference in self.differences)

    def covers(self, pieces: Sequence[str]) -> bool:
        """Whether llama.cpp splits a text, given as in `Difference`, as the tokenizer does."""
        return not any(difference.shows(pieces) for difference in self.differences)


def of(tokenizer: Json) -> Splitting:
    """What the `normalizer` and `pre_tokenizer` of a tokenizer.json are called in llama.cpp.

    Raises: ExportError, with the pattern, when llama.cpp has no name for it.
    """
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    splits = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    ignores_merges = bool(tokenizer["model"].get("ignore_merges"))
    if tokenizer["model"].get("byte_fallback"):
        return _sentencepiece(normalizers, splits)
    return _byte_level(normalizers, splits, ignores_merges)


def _steps(step: Json | None, parts: str) -> list[Json]:
    """The steps without the sequences that hold them."""
    if step is None:
        return []
    if step.get("type") == "Sequence":
        return [inner for part in step[parts] for inner in _steps(part, parts)]
    return [step]


def _byte_level(
    normalizers: Sequence[Json], splits: Sequence[Json], ignores_merges: bool
) -> Splitting:
    kinds = [step["type"] for step in normalizers]
    if kinds not in ([], ["NFC"]):
        raise _unknown("normalizer", normalizers)
    if len(splits) != 2 or not _is_split(splits[0]) or not _is_bytes(splits[1]):
        raise _unknown("pre_tokenizer", splits)
    pattern = splits[0]["pattern"].get("Regex", "")
    name = NAMES.get((pattern, ignores_merges))
    if name is None:
        raise _unknown(f"pre_tokenizer (ignore_merges: {ignores_merges})", pattern)
    found = [_NFC] if kinds else []
    found += [_DIFFERENCES[name]] if name in _DIFFERENCES else []
    return Splitting("gpt2", name, differences=tuple(found))


def _is_split(step: Json) -> bool:
    said = (step["type"], step.get("behavior"), step.get("invert"))
    return said == ("Split", "Isolated", False) and isinstance(step.get("pattern"), dict)


def _is_bytes(step: Json) -> bool:
    said = (step["type"], step.get("add_prefix_space"), step.get("use_regex", True))
    return said == ("ByteLevel", False, False)


def _sentencepiece(normalizers: Sequence[Json], splits: Sequence[Json]) -> Splitting:
    """SentencePiece's BPE as tokenizers has it: "▁" for a space, no splitting, byte tokens."""
    if not splits and _is_escape(normalizers[-1:]):
        if len(normalizers) == 1:
            return Splitting("llama", "default")
        if [*normalizers[:-1]] == [{"type": "Prepend", "prepend": SPACE}]:
            return Splitting("llama", "default", has_space_prefix=True)
    if normalizers or len(splits) != 1 or splits[0]["type"] != "Metaspace":
        raise _unknown("normalizer and pre_tokenizer", [*normalizers, *splits])
    said = [splits[0].get(key) for key in ("replacement", "split", "prepend_scheme")]
    if said == [SPACE, False, "never"]:
        return Splitting("llama", "default")
    if said == [SPACE, False, "first"]:
        return Splitting("llama", "default", differences=(_FIRST,))
    raise _unknown("pre_tokenizer", splits)


def _is_escape(steps: Sequence[Json]) -> bool:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return [dict(step) for step in steps] == [replace]


def _unknown(what: str, found: object) -> ExportError:
    return ExportError(
        f"llama.cpp has no name for this {what}: {found}",
        where="tokenizer.json",
        hint="export with --to merged; a GGUF needs the tokenizer of Qwen2.5, Llama 3, "
        "Mistral 7B or Mistral Nemo, so report the model if it is one of these",
    )
