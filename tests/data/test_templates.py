"""The shipped templates: golden texts, the published templates, and what is refused."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from conversations import CONVERSATIONS, turns

from fastsft.data.encode import encode, prove
from fastsft.data.formats import Conversation, Message
from fastsft.data.render import render
from fastsft.data.template import ChatTemplate
from fastsft.data.templates import LIBRARY, NamedTemplate, load
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError, RecipeError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = turns(("system", "S"), ("user", " q1 "), ("assistant", " a1 "), ("user", "q2"))
ANSWERED = turns(*((m.role, m.content) for m in CHAT.messages), ("assistant", "a2"))
PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)

GOLDEN = {
    "chatml": (
        "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\n q1 <|im_end|>\n"
        "<|im_start|>assistant\n a1 <|im_end|>\n<|im_start|>user\nq2<|im_end|>\n"
        "<|im_start|>assistant\n",
        "a2<|im_end|>\n",
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "a2<|eot_id|>",
    ),
    "llama2": (
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n q1 [/INST] a1 </s>[INST] q2 [/INST]",
        " a2 </s>",
    ),
    "mistral-v1": (
        "<s> [INST] S\n\n q1  [/INST]  a1 </s> [INST] q2 [/INST]",
        " a2</s>",
    ),
    "mistral-v3": ("<s>[INST]  q1 [/INST] a1</s>[INST] S\n\nq2[/INST]", " a2</s>"),
    "mistral-tekken": ("<s>[INST] q1 [/INST] a1 </s>[INST]S\n\nq2[/INST]", "a2</s>"),
    "alpaca": (
        "<s>S\n\n### Instruction:\n q1 \n\n### Response:\n a1 </s>\n\n"
        "### Instruction:\nq2\n\n### Response:\n",
        "a2</s>",
    ),
    "human-assistant": (
        "<s>S\n\nHuman:  q1 \n\nAssistant:  a1 </s>\n\nHuman: q2\n\nAssistant:",
        " a2</s>",
    ),
}
"""The prompt at generation, and what the model has to write after it."""


def text(source: str, chat: Conversation, *, generate: bool = False, **named: str) -> str:
    template = ChatTemplate(source, TOKENS | named, where="t.jinja")
    messages = [{"role": m.role, "content": m.content} for m in chat.messages]
    return template.render(messages, add_generation_prompt=generate)


@pytest.mark.parametrize("name", LIBRARY)
def test_a_shipped_template_writes_its_golden_text(name: str):
    prompt, answer = GOLDEN[name]

    assert text(load(name).source, CHAT, generate=True) == prompt
    assert text(load(name).source, ANSWERED) == prompt + answer


@pytest.mark.parametrize("name", LIBRARY)
def test_a_row_without_system_message_gets_none(name: str):
    chat = turns(("user", "q"), ("assistant", "a"))
    own = f"{PREAMBLE}\n\n" if name == "alpaca" else ""

    rendered = text(load(name).source, chat)

    assert rendered.startswith(f"<s>{own}")
    assert rendered.count("q") == 1 + own.count("q")
    assert "system" not in rendered and "SYS" not in rendered


@pytest.mark.parametrize("name", LIBRARY)
def test_a_base_without_bos_gets_none(name: str):
    source = load(name).source
    rendered = ChatTemplate(source, {"eos_token": "</s>"}, where=name).render(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    )

    assert "<s>" + rendered == text(source, turns(("user", "q"), ("assistant", "a")))


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize(
    "roles",
    [
        ("assistant",),
        ("user", "user"),
        ("user", "assistant", "assistant"),
        ("user", "system"),
        ("system", "system", "user"),
        ("user", "tool"),
    ],
    ids="-".join,
)
def test_roles_out_of_turn_are_refused(name: str, roles: tuple[str, ...]):
    chat = Conversation(tuple(Message(role, "x") for role in roles), "t.jsonl:1")  # type: ignore[arg-type]

    with pytest.raises(DataError, match=f"{name} wants one optional system message"):
        text(load(name).source, chat)


@pytest.mark.parametrize("name", LIBRARY)
def test_tools_are_refused_not_left_out(name: str):
    template = ChatTemplate(load(name).source, TOKENS, where=name)

    with pytest.raises(DataError, match=f"the template {name} knows no tools"):
        template.render([{"role": "user", "content": "q"}], tools=[{"type": "function"}])


def answered(source: str, chats: list[Conversation], **named: str) -> list[str]:
    return [text(source, chat, **named) for chat in chats]


def without_system() -> list[Conversation]:
    return [chat for chat in CONVERSATIONS.values() if chat.messages[0].role != "system"]


@pytest.mark.parametrize("generate", [False, True])
def test_llama3_is_the_published_template(generate: bool):
    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None
    published = Path(spec.origin).with_name("chat_templates") / "llama3.jinja"

    for chat in CONVERSATIONS.values():
        expected = text(published.read_text("utf-8"), chat, generate=generate)
        assert text(load("llama3").source, chat, generate=generate) == expected


@pytest.mark.parametrize(
    ("name", "published"), [("mistral-v3", "mistral-v0.3"), ("mistral-tekken", "mistral-nemo")]
)
def test_mistral_is_the_published_template(
    tokenizer_folder: Callable[[str], Path], name: str, published: str
):
    """With a system message for v0.3 only: Nemo's leaves it out of a row with its answer."""
    source = (tokenizer_folder(published) / "chat_template.jinja").read_text("utf-8")
    chats = list(CONVERSATIONS.values()) if published == "mistral-v0.3" else without_system()

    assert len(chats) > 40
    assert answered(load(name).source, chats) == answered(source, chats)


