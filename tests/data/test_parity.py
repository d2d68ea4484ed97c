"""Text and ids beside transformers' and mistral-common's, on real tokenizers and templates."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conversations import CONVERSATIONS

from fastsft.data import folder as model_folder
from fastsft.data.encode import encode
from fastsft.data.formats import Conversation
from fastsft.data.render import render
from fastsft.data.template import ChatTemplate
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError

REAL = ("qwen2.5", "llama-3.1", "mistral-v0.3", "mistral-nemo")
Load = Callable[[str], ChatTokenizer]
Find = Callable[[str], Path]


def dicts(chat: Conversation) -> list[dict[str, object]]:
    return [{"role": m.role, "content": m.content} for m in chat.messages]


@cache
def transformers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def theirs(tokenizer: Any, chat: Conversation, **options: object) -> str | None:
    """None where the template refuses the conversation."""
    try:
        return str(tokenizer.apply_chat_template(dicts(chat), tokenize=False, **options))
    except Exception as error:
        assert "roles must alternate" in str(error)
        return None


def ours(template: ChatTemplate, chat: Conversation, **options: Any) -> str | None:
    try:
        return template.render(dicts(chat), **options)
    except DataError:
        return None


@pytest.mark.parametrize("generate", [False, True], ids=["answered", "prompt"])
@pytest.mark.parametrize("name", REAL)
def test_text_is_transformers_text_for_every_template(
    tokenizer_folder: Find, shared_templates: list[Path], name: str, generate: bool
):
    reference = transformers_tokenizer(tokenizer_folder(name))
    files = model_folder.read(tokenizer_folder(name))
    sources = [files.template, *(path.read_text("utf-8") for path in shared_templates)]
    options = {"add_generation_prompt": generate}

    for source in sources:
        template = ChatTemplate(source, files.named, where=name)
        for chat in CONVERSATIONS.values():
            expected = theirs(reference, chat, chat_template=source, **options)
            assert ours(template, chat, **options) == expected


@pytest.mark.parametrize("name", REAL)
def test_ids_are_transformers_ids_for_every_template(
    real_tokenizer: Load, tokenizer_folder: Find, shared_templates: list[Path], name: str
):
    reference = transformers_tokenizer(tokenizer_folder(name))
    tokenizer = real_tokenizer(name)
    sources = [tokenizer.template.source, *(path.read_text("utf-8") for path in shared_templates)]

    for source in sources:
        texts = [theirs(reference, chat, chat_template=source) for chat in CONVERSATIONS.values()]
        known = [text for text in texts if text is not None]
        expected = reference(known, add_special_tokens=False)["input_ids"]
        assert [tokens.ids for tokens in tokenizer.encode_batch(known)] == expected


@pytest.mark.parametrize("name", REAL)
def test_training_ids_are_apply_chat_templates_ids(
    real_tokenizer: Load, tokenizer_folder: Find, name: str
):
    """But for Nemo's system prompt, which its template leaves out of a row with its answer."""
    reference, tokenizer = transformers_tokenizer(tokenizer_folder(name)), real_tokenizer(name)
    chats = [
        chat
        for chat in CONVERSATIONS.values()
        if name != "mistral-nemo" or chat.messages[0].role != "system"
    ]

    for chat in chats:
        found = encode(render(chat, tokenizer), tokenizer).input_ids.tolist()
        assert found == reference.apply_chat_template(dicts(chat))["input_ids"]


MISTRAL_DATA = {
    "mistral-v0.3": "mistral_instruct_tokenizer_240323.model.v3",
    "mistral-nemo": "tekken_240718.json",
}
TYPED = "mistral-common reads no control token in a message; tokenizers does, at generation too"
SPACES = "this tokenizer.json joins runs of spaces first, SentencePiece scores them last"
TRIMS = "the chat template trims answers, mistral-common does not"
TAILS = "mistral-common removes spaces at an answer's end, the chat template does not"
DIFFERENT: Mapping[str, Mapping[str, str]] = {
    "mistral-v0.3": {
        "the user types the mistral stop": TYPED,
        "the user types [/INST]": TYPED,
        "code": SPACES,
        "indented code": SPACES,
        "leading space": SPACES,
        "leading spaces": SPACES,
        "double spaces": SPACES,
        "metaspace": SPACES,
        "system with spaces": SPACES,
        "leading newline": TRIMS,
        "leading newlines": TRIMS,
        "trailing newline": TRIMS,
        "trailing newlines": TRIMS,
        "both sides": TRIMS,
        "no-break space": TRIMS,
        "system and three turns": TRIMS,
    },
    "mistral-nemo": {
        "the user types the mistral stop": TYPED,
        "the user types [/INST]": TYPED,
        "trailing space": TAILS,
        "trailing spaces": TAILS,
        "both sides": TAILS,
    },
}


@cache
def mistral_common(name: str) -> Any:
    import mistral_common
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    data = Path(mistral_common.__file__).parent / "data"
    return MistralTokenizer.from_file(str(data / MISTRAL_DATA[name])).instruct_tokenizer


def mistral_ids(name: str, chat: Conversation) -> list[int]:
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.protocol.instruct.request import InstructRequest

    kinds = {"user": UserMessage, "assistant": AssistantMessage}
    request = InstructRequest(
        messages=[kinds[m.role](content=m.content) for m in chat.messages if m.role in kinds],
        system_prompt=next((m.content for m in chat.messages if m.role == "system"), None),
    )
    return list(mistral_common(name).encode_instruct(request).tokens)


@pytest.mark.parametrize("name", MISTRAL_DATA)
def test_ids_are_mistral_commons_but_for_known_reasons(real_tokenizer: Load, name: str):
    tokenizer = real_tokenizer(name)

    different = {
        title
        for title, chat in CONVERSATIONS.items()
        if encode(render(chat, tokenizer), tokenizer).input_ids.tolist() != mistral_ids(name, chat)
    }

    assert different == set(DIFFERENT[name])
