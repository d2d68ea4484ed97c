"""What Ollama's templates give: our evaluator against the rules, and against Go itself."""

from pathlib import Path

import pytest
from go_oracle import rendered

from fastsft.errors import ExportError
from fastsft.export.go_template import Message, collate, render

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three {{ .System }}"},
]

TEMPLATES = (
    "{{ .System }}{{ range .Messages }}[{{ .Role }}]{{ .Content }}{{ end }}",
    "a \n{{- if .System }} \n yes {{- else }} no{{ end -}} \n b {{ range .Messages }}{{ end }}",
    '{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" "system" }}{{ $i }}'
    '{{ else if ne $i 2 }}?{{ else }}{{ "q\\"\\n\\u200d\\U0001F600}}" }}{{ end }}{{ end }}',
    "{{ $n := 0 }}{{ range $i, $_ := .Messages }}{{ $n = $i }}{{ end }}{{ $n }}",
    "{{ range $i, $_ := .Messages }}{{ if le (len (slice $.Messages $i)) 1 }}z{{ end }}{{ end }}",
    '{{ if and .Messages (not false) (lt 1 2) }}yes{{ end }}{{ if or false "" }}no{{ end }}',
    "{{ or .System 1 }}{{ len .System }}{{ $x := index .Messages 0 }}{{ $x.Role }}{{ ge 2 3 }}",
    "{{ $a := 1 }}{{ if .Messages }}{{ $a := 2 }}{{ $a }}{{ end }}{{ $a }}",
    "{{ range $m := .Messages }}{{ $m.Content }};{{ end }}",
)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (TEMPLATES[0], "be brief[system]be brief[user]one[assistant]two[user]three {{ .System }}"),
        (TEMPLATES[1], "a \n yesb "),
        (TEMPLATES[2], '01q"\n\u200d\U0001f600}}3'),
        (TEMPLATES[3], "3"),
        (TEMPLATES[4], "z"),
        (TEMPLATES[6], "be brief8systemfalse"),
        (TEMPLATES[7], "21"),
    ],
)
def test_a_template_gives_what_go_would(template: str, wanted: str) -> None:
    assert render(template, CHAT) == wanted


def test_go_itself_gives_the_same(tmp_path: Path) -> None:
    theirs = rendered([(template, CHAT) for template in TEMPLATES], tmp_path)

    assert theirs == [render(template, CHAT) for template in TEMPLATES]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ .System | printf }}{{ .Messages }}", "something unknown: '| printf"),
        ("{{ .Messages }}", "writes out what is no text"),
        ("{{ .Thinking }}{{ .Messages }}", "Ollama does not give here"),
        ("{{ range .Messages }}{{ .Images }}{{ end }}", "reads .Images"),
        ("{{ range .Messages }}", "without its `end`"),
        ("{{ end }}", "'end' without a beginning"),
        ('{{ if eq .Role "x" }}{{ .Messages }}{{ end }}', "Ollama does not give here"),
        ("{{ $x }}{{ .Messages }}", "uses $x, which it has not set"),
        ("{{ with .Messages }}{{ end }}", "uses 'with'"),
        ("{{ eq 1 .System }}{{ .Messages }}", "compares int with str"),
        ('{{ "\\x41" }}{{ .Messages }}', "an escape"),
        ("{{ .Messages", "something unknown"),
        ("{{ index .Messages 9 }}", "calls index"),
    ],
)
def test_what_is_not_in_the_subset_is_refused(template: str, fault: str) -> None:
    with pytest.raises(ExportError, match="the Go template") as raised:
        render(template, CHAT)

    assert fault in str(raised.value)
    assert raised.value.exit_code == 5


def test_neighbours_of_one_role_are_joined_and_system_texts_collected() -> None:
    roles = {"s": "system", "u": "user"}
    chat = [Message(roles[role], text) for role, text in ("sa", "ub", "uc", "sd")]

    system, messages = collate(chat)

    assert system == "a\n\nd"
    assert [m.content for m in messages] == ["a", "b\n\nc", "d"]


def test_the_modelfiles_system_prompt_goes_before_chats_without_one() -> None:
    template = "{{ .System }}|{{ range .Messages }}{{ .Role }} {{ end }}"

    assert render(template, CHAT[1:2], system="own") == "own|system user "
    assert render(template, CHAT[:2], system="own") == "be brief|system user "


def test_a_template_without_messages_gets_the_one_question() -> None:
    assert render("{{ .Prompt }}", CHAT[1:2]) == "one"
    with pytest.raises(ExportError, match="one user message only"):
        render("{{ .Prompt }}", CHAT)