def test_tekken_prompts_are_the_published_templates(tokenizer_folder: Callable[[str], Path]):
    source = (tokenizer_folder("mistral-nemo") / "chat_template.jinja").read_text("utf-8")
    prompts = [Conversation(chat.messages[:-1], chat.where) for chat in CONVERSATIONS.values()]

    assert answered(load("mistral-tekken").source, prompts) == answered(source, prompts)


def test_chatml_is_qwens_template_after_its_default_system_prompt(
    tokenizer_folder: Callable[[str], Path],
):
    source = (tokenizer_folder("qwen2.5") / "chat_template.jinja").read_text("utf-8")
    default = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. "
        "You are a helpful assistant.<|im_end|>\n"
    )

    for chat in CONVERSATIONS.values():
        expected = text(source, chat).removeprefix(default)
        assert text(load("chatml").source, chat, bos_token="") == expected


BASES = {
    "chatml": "qwen2.5",
    "llama3": "llama-3.1",
    "llama2": "mistral-v0.3",
    "mistral-v1": "mistral-v0.3",
    "mistral-v3": "mistral-v0.3",
    "mistral-tekken": "mistral-nemo",
    "alpaca": "mistral-v0.3",
    "human-assistant": "mistral-nemo",
}


@pytest.mark.parametrize("name", LIBRARY)
def test_a_shipped_template_trains_every_answer_and_its_stop(
    tokenizer_folder: Callable[[str], Path], name: str
):
    template = load(name)
    tokenizer = ChatTokenizer.load(tokenizer_folder(BASES[name]), template=template)

    assert tokenizer.turn.stop == template.stop_token or template.stop_token is None
    for key in ("short", "system and three turns", "chinese", "emoji", "code", "many turns"):
        rendered = render(CONVERSATIONS[key], tokenizer)
        prove(encode(rendered, tokenizer), rendered, tokenizer)
        assert len(rendered.spans) == sum(
            m.role == "assistant" for m in CONVERSATIONS[key].messages
        )


def test_a_template_file_is_read(tmp_path: Path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}é", "utf-8")

    assert load(str(file)) == NamedTemplate(str(file), "{{ messages[0].content }}é", None)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (
            "llama-3",
            "data.template: there is no template 'llama-3'; did you mean llama3?",
            "use one of chatml, llama3, llama2, mistral-v1, mistral-v3, mistral-tekken, alpaca, "
            "human-assistant, or name a .jinja file",
        ),
        ("ChatML", "data.template: there is no template 'ChatML'; did you mean chatml?", "use"),
        ("gemma", "data.template: there is no template 'gemma'\n", "use one of chatml"),
        ("no/such.jinja", "data.template: no/such.jinja: no such template file", "check the path"),
    ],
)
def test_an_unknown_template_is_told(name: str, message: str, hint: str):
    with pytest.raises(RecipeError) as caught:
        load(name)

    assert str(caught.value).startswith(message)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\xff\xfe", "cannot be read: 'utf-8' codec"), (b" " * (2**20 + 1), "has more than 1048576")],
)
def test_a_file_that_is_no_template_is_told(tmp_path: Path, data: bytes, message: str):
    file = tmp_path / "mine.jinja"
    file.write_bytes(data)

    with pytest.raises(RecipeError, match=f"the template file {message}"):
        load(str(file))


@pytest.mark.parametrize("name", LIBRARY)
def test_the_stop_token_is_spelled_out(name: str):
    template = load(name)

    assert (template.stop_token or "eos_token") in template.source
