"""Vocabularies as llama.cpp reads them: GGUF files without weights, and changed tokenizers."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from fastsft.data.tokenizer import ChatTokenizer
from fastsft.export import conversations, llamacpp, vocabulary
from fastsft.export.vocabulary import Vocabulary

Json = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A model's own tokenizer, and the vocabulary that is made of it, written as a GGUF."""

    tokenizer: ChatTokenizer
    vocabulary: Vocabulary
    path: Path

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokenizer's."""
        return [[*map(int, tokens.ids)] for tokens in self.tokenizer.encode_batch(texts)]

    def llama_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """llama.cpp's, which reads special tokens that are written out."""
        with llamacpp.opened(self.path, vocab_only=True) as model:
            return model.tokenize(texts, add_special=False)

    def rendered(self) -> list[str]:
        """Conversations through the model's template: prompts with and without a system prompt."""
        chats = conversations.chats()
        return [self.tokenizer.render(chat, add_generation_prompt=True) for chat in chats]


def write(folder: Path, path: Path, *, more_rows: int = 0) -> Pair:
    """The vocabulary of a model folder, `more_rows` than it has tokens, as a GGUF."""
    return write_for(ChatTokenizer.load(folder), path, more_rows=more_rows)


def write_for(tokenizer: ChatTokenizer, path: Path, *, more_rows: int = 0) -> Pair:
    """As `write`, for a tokenizer that is loaded already."""
    made = vocabulary.read(
        tokenizer.origin.folder,
        rows=tokenizer.vocab_size + more_rows,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        family=tokenizer.family,
    )
    writer = gguf.GGUFWriter(path, "llama")
    made.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Pair(tokenizer, made, path)


def changed(folder: Path, out: Path, change: Callable[[Json], None]) -> Path:
    """A copy of a model's tokenizer whose tokenizer.json was changed."""
    out.mkdir()
    for path in folder.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "tokenizer.json":
            shutil.copyfile(path, out / path.name)
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(spec)
    (out / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    return out
