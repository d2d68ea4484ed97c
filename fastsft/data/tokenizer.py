"""A chat model's tokenizer: text to ids and back, and its template.  No torch, no transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.normalizers import NFC, NFD, NFKC, NFKD

from fastsft import families
from fastsft.data import folder as model_folder
from fastsft.data.folder import TokenizerFiles
from fastsft.data.quick_ids import QuickIds
from fastsft.data.template import ChatTemplate
from fastsft.data.templates import NamedTemplate
from fastsft.data.tokens import QuickTokens, Tokens
from fastsft.errors import DataError
from fastsft.families import Family

METASPACE = "▁"
UNICODE_FORMS = {'"NFC"': NFC, '"NFD"': NFD, '"NFKC"': NFKC, '"NFKD"': NFKD}
PROBE = "\ue000answer\ue000"  # private use: no template looks for it

TURN_ENDS = ("<|im_end|>", "<|eot_id|>")
SPECIAL = re.compile(r"<\|\w+\|>")

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Origin:
    """What a tokenizer was loaded from, so that another process can load the same."""

    folder: Path
    family: Family
    template: NamedTemplate | None

    def load(self) -> ChatTokenizer:
        """The tokenizer again."""
        return ChatTokenizer.load(self.folder, family=self.family, template=self.template)


@dataclass(frozen=True)
class TurnFormat:
    """What the template puts around an answer.

    `lead` is the white space between the generation prompt and the answer (a space for
    Mistral v0.3), which the model has to write itself; `stop` is the token that ends a turn.
    """

    lead: str
    stop: str


class ChatTokenizer:
    """A tokenizer, its chat template, and the ids that starting, stopping and padding need.

    `stop_ids` has every id that generation stops at, the one that ends a turn first.
    `pad_id` is never that one.  `bos_id` is None where the family has no BOS.
    """

    origin: Origin

    def __init__(self, tokenizer: Tokenizer, files: TokenizerFiles, family: Family) -> None:
        self._tokenizer = tokenizer
        self._quick: QuickIds | None = None
        self.base_eos_ids = frozenset(files.eos_ids)
        self.template = ChatTemplate(files.template, files.named, where=files.template_where)
        self.family = family
        self.fingerprint = files.fingerprint
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        steps = _text_steps(files.tokenizer_json)
        self._unicode_forms = [form() for name, form in UNICODE_FORMS.items() if name in steps]
        self._has_metaspace = METASPACE in steps
        self.bos_token = _bos(files.named, family)
        self.bos_id = (
            None if self.bos_token is None else self.require_id(self.bos_token, "bos_token")
        )
        stops = self._stop_tokens(files)
        self._stop = re.compile(r"\s*(" + "|".join(map(re.escape, _longest_first(stops))) + ")")
        self.turn = self._turn_format()
        self.stop_tokens = (self.turn.stop, *(stop for stop in stops if stop != self.turn.stop))
        self.stop_ids = tuple(self.require_id(token, "stop token") for token in self.stop_tokens)
        self.eos_id = self.require_id(files.named.get("eos_token", self.turn.stop), "eos_token")
        self.pad_token = self._choose_pad(files.named.get("pad_token"))
        self.pad_id = self.require_id(self.pad_token, "pad_token")

    @classmethod
    def load(
        cls, folder: Path, *, family: Family | None = None, template: NamedTemplate | None = None
    ) -> ChatTokenizer:
        """The tokenizer of a model folder, with its own template or the one that is given.

        Without `family` it is that of config.json, or where there is none, the one that the
        tokenizer's own tokens give away.

        Raises `DataError` for files that are missing or broken, an unsupported family, a
        template that ends no turn or writes tokens that the vocabulary lacks, and a tokenizer
        without a token to pad with.
        """
        given = None if template is None else (template.source, template.name)
        files = model_folder.read(folder, given)
        try:
            tokenizer = Tokenizer.from_str(files.tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception
            raise DataError(
                f"cannot be read: {error}",
                where=str(folder / "tokenizer.json"),
                hint="download it again; a newer file may need a newer tokenizers package",
            ) from error
        tokenizer.no_truncation()  # both may be saved in the file, and would act in silence
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        if template is not None:
            _require_tokens(template, tokenizer)
        made = cls(tokenizer, files, family or _family(files, tokenizer, folder))
        made.origin = Origin(folder, made.family, template)
        return made

    def quicken(self) -> None:
        """Encode through tiktoken from now on, where it gives the same ids; for many texts."""
        text = (self.origin.folder / "tokenizer.json").read_text("utf-8")
        self._quick = QuickIds.of(text, self._tokenizer)

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens | QuickTokens]:
        """The tokens of each text; nothing is added.

        Of those that were encoded quickly the first is encoded by the tokenizer too.
        """
        quick = [self._quickly(text) for text in texts]
        self._cross_check(texts, quick)
        rest = [text for text, tokens in zip(texts, quick, strict=True) if tokens is None]
        encoded = iter(self._tokenizer.encode_batch(rest, add_special_tokens=False))
        return [Tokens(next(encoded)) if tokens is None else tokens for tokens in quick]

    def _cross_check(self, texts: Sequence[str], quick: Sequence[QuickTokens | None]) -> None:
        found = next(((t, q.ids) for t, q in zip(texts, quick, strict=True) if q is not None), None)
        if found is None or self._quick is None:
            return
        (theirs,) = self._tokenizer.encode_batch([found[0]], add_special_tokens=False)
        if theirs.ids != found[1]:
            self._quick.refuse()
            raise DataError(
                f"tiktoken gives other ids than the model's tokenizer for {found[0][:60]!r}",
                where=self.template.where,
                hint="run it again: this is noted, and the tokenizer's own ids will be taken; "
                "please report it",
            )

    def _quickly(self, text: str) -> QuickTokens | None:
        ids = None if self._quick is None else self._quick.encode(text)
        if ids is None or self._quick is None:
            return None
        tokens = QuickTokens(text, ids, self._quick.byte_lengths)
        return tokens if tokens.is_whole else None

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The exact text of some ids; see `decode_batch`."""
        return self.decode_batch([np.asarray(ids, dtype=np.int64).tolist()])[0]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The exact text of each list of ids, special tokens included, wherever they stood.

        A leading token is put before them and taken off: decoders strip a space at the start.
        """
        first, marker = self.stop_ids[0], self.stop_tokens[0]
        whole = [[first, *ids] for ids in rows]
        texts: list[str] = self._tokenizer.decode_batch(whole, skip_special_tokens=False)
        return [text.removeprefix(marker) for text in texts]

    def stored(self, text: str) -> str:
        """The text as this tokenizer can hold it: Unicode normalised where it normalises."""
        for form in self._unicode_forms:
            text = form.normalize_str(text)
        return text.replace(METASPACE, " ") if self._has_metaspace else text

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        where: str | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        **pinned: object,
    ) -> str:
        """The template's text; see `ChatTemplate.render`."""
        return self.template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            where=where,
            tools=tools,
            **pinned,
        )

    def stop_after(self, text: str, position: int) -> int | None:
        """The end of the stop token at `position`, white space skipped; None if none is there."""
        match = self._stop.match(text, position)
        return match.end() if match else None

    def stops_in(self, text: str) -> Iterator[int]:
        """The ends of all stop tokens in a text."""
        return (match.end() for match in self._stop.finditer(text))

    def special_tokens(self) -> dict[str, int]:
        """The special tokens that the template writes out, with their ids."""
        written = {*SPECIAL.findall(self.template.source), self.turn.stop}
        found = {token: self.token_id(token) for token in sorted(written)}
        return {token: number for token, number in found.items() if number is not None}

    def token_id(self, token: str) -> int | None:
        """The id of one token's text, None when the vocabulary lacks it."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def require_id(self, token: str, what: str) -> int:
        """The id of a token; `DataError` naming `what` it is when the vocabulary lacks it."""
        token_id = self.token_id(token)
        if token_id is None:
            raise DataError(
                f"the {what} {token!r} is not in the vocabulary",
                where=self.template.where,
                hint="restore tokenizer.json and its config from the original repository",
            )
        return token_id

    def _stop_tokens(self, files: TokenizerFiles) -> tuple[str, ...]:
        """Those of tokenizer_config.json, the family and the generation config that exist."""
        listed = [self._tokenizer.id_to_token(token_id) for token_id in files.eos_ids]
        if None in listed:
            raise DataError(
                f"eos_token_id {list(files.eos_ids)} is outside the vocabulary",
                where="generation_config.json",
                hint="restore the file of the model's original repository",
            )
        written = SPECIAL.findall(self.template.source)
        tokens = [files.named.get("eos_token"), *self.family.stop_tokens, *listed]
        tokens += [token for token in written if token in TURN_ENDS]
        known = [token for token in tokens if token and self.token_id(token) is not None]
        return tuple(dict.fromkeys(known))

    def _turn_format(self) -> TurnFormat:
        """Found by rendering one question and answer, with and without the answer."""
        question: dict[str, object] = {"role": "user", "content": "question"}
        text = self.render([question, {"role": "assistant", "content": PROBE}])
        before, found, after = text.partition(PROBE)
        end = self.stop_after(after, 0) if found else None
        if end is None:
            raise DataError(
                "the chat template writes no stop token after the assistant's answer",
                where=self.template.where,
                hint="the model would never learn to stop; take the original repository's template",
            )
        prompt = self.render([question], add_generation_prompt=True)
        lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
        return TurnFormat(lead="" if lead.strip() else lead, stop=after[:end].strip())

    def _choose_pad(self, declared: str | None) -> str:
        candidates = list(self.family.pad_candidates)
        if declared is not None and declared not in self.stop_tokens:
            candidates.insert(0, declared)
        for token in candidates:
            if self.token_id(token) is not None and token != self.turn.stop:
                return token
        raise DataError(
            f"no token to pad with: the tokenizer has none of {', '.join(candidates)}",
            where=self.template.where,
            hint="a stop token cannot pad, it would be masked; name another family or checkpoint",
        )


def _family(files: TokenizerFiles, tokenizer: Tokenizer, folder: Path) -> Family:
    if files.model_config is not None:
        return families.of(files.model_config)
    family = families.of_vocabulary(tokenizer.get_vocab(with_added_tokens=True))
    if family is None:
        raise DataError(
            "no config.json, and the tokens do not tell the model's family",
            where=str(folder),
            hint="name a folder that holds a whole model, config.json included",
        )
    return family


def _bos(named: Mapping[str, str], family: Family) -> str | None:
    return None if family.bos_token is None else named.get("bos_token", family.bos_token)


def _require_tokens(template: NamedTemplate, tokenizer: Tokenizer) -> None:
    """A library template may be put on any base; what it writes must be single tokens there."""
    written = dict.fromkeys(SPECIAL.findall(template.source))
    missing = [token for token in written if tokenizer.token_to_id(token) is None]
    if missing:
        raise DataError(
            f"the template writes {', '.join(missing)}, which the base's vocabulary lacks",
            where=f"data.template: {template.name}",
            hint="alpaca and human-assistant use the base's own end-of-text token and plain words",
        )


def _longest_first(tokens: Sequence[str]) -> list[str]:
    return sorted(tokens, key=len, reverse=True)


def _text_steps(tokenizer_json: str) -> str:
    """What is done to text before it is split, as JSON: names of Unicode forms, "▁" for space."""
    spec = json.loads(tokenizer_json)
    return json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")], ensure_ascii=False)
