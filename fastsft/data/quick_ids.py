"""Encodes text with tiktoken where it gives the ids of the model's own tokenizer.

tiktoken makes the same byte-pair merges several times faster, and gives ids alone.  It is taken
for byte-level vocabularies of a known make only, after both have agreed on probes: every character
of the Basic Multilingual Plane and the emoji, each in context, random runs of the vocabulary's
tokens, and random runs of letters, digits, white space and signs.  Any text that it cannot be
trusted with goes to the model's tokenizer.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fastsft.data import places

NFC = {"type": "NFC"}
NO_NORMALIZER = (None, {"type": "Sequence", "normalizers": []})
PROBES, PROBE_TOKENS = 400, 40
WINDOW = 2048
"""Characters that are probed in one text."""
SIGNS = "aaBsSté好的あ0123  \n\t\r.,;'’!?-_=/()[]<>|#*👍"
FAR = re.compile("[^\u0000-\ud7ff\uf900-\uffff\U0001f000-\U0001faff]")
"""What is not probed: private use, rare scripts and ideographs beyond the BMP."""


class QuickIds:
    """Ids of text, the same as the reference tokenizer's; see `of`."""

    def __init__(
        self, encoding: tiktoken.Encoding, byte_lengths: NDArray[np.int64], *, nfc: bool
    ) -> None:
        self._encoding = encoding
        self._nfc = nfc
        self.byte_lengths = byte_lengths  # [V]

    mark: Path

    @classmethod
    def of(cls, tokenizer_json: str, reference: Tokenizer) -> QuickIds | None:
        """The quick encoder of a tokenizer, or None where it is of another make or disagrees.

        What was proved of a tokenizer once, by this code, is remembered in the cache.
        """
        spec = json.loads(tokenizer_json)
        pattern = _pattern(spec)
        if pattern is None or not _is_byte_level_bpe(spec):
            return None
        letters = _byte_letters()
        added = {token["content"]: token["id"] for token in spec["added_tokens"]}
        vocabulary = spec["model"]["vocab"]
        pieces = {text: _bytes(text, letters) for text in vocabulary if text not in added}
        if None in pieces.values() or len(set(pieces.values())) < len(pieces):
            return None
        ranks = {piece: vocabulary[text] for text, piece in pieces.items() if piece is not None}
        try:
            encoding = tiktoken.Encoding(
                "quick", pat_str=pattern, mergeable_ranks=ranks, special_tokens=added
            )
        except (ValueError, KeyError):
            return None
        lengths = np.zeros(max([*ranks.values(), *added.values()]) + 1, dtype=np.int64)
        for piece, number in ranks.items():
            lengths[number] = len(piece)
        for text, number in added.items():
            lengths[number] = len(text.encode())
        made = cls(encoding, lengths, nfc=spec["normalizer"] == NFC)
        mark = made.mark = _mark(tokenizer_json)
        if _refusal(mark).exists():
            return None
        if not mark.exists():
            if not made._agrees(reference, list(ranks)):
                return None
            _remember(mark)
        return made

    def encode(self, text: str) -> list[int] | None:
        """The ids of a text; None for one that only the reference is trusted with."""
        if self._nfc and not unicodedata.is_normalized("NFC", text):
            return None
        if not text.isascii() and FAR.search(text):
            return None
        return self._encoding.encode(text, allowed_special="all", disallowed_special=())

    def refuse(self) -> None:
        """Note that it was found to differ, so that it is not taken again."""
        _remember(_refusal(self.mark))

    def _agrees(self, reference: Tokenizer, pieces: Sequence[bytes]) -> bool:
        texts = [text for text in _probes(pieces) if self.encode(text) is not None]
        theirs = reference.encode_batch(texts, add_special_tokens=False)
        return all(self.encode(text) == t.ids for text, t in zip(texts, theirs, strict=True))


def _mark(tokenizer_json: str) -> Path:
    """The file that stands for a proof, named by everything that it depends on."""
    versions = f"{tiktoken.__version__} {tokenizers.__version__}".encode()
    code = Path(__file__).read_bytes()
    digest = sha256(b"".join((versions, code, tokenizer_json.encode("utf-8", "surrogatepass"))))
    return places.cache() / "quick" / digest.hexdigest()


def _refusal(mark: Path) -> Path:
    return mark.with_suffix(".differs")


def _remember(mark: Path) -> None:
    with suppress(OSError):  # then it is proved again the next time
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _pattern(spec: Mapping[str, Any]) -> str | None:
    """The regular expression that splits text, where that and bytes are all there is."""
    steps = spec["pre_tokenizer"] or {}
    if steps.get("type") != "Sequence" or len(steps["pretokenizers"]) != 2:
        return None
    split, byte_level = steps["pretokenizers"]
    is_known = (
        (split.get("type"), split.get("behavior"), split.get("invert"))
        == ("Split", "Isolated", False)
        and byte_level.get("type") == "ByteLevel"
        and not byte_level.get("add_prefix_space")
        and not byte_level.get("use_regex")
    )
    return split["pattern"].get("Regex") if is_known else None


def _is_byte_level_bpe(spec: Mapping[str, Any]) -> bool:
    """Whether merging the lowest id first is what this tokenizer does too."""
    model, normalizer = spec["model"], spec["normalizer"]
    has_plain_model = (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and not model.get("byte_fallback")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
    )
    has_plain_text = normalizer in (*NO_NORMALIZER, NFC)
    plain = ("lstrip", "rstrip", "single_word")
    has_plain_added = not any(token.get(key) for token in spec["added_tokens"] for key in plain)
    return has_plain_model and has_plain_text and has_plain_added and _merges_rise(model)


def _merges_rise(model: Mapping[str, Any]) -> bool:
    """Whether the merges come in the order of the ids that they make."""
    vocabulary, last = model["vocab"], -1
    for merge in model["merges"]:
        number = vocabulary.get("".join(merge if isinstance(merge, list) else merge.split(" ")))
        if number is None or number < last:
            return False
        last = number
    return True


def _probes(pieces: Sequence[bytes]) -> Iterator[str]:
    blocks = range(0xD800), range(0xF900, 0x10000), range(0x1F000, 0x1FB00)
    characters = [chr(number) for block in blocks for number in block]
    for start in range(0, len(characters), WINDOW):
        window = characters[start : start + WINDOW]
        yield "".join(f"a{c}b{c}1{c} " for c in window)
    chooser = random.Random(0)
    for _ in range(PROBES):
        yield b"".join(chooser.choices(pieces, k=PROBE_TOKENS)).decode("utf-8", "ignore")
        yield "".join(chooser.choices(SIGNS, k=2 * PROBE_TOKENS))


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte, and the byte.

    Source: GPT-2's vocabulary: printable Latin-1 stands for itself, the other bytes for the
    letters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _bytes(text: str, letters: Mapping[str, int]) -> bytes | None:
    try:
        return bytes(map(letters.__getitem__, text))
    except KeyError:
        return None
