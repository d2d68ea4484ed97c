"""Reads a model folder's tokenizer into what a GGUF says of it.  Loads no model, no llama.cpp."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from fastsft.data import folder as model_folder
from fastsft.errors import ExportError
from fastsft.export import endings, pretokenizers, sentencepiece
from fastsft.export.endings import Endings
from fastsft.export.plan import EMBEDDING
from fastsft.export.pretokenizers import Splitting
from fastsft.export.sentencepiece import Merge
from fastsft.export.trained import Trained
from fastsft.families import Family
from fastsft.weights import Checkpoint

if TYPE_CHECKING:
    import gguf

Json = Mapping[str, Any]

NORMAL: Final = 1
UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5
BYTE: Final = 6
"""Types of tokens.  Source: gguf 0.19 constants.py, `TokenType`; llama.cpp include/llama.h."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says of a tokenizer: `tokens` and their `types` by id, and how text is split.

    `merges` is filled where `splitting.model` is "gpt2", `scores` (by id) where it is "llama".
    `bos_id` is None where the model knows no BOS; a GGUF then names `bos_stand_in`, which
    nothing puts anywhere.  `notes` say what llama.cpp does otherwise than the tokenizer.
    """

    splitting: Splitting
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    ends: Endings
    pad_id: int
    bos_id: int | None
    bos_stand_in: int
    unk_id: int | None
    chat_template: str
    notes: tuple[str, ...]

    @property
    def add_bos(self) -> bool:
        """Whether a prompt begins with BOS; every row that was trained then begins with it."""
        return self.bos_id is not None

    def covers(self, text: str) -> bool:
        """Whether llama.cpp is known to give the tokenizer's own ids for this text."""
        return self.splitting.covers(self._special.split(text))

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Any special token, the longest first, as both find them."""
        kinds = (CONTROL, UNKNOWN, USER_DEFINED)
        found = [t for t, kind in zip(self.tokens, self.types, strict=True) if kind in kinds]
        return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))))

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Adds the `tokenizer.*` fields."""
        writer.add_tokenizer_model(self.splitting.model)
        writer.add_tokenizer_pre(self.splitting.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.splitting.model == "llama":
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.splitting.has_space_prefix)
        else:
            writer.add_token_merges(self.merges)
        self._add_ids(writer)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(False)
        writer.add_chat_template(self.chat_template)

    def _add_ids(self, writer: gguf.GGUFWriter) -> None:
        # Without a BOS of its own llama.cpp would take the token 11.
        writer.add_bos_token_id(self.bos_stand_in if self.bos_id is None else self.bos_id)
        writer.add_eos_token_id(self.ends.eos_id)
        writer.add_eot_token_id(self.ends.eot_id)
        if self.ends.eom_id is not None:
            writer.add_eom_token_id(self.ends.eom_id)
        if self.unk_id is not None:
            writer.add_unk_token_id(self.unk_id)
        writer.add_pad_token_id(self.pad_id)


def of(trained: Trained) -> Vocabulary:
    """The vocabulary that an export of a run gets."""
    embedding = Checkpoint.open(trained.base.folder).tensors[EMBEDDING]
    tokenizer = trained.tokenizer
    return read(
        trained.tokenizer_folder,
        rows=embedding.shape[0],
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        family=trained.base.family,
    )


def read(
    folder: Path,
    *,
    rows: int,
    stop_ids: Sequence[int],
    pad_id: int,
    bos_id: int | None,
    family: Family,
) -> Vocabulary:
    """The vocabulary of a model folder whose embedding has `rows` rows.

    The ids are those that were trained with; the first of `stop_ids` ends a turn.  The chat
    template is that of the folder.
    Raises: ExportError when llama.cpp could not give the tokenizer's own ids, or could not stop
    where the model does; DataError for files that are missing or broken.
    """
    files = model_folder.read(folder)
    spec: dict[str, Any] = json.loads(files.tokenizer_json)
    _require_plain_bpe(spec)
    splitting = pretokenizers.of(spec)
    tokens, types = _tokens(spec, rows)
    hidden, taken = _look_alikes(tokens, types, spec)
    for token_id in hidden:
        tokens[token_id], types[token_id] = _unused(token_id), UNUSED
    ids = _by_text(tokens)
    _require_ids(tokens, types, {*stop_ids, pad_id, *([] if bos_id is None else [bos_id])})
    ends = endings.of(ids, stop_ids)
    merges = _merges(spec)
    is_bpe = splitting.model == "gpt2"
    template_notes = _eos_note(files.named, files.template, tokens[ends.eos_id])
    return Vocabulary(
        splitting=splitting,
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(f"{left} {right}" for left, right in merges) if is_bpe else (),
        scores=() if is_bpe else _scores(tokens, merges),
        ends=ends,
        pad_id=pad_id,
        bos_id=bos_id,
        bos_stand_in=ids.get(family.end_of_text, pad_id),
        unk_id=ids.get(spec["model"].get("unk_token")),
        chat_template=files.template,
        notes=(*splitting.notes, *_end_notes(tokens, ends, stop_ids), *taken, *template_notes),
    )


def _require_plain_bpe(spec: Json) -> None:
    """Raises: ExportError when the merges work in a way that llama.cpp does not have."""
    model = spec["model"]
    odd = {
        key: model.get(key)
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(key)
    }
    if model.get("byte_fallback") and model.get("ignore_merges"):
        odd["ignore_merges"] = True
    if model.get("type") == "BPE" and not odd:
        return
    raise ExportError(
        f"the tokenizer is not one that a GGUF can hold: type {model.get('type')!r} {odd or ''}",
        where="tokenizer.json",
        hint="export with --to merged; a GGUF needs a BPE tokenizer without such options",
    )


