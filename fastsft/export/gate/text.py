"""The gate's second part: the export's text and ids are those that were trained.  Runs no model."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsft.data.template import pin_date
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import BadRow, ExportError
from fastsft.export import conversations, go_template, llamacpp, ollama
from fastsft.export.gate import modelfile
from fastsft.export.gate.gguf_file import GgufFile, open_gguf
from fastsft.export.gate.modelfile import Modelfile
from fastsft.export.gate.thresholds import CONVERSATIONS
from fastsft.export.gate.verdict import Checks, judged
from fastsft.export.llamacpp import LlamaModel
from fastsft.export.record import Record
from fastsft.export.trained import Trained
from fastsft.weights import read_object

Messages = list[dict[str, str]]

_CURE = "export again with --overwrite; if it repeats, please report it with verify.json"
_UNUSED = 5  # llama.cpp's kind of a row without a token; source: include/llama.h
_SHOWN = 60


@dataclass(frozen=True)
class Sample:
    """One conversation, and what was trained on it: text, ids, and both of the prompt alone."""

    messages: Messages
    text: str
    ids: list[int]
    prompt_ids: list[int]


class Texts:
    """The texts to compare on: conversations as the run rendered them, or plain texts.

    Those that `covers` is not true of are left out, and counted.
    """

    def __init__(self, trained: Trained, covers: Callable[[str], bool] | None = None) -> None:
        data = trained.recipe.data
        self.tokenizer = trained.tokenizer
        self.is_raw = trained.recipe.method == "pretrain"
        self._system = data.system
        self._pinned = pin_date(data.date)
        found = self._raw() if self.is_raw else list(self._chats())
        self.samples = [s for s in found if covers is None or covers(s.text)]
        self.left_out = len(found) - len(self.samples)

    def render(self, tokenizer: ChatTokenizer, messages: Messages, *, prompt: bool = False) -> str:
        """The conversation as training renders it, with that tokenizer's template."""
        chat = messages
        if self._system is not None and messages[0]["role"] != "system":
            chat = [{"role": "system", "content": self._system}, *messages]
        return tokenizer.render(chat, add_generation_prompt=prompt, **self._pinned)

    def _raw(self) -> list[Sample]:
        texts = conversations.texts()
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        found = zip(texts, ids_of(self.tokenizer, texts), strict=True)
        return [
            Sample([{"role": "user", "content": text}], text, ids, [*bos, *ids])
            for text, ids in found
        ]

    def _chats(self) -> Iterator[Sample]:
        found = list(self._accepted())
        texts = ids_of(self.tokenizer, [text for _, text, _ in found])
        prompts = ids_of(self.tokenizer, [prompt for _, _, prompt in found])
        for (messages, text, _), ids, prompt_ids in zip(found, texts, prompts, strict=True):
            yield Sample(messages, text, ids, prompt_ids)

    def _accepted(self) -> Iterator[tuple[Messages, str, str]]:
        """The conversations that the template takes; without system prompts where it takes none."""
        for with_system in (True, False):
            count = 0
            for messages in conversations.chats(last="assistant", with_system=with_system):
                try:
                    text = self.render(self.tokenizer, messages)
                    prompt = self.render(self.tokenizer, messages[:-1], prompt=True)
                except BadRow:
                    continue
                count += 1
                yield messages, text, prompt
            if count >= CONVERSATIONS:
                return


