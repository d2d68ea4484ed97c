"""The template sandbox: what it renders, and what each bad template is told."""

import pytest

from fastsft.data import template as rooms
from fastsft.data.template import ChatTemplate, pin_date
from fastsft.errors import DataError

HI = [{"role": "user", "content": "hi"}]


def render(source: str, **pinned: object) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, where="t.jinja").render(HI, **pinned)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s>hi"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
        ("{% for x in [1, 2] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ {'a': 1} | tojson(indent=1) }}", '{\n "a": 1\n}'),
        ("{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}", "TrueTrueFalse"),
        ("  {% if true %}\nx\n  {% endif %}", "x\n"),
        ("{{ '=' * 3 }}{{ 2 * 3 }}", "===6"),
    ],
)
def test_a_template_renders_as_transformers_has_it(source: str, text: str):
    assert render(source) == text


@pytest.mark.parametrize(
    ("day", "text"),
    [("2024-07-26", "26 Jul 2024, 2024-07-26"), ("tomorrow", "tomorrow, tomorrow")],
)
def test_a_pinned_date_stops_the_clock(day: str, text: str):
    assert render("{{ date_string }}, {{ strftime_now('%Y-%m-%d') }}", **pin_date(day)) == text


def test_no_date_pins_nothing():
    assert pin_date(None) == {}


def test_a_template_that_reads_the_clock_says_so():
    assert ChatTemplate("{{ strftime_now('%d') }}", {}, where="t.jinja").reads_clock


@pytest.mark.parametrize(
    ("source", "message", "hint"),
    [
        (
            "{% if %}",
            "t.jinja: the chat template does not compile: Expected an expression, "
            "got 'end of statement block' (line 1)",
            "restore the template",
        ),
        (
            "{{ raise_exception('no such role') }}",
            "t.jinja: the chat template refuses this conversation: no such role",
            "change the row to what the template accepts",
        ),
        (
            "{{ ''.__class__.__mro__ }}",
            "t.jinja: the chat template tried something that the sandbox forbids",
            "do not trust this model folder",
        ),
        (
            "{{ messages.append(1) }}",
            "t.jinja: the chat template tried something that the sandbox forbids",
            "do not trust this model folder",
        ),
        (
            "{{ 'a' * 10000000 }}",
            "t.jinja: the chat template tried something that the sandbox forbids",
            "do not trust this model folder",
        ),
        (
            "{{ 9 ** 9 ** 9 }}",
            "t.jinja: the chat template tried something that the sandbox forbids",
            "do not trust this model folder",
        ),
        (
            "{{ nothing.at.all }}",
            "t.jinja: the chat template failed: UndefinedError: 'nothing' is undefined",
            "check the row, then the template",
        ),
    ],
)
def test_a_bad_template_is_told_what_and_how(source: str, message: str, hint: str):
    with pytest.raises(DataError) as caught:
        render(source)

    assert str(caught.value).startswith(message)
    assert hint in caught.value.hint


def test_a_refused_row_is_named():
    with pytest.raises(DataError, match=r"^train.jsonl:3: the chat template refuses"):
        render("{{ raise_exception('no') }}", where="train.jsonl:3")


def test_output_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rooms, "MAX_OUTPUT_CHARS", 1000)

    with pytest.raises(DataError, match="that the sandbox forbids: output of"):
        render("{% for i in range(99999) %}{{ i }}{% endfor %}")
