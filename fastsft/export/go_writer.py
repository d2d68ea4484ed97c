"""Writes a Go template from what a chat template puts around messages.  Checks nothing.

Source: https://pkg.go.dev/text/template; ollama's parser/parser.go for what a Modelfile keeps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from fastsft.errors import ExportError
from fastsft.export import wrapping
from fastsft.export.wrapping import SYSTEM, Place, Wrapping

_UNSAFE = re.compile(r'\{(?=\{|\Z)|(?<="")"')
_TESTS: Mapping[str, Callable[[Place], bool]] = {
    "$.System": lambda place: place.has_system,
    "$first": lambda place: place.is_first,
    "$last": lambda place: place.is_last,
    "(eq $i $question)": lambda place: place.closes,
}


def written(found: Wrapping) -> str:
    """The Go template that writes this around messages.

    Raises: ExportError when a text depends on something that Go cannot ask for.
    """
    user = _chosen(found.before_user, list(_TESTS)) + "{{ .Content }}" + _go(found.after_user)
    answer = _chosen(found.before_answer, ["$.System", "$last"]) + "{{ .Content }}"
    user += "{{ $first = false }}" if "$first" in user else ""
    user += _if("$last", _go(found.prompt), "")
    answer += _if("$last", "", _go(found.after_answer))
    body = f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{answer}'
    parts = [_if(".System", _go(found.head.get(True, found.head[False])), _go(found.head[False]))]
    if "$first" in body:
        parts.append("{{ $first := true }}")
    if "$question" in body:
        parts.append(
            "{{ $question := 0 }}{{ range $i, $_ := .Messages }}"
            '{{ if eq .Role "user" }}{{ $question = $i }}{{ end }}{{ end }}'
        )
    parts.append("{{ range $i, $_ := .Messages }}")
    if "$last" in body:
        parts.append("{{ $last := eq (len (slice $.Messages $i)) 1 }}")
    return "".join([*parts, body, "{{ end }}{{ end }}"])


def _chosen(texts: Mapping[Place, str], tests: Sequence[str]) -> str:
    """Go that writes the text of the place; no test that makes no difference."""
    if len(set(texts.values())) == 1:
        return _go(next(iter(texts.values())))
    start = _common_start(list(texts.values()))
    texts = {place: text[len(start) :] for place, text in texts.items()}
    for test in tests:
        yes = {place: text for place, text in texts.items() if _TESTS[test](place)}
        no = {place: text for place, text in texts.items() if not _TESTS[test](place)}
        if yes and no and not _is_same(yes, no, test):
            rest = [other for other in tests if other != test]
            return _go(start) + _if(test, _chosen(yes, rest), _chosen(no, rest))
    raise ExportError(
        "the chat template depends on more than a Modelfile can tell",
        where="Modelfile",
        hint="serve the GGUF with llama.cpp, which runs the template itself",
    )


def _is_same(yes: Mapping[Place, str], no: Mapping[Place, str], test: str) -> bool:
    """Whether places that differ in this test only have the same text."""
    others = [other for other in _TESTS if other != test]
    rest = {tuple(_TESTS[o](place) for o in others): text for place, text in no.items()}
    found = [(tuple(_TESTS[o](place) for o in others), text) for place, text in yes.items()]
    return all(rest.get(key, text) == text for key, text in found)


def _common_start(texts: Sequence[str]) -> str:
    start = wrapping.common_start(texts)
    return start[: start.rindex("<")] if re.search(r"<[^>]*\Z", start) else start


def _if(test: str, yes: str, no: str) -> str:
    if yes == no:
        return yes
    if not yes:
        return f"{{{{ if not {test} }}}}{no}{{{{ end }}}}"
    return f"{{{{ if {test} }}}}{yes}" + (f"{{{{ else }}}}{no}" if no else "") + "{{ end }}"


def _go(text: str) -> str:
    """The text as Go template text; the system message's mark becomes its field."""
    return "{{ $.System }}".join(map(_literal, text.split(SYSTEM)))


def _literal(text: str) -> str:
    """What would start an action, end the Modelfile's text or be dropped is escaped."""
    special = {at.start() for at in _UNSAFE.finditer(text)}
    special |= {at for at, char in enumerate(text) if not (char.isprintable() or char in "\n\t")}
    return "".join(
        f'{{{{ "\\U{ord(char):08x}" }}}}' if at in special else char for at, char in enumerate(text)
    )


def is_quotable(text: str) -> bool:
    """Whether Ollama reads the text between quotes as it stands."""
    return '"""' not in text and all(char.isprintable() or char in "\n\t" for char in text)