def ids_of(tokenizer: ChatTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, as training has them."""
    return [[int(i) for i in tokens.ids] for tokens in tokenizer.encode_batch(texts)]


def check(folder: Path, made: Record, texts: Texts, whole: frozenset[str]) -> Checks:
    """The checks of an export's texts; `whole` are the files that can be read.

    Not for an adapter's GGUF, which brings no vocabulary: the base's has it.
    """
    checks = Checks("text")
    checks.judged(
        "stop ids",
        "export.json",
        f"{[*made.stop_ids]}",
        f"{[*texts.tokenizer.stop_ids]}",
        holds=made.stop_ids == texts.tokenizer.stop_ids,
        cure=_CURE,
    )
    if made.kind in ("merged", "merged-4bit"):
        with judged(checks, "tokenizer", ""):
            _folder(folder, texts, checks)
        return checks
    if texts.left_out:
        checks.notes.append(
            f"{texts.left_out} of {texts.left_out + len(texts.samples)} texts are not compared: "
            "llama.cpp is known to split such text otherwise than the tokenizer"
        )
    asked = _modelfile(folder, made, texts, checks)
    for name in sorted(whole):
        prompts = asked if asked and asked.model == name else None
        with judged(checks, "vocabulary", name):
            _gguf(open_gguf(folder / name), prompts, texts, checks)
    return checks


def _folder(folder: Path, texts: Texts, checks: Checks) -> None:
    """The tokenizer, the template and the stop ids of a model folder."""
    wanted = texts.tokenizer
    path = folder / "generation_config.json"
    stops = read_object(path).get("eos_token_id") if path.is_file() else None
    _equal("stop ids", path.name, stops, [*wanted.stop_ids], checks)
    found = ChatTokenizer.load(folder, family=wanted.family)
    _same_template(found.template.source, "", texts, checks)
    if texts.is_raw:
        ids = ids_of(found, [sample.text for sample in texts.samples])
    else:
        ids = ids_of(found, [texts.render(found, sample.messages) for sample in texts.samples])
    _same_ids("token ids", "tokenizer.json", ids, [s.ids for s in texts.samples], texts, checks)


def _gguf(file: GgufFile, asked: "Prompts | None", texts: Texts, checks: Checks) -> None:
    """The vocabulary, the template and the stop ids of one GGUF; the ids of `asked` through it."""
    name = file.path.name
    _same_template(str(file.fields.get("tokenizer.chat_template")), name, texts, checks)
    if llamacpp.installed() is None:
        _stored_vocabulary(file, texts, checks)
        for of in ("token ids", "stop ids"):
            checks.not_run(of, name, "llama-cpp-python is not installed", cure=llamacpp.INSTALL)
        if asked:
            _same_prompts(_with_bos(asked.texts, texts), texts, checks)
        return
    with llamacpp.opened(file.path, vocab_only=True) as model:
        found = model.tokenize([s.text for s in texts.samples], add_special=False)
        _same_ids("token ids", name, found, [s.ids for s in texts.samples], texts, checks)
        _ends(model, name, texts, checks)
        if asked:
            _same_prompts(model.tokenize(asked.texts, add_special=True), texts, checks)


def _ends(model: LlamaModel, name: str, texts: Texts, checks: Checks) -> None:
    """llama.cpp must end at every stop id, the turn's end first, and begin as training did."""
    told, tokenizer = model.describe(), texts.tokenizer
    ends, stops = set(told.eog_ids), tokenizer.stop_ids
    missing = [stop for stop in stops if stop not in ends]
    threshold = f"{[*stops]}, {stops[0]} as EOS"
    if missing or told.eos_id != stops[0]:
        why = f"ends at {sorted(ends)}, EOS is {told.eos_id}"
        checks.failed("stop ids", name, why, threshold, cure=_CURE)
    else:
        checks.passed("stop ids", name, f"ends at {sorted(ends)}", threshold)
    if others := sorted(ends - {*stops}):
        checks.notes.append(f"{name}: llama.cpp also ends at {others}, which it knows by name")
    begins = told.bos_id if told.add_bos else None
    _equal("BOS", name, begins, tokenizer.bos_id, checks)


def _stored_vocabulary(file: GgufFile, texts: Texts, checks: Checks) -> None:
    """Without llama.cpp: every token of tokenizer.json stands at its id in the file."""
    stored: list[bytes] = file.fields.get("tokenizer.ggml.tokens", [])
    kinds: list[int] = file.fields.get("tokenizer.ggml.token_type", [])
    spec = json.loads((texts.tokenizer.origin.folder / "tokenizer.json").read_text("utf-8"))
    wrong = [
        f"{token!r} is {stored[number].decode(errors='replace')!r}"
        for token, number in _tokens(spec)
        if number < len(stored)
        and stored[number] != token.encode()
        and kinds[number] != _UNUSED  # never made by the tokenizer, left out on purpose
    ]
    short = max(number for _, number in _tokens(spec)) >= len(stored)
    eos = file.fields.get("tokenizer.ggml.eos_token_id")
    if eos != texts.tokenizer.stop_ids[0]:
        wrong.append(f"EOS is {eos}, not {texts.tokenizer.stop_ids[0]}")
    if wrong or short:
        why = "; ".join(wrong[:3]) or f"it has {len(stored)} tokens only"
        checks.failed("vocabulary", file.path.name, why, "that of tokenizer.json", cure=_CURE)
    else:
        measured = f"{len(stored):,} tokens as stored"
        checks.passed("vocabulary", file.path.name, measured, "that of tokenizer.json")


def _tokens(spec: Mapping[str, Any]) -> list[tuple[str, int]]:
    added = [(token["content"], int(token["id"])) for token in spec.get("added_tokens") or []]
    return [*spec["model"]["vocab"].items(), *added]


@dataclass(frozen=True)
class Prompts:
    """What the Modelfile's template makes of each sample's question, for the file it is FROM."""

    model: str
    texts: list[str]


def _modelfile(folder: Path, made: Record, texts: Texts, checks: Checks) -> Prompts | None:
    """The Modelfile's stop tokens, and its template filled as Ollama fills it."""
    path = folder / ollama.NAME
    try:
        told = modelfile.read(path.read_text("utf-8"))
        prompts = Prompts(told.model, [_filled(told, sample) for sample in texts.samples])
    except (OSError, ExportError) as error:
        what = error.what if isinstance(error, ExportError) else "the file is missing"
        checks.failed("token ids", path.name, what, "the trained prompts", cure=_CURE)
        return None
    _equal(
        "stop tokens", path.name, sorted(told.stops), sorted(texts.tokenizer.stop_tokens), checks
    )
    if told.model not in made.files:
        checks.failed("model", path.name, f"FROM names {told.model}", "a file beside it")
        return None
    return prompts


def _filled(told: Modelfile, sample: Sample) -> str:
    asked = sample.messages[:-1] or sample.messages
    return go_template.render(told.template, asked, system=told.system)


def _with_bos(rendered: Sequence[str], texts: Texts) -> list[list[int]]:
    """The ids as llama.cpp begins them, by the tokenizer that was trained."""
    begin = [] if texts.tokenizer.bos_id is None else [texts.tokenizer.bos_id]
    return [[*begin, *ids] for ids in ids_of(texts.tokenizer, rendered)]


def _same_prompts(found: Sequence[Sequence[int]], texts: Texts, checks: Checks) -> None:
    wanted = [sample.prompt_ids for sample in texts.samples]
    _same_ids("token ids", ollama.NAME, found, wanted, texts, checks)


def _same_template(found: str, name: str, texts: Texts, checks: Checks) -> None:
    wanted = texts.tokenizer.template.source
    checks.judged(
        "chat template",
        name,
        f"{len(found):,} characters" if found == wanted else "another template",
        "the one that was trained",
        holds=found == wanted,
        cure="the model would be asked in a form that it was not trained on; " + _CURE,
    )


def _same_ids(
    check: str,
    name: str,
    found: Sequence[Sequence[int]],
    wanted: Sequence[Sequence[int]],
    texts: Texts,
    checks: Checks,
) -> None:
    what = "texts" if texts.is_raw else "conversations"
    threshold = f"{max(CONVERSATIONS, len(wanted))} {what}, the ids that were trained"
    pairs = zip(found, wanted, texts.samples, strict=True)
    wrong = [(list(a), list(b), sample) for a, b, sample in pairs if list(a) != list(b)]
    if not wrong and len(wanted) >= CONVERSATIONS:
        checks.passed(check, name, f"{len(wanted)} {what} identical", threshold)
        return
    why = f"{len(wrong)} of {len(wanted)} {what} differ"
    if wrong:
        theirs, ours, _ = wrong[0]
        at = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), 0)
        near = texts.tokenizer.decode(ours[max(0, at - 4) : at + 4])
        why += f", the first at {near!r:.{_SHOWN}}: {theirs[at : at + 4]} for {ours[at : at + 4]}"
    checks.failed(check, name, why, threshold, cure=_CURE)


def _equal(check: str, name: str, found: object, wanted: object, checks: Checks) -> None:
    checks.judged(check, name, f"{found}", f"{wanted}", holds=found == wanted, cure=_CURE)
