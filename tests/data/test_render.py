"""Finding answers in what a template makes of them; what cannot be found is refused."""

from pathlib import Path

import pytest
from conversations import ask, turns
from tiny_tokenizer import CHATML, write_tokenizer

from fastsft.data.formats import Conversation
from fastsft.data.render import render
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError

SYSTEM = turns(("system", "Be terse."), ("user", "hi"), ("assistant", "yes"))


def with_template(folder: Path, template: str) -> ChatTokenizer:
    return ChatTokenizer.load(write_tokenizer(folder, template=template))


def spans(tokenizer: ChatTokenizer, chat: Conversation) -> list[str]:
    rendered = render(chat, tokenizer)
    return [rendered.text[span.start : span.end] for span in rendered.spans]


def test_answers_equal_to_their_questions_are_told_apart(tmp_path: Path):
    tokenizer = with_template(tmp_path, CHATML)
    chat = turns(("user", "a"), ("assistant", "a"), ("user", "a"), ("assistant", "a"))

    rendered = render(chat, tokenizer)

    starts = [rendered.text[: span.start] for span in rendered.spans]
    assert [text.count("assistant\n") for text in starts] == [1, 2]
    assert all(text.endswith("assistant\n") for text in starts)


@pytest.mark.parametrize(
    ("trim", "answer"),
    [("", " yes\n "), ("| trim", "yes"), (".rstrip()", " yes"), (".lstrip()", "yes\n ")],
)
def test_an_answer_is_trained_as_the_template_leaves_it(tmp_path: Path, trim: str, answer: str):
    tokenizer = with_template(tmp_path, CHATML.replace("m.content", f"m.content{trim}"))

    assert spans(tokenizer, ask("hi", " yes\n ")) == [f"{answer}<|im_end|>"]


def test_a_generation_block_changes_nothing(tmp_path: Path):
    marked = CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")

    assert spans(with_template(tmp_path, marked), ask("hi", "yes")) == ["yes<|im_end|>"]


def test_white_space_before_the_stop_token_is_trained(tmp_path: Path):
    tokenizer = with_template(tmp_path, CHATML.replace("<|im_end|>", " <|im_end|>"))

    assert spans(tokenizer, ask("hi", "yes")) == ["yes <|im_end|>"]


@pytest.mark.parametrize(
    ("template", "what", "hint"),
    [
        (
            CHATML.replace("m.content", "m.content | replace('hi', 'ho')"),
            "the chat template changes or leaves out message 1",
            "use the template of the model's original repository",
        ),
        (
            CHATML.replace("in messages", "in messages[-2:]"),
            "the chat template changes or leaves out message 1",
            "use the template of the model's original repository",
        ),
        (
            CHATML.replace("m.content", "m.content | replace('yes', 'no')"),
            "the chat template changes or leaves out message 2, or depends on it",
            "remove what the template treats specially",
        ),
        (
            CHATML.replace("m.content", "('yes, yes' if m.content == 'yes' else m.content)"),
            "the chat template changes or leaves out message 2, or depends on it",
            "remove what the template treats specially",
        ),
        (
            CHATML + "{{ messages[-1].content | length if messages | length > 1 }}",
            "the chat template changes or leaves out message 2, or depends on it",
            "remove what the template treats specially",
        ),
        (
            CHATML.replace("<|im_end|>", "{% if m.content != 'yes' %}<|im_end|>{% endif %}"),
            "the chat template changes or leaves out message 2, or depends on it",
            "remove what the template treats specially",
        ),
        (
            "{% if messages | length > 2 %}{{ messages | map(attribute='content') | join(', ') }}"
            "{% else %}" + CHATML + "{% endif %}",
            "no stop token follows message 2 in the rendered text",
            "the model would never learn to stop",
        ),
        (
            "{% for m in messages if m.role != 'system' %}" + CHATML.partition("%}")[2],
            "the chat template leaves the system message out",
            "put its text into the first user message",
        ),
    ],
)
def test_what_cannot_be_found_is_refused(tmp_path: Path, template: str, what: str, hint: str):
    tokenizer = with_template(tmp_path, template)
    chat = ask("hi", "yes, it is" if "length if" in template else "yes")
    if "length > 2" in template or "[-2:]" in template:
        chat = turns(("user", "hi"), ("assistant", "yes"), ("user", "more"), ("assistant", "no"))
    if "'system'" in template:
        chat = SYSTEM

    with pytest.raises(DataError) as caught:
        render(chat, tokenizer)

    assert str(caught.value).startswith(f"test.jsonl:1: {what}")
    assert hint in caught.value.hint


def test_a_pad_token_in_an_answer_is_refused(tmp_path: Path):
    tokenizer = with_template(tmp_path, CHATML)

    with pytest.raises(DataError, match=r"contains <\|endoftext\|>, which the tokenizer reads"):
        render(ask("hi", "x<|endoftext|>"), tokenizer)