def _tokens(spec: Json, rows: int) -> tuple[list[str], list[int]]:
    """Text and kind of every row; rows without a token are unused.

    Raises: ExportError for a token without a row, and for one that strips the space beside it.
    """
    found: dict[int, tuple[str, int]] = {
        token_id: (text, _kind(text, spec)) for text, token_id in spec["model"]["vocab"].items()
    }
    for added in spec.get("added_tokens") or []:
        _require_plain(added)
        kind = CONTROL if added["special"] else USER_DEFINED
        if added["content"] == spec["model"].get("unk_token"):
            kind = UNKNOWN
        found[added["id"]] = (added["content"], kind)
    beyond = sorted(token_id for token_id in found if not 0 <= token_id < rows)
    if beyond:
        raise ExportError(
            f"the token {found[beyond[0]][0]!r} has id {beyond[0]}, but the model has {rows} rows",
            where="tokenizer.json",
            hint="put back the tokenizer of the model's original repository",
        )
    every = [found.get(token_id, (_unused(token_id), UNUSED)) for token_id in range(rows)]
    return [text for text, _ in every], [kind for _, kind in every]


def _kind(text: str, spec: Json) -> int:
    model = spec["model"]
    if text == model.get("unk_token"):
        return UNKNOWN
    return BYTE if model.get("byte_fallback") and text in sentencepiece.BYTES else NORMAL


def _require_plain(added: Json) -> None:
    """Raises: ExportError for a token whose neighbourhood matters; llama.cpp has no such."""
    odd = [key for key in ("single_word", "lstrip", "rstrip") if added.get(key)]
    if odd:
        raise ExportError(
            f"the added token {added['content']!r} is found by {', '.join(odd)}, which a GGUF "
            "cannot say",
            where="tokenizer.json",
            hint=f"set {odd[0]} to false in added_tokens and train again, or use --to merged",
        )


def _unused(token_id: int) -> str:
    """The text of a row without a token, as llama.cpp's own converter has it."""
    return f"[PAD{token_id}]"


def _look_alikes(
    tokens: Sequence[str], types: Sequence[int], spec: Json
) -> tuple[list[int], list[str]]:
    """Plain tokens whose text llama.cpp takes for control tokens: their ids, and notes.

    `</s>` is one of Qwen's.  llama.cpp would make it of a user's `</s>`, and stop there; the
    tokenizer splits that text before it merges, and never makes the token.  Such a token is
    left out; one that may be made can only be told.
    """
    special = endings.ENDS | endings.FILE_ENDS | endings.CONTROLS
    alike = [at for at, text in enumerate(tokens) if text in special and types[at] == NORMAL]
    splitter = _splitter(spec) if alike else None
    hidden = [at for at in alike if splitter and len(splitter.pre_tokenize_str(tokens[at])) > 1]
    return hidden, [
        f"llama.cpp takes {tokens[at]!r} for a control token; to the tokenizer it is text"
        for at in alike
        if at not in hidden
    ]


def _splitter(spec: Json) -> PreTokenizer | None:
    """What splits text before it is merged; its vocabulary, slow to load, is left out."""
    empty = {"model": {"type": "BPE", "vocab": {}, "merges": []}}
    split = {"pre_tokenizer": spec.get("pre_tokenizer")}
    splitter: PreTokenizer | None = Tokenizer.from_str(json.dumps(split | empty)).pre_tokenizer
    return splitter


def _by_text(tokens: Sequence[str]) -> dict[str, int]:
    ids = {text: token_id for token_id, text in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(text for token_id, text in enumerate(tokens) if ids[text] != token_id)
        raise ExportError(
            f"two ids have the text {twice!r}, and llama.cpp finds tokens by their text",
            where="tokenizer.json",
            hint="put back the tokenizer of the model's original repository",
        )
    return ids


def _require_ids(tokens: Sequence[str], types: Sequence[int], used: set[int]) -> None:
    bad = sorted(i for i in used if not 0 <= i < len(tokens) or types[i] == UNUSED)
    if bad:
        raise ExportError(
            f"the stop, pad or BOS token {bad[0]} is not in the vocabulary",
            where="tokenizer.json",
            hint="put back the tokenizer of the model's original repository",
        )


def _merges(spec: Json) -> list[Merge]:
    """The merges in their order; old files have each as one text, new ones as a pair."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in spec["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _scores(tokens: Sequence[str], merges: Sequence[Merge]) -> tuple[float, ...]:
    """By id; a token that nothing merges into comes last, where llama.cpp never looks at it."""
    found = sentencepiece.scores(set(tokens), merges)
    last = -float(len(found))
    return tuple(found.get(token, last) for token in tokens)


def _end_notes(tokens: Sequence[str], ends: Endings, stop_ids: Sequence[int]) -> list[str]:
    others = sorted(ends.all_ids - {*stop_ids})
    texts = ", ".join(tokens[token_id] for token_id in others)
    return [f"llama.cpp also stops at {texts}, which it knows by name"] if others else []


def _eos_note(named: Mapping[str, str], template: str, eos: str) -> list[str]:
    declared = named.get("eos_token", eos)
    if declared == eos or "eos_token" not in template:
        return []
    return [f"the template's eos_token is {declared!r} to the tokenizer, {eos!r} to llama.cpp"]
