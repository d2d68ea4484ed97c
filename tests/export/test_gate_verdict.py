"""The word over all checks, what is raised and shown, and how a Modelfile is read."""

import pytest

from fastsft.errors import ExportError
from fastsft.export.gate import modelfile
from fastsft.export.gate.verdict import Checks, Verdict


def verdict(*results: str) -> Verdict:
    checks = Checks("text")
    for number, result in enumerate(results):
        if result == "passed":
            checks.passed(f"check {number}", "a.gguf", "3 of 3", "3")
        elif result == "failed":
            checks.failed(f"check {number}", "a.gguf", "2 of 3", "3", cure=f"cure {number}")
        else:
            checks.not_run(f"check {number}", "", "no llama.cpp", cure="uv sync --extra gguf")
    return Verdict("exports/gguf", "gguf", tuple(checks.found), ("a note",), {"fastsft": "1"})


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (["passed", "passed"], "passed"),
        (["passed", "not run"], "passed in part"),
        (["not run", "failed", "passed"], "failed"),
        ([], "failed"),
    ],
)
def test_one_failure_fails_and_one_check_left_out_is_no_pass(results, outcome):
    assert verdict(*results).outcome == outcome


def test_what_failed_is_raised_with_its_cure_and_exit_code_five():
    with pytest.raises(ExportError) as caught:
        verdict("passed", *["failed"] * 5).require()

    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        "exports/gguf: does not behave like what was trained: check 1 of a.gguf: 2 of 3; "
        "check 2 of a.gguf: 2 of 3; check 3 of a.gguf: 2 of 3; and 2 more, see verify.json\n"
        "  hint: cure 1"
    )


def test_nothing_is_raised_for_what_only_did_not_run():
    found = verdict("passed", "not run")

    found.require()

    assert found.summary == "passed in part: 1 of 1 checks passed; 1 not run (uv sync --extra gguf)"


def test_the_table_shows_why_where_there_is_a_why():
    rows = verdict("passed", "failed", "not run").rows()

    assert rows[0] == ("text: check 0", "a.gguf", "passed", "3 of 3", "3")
    assert rows[1] == ("text: check 1", "a.gguf", "failed", "2 of 3", "3")
    assert rows[2] == ("text: check 2", "", "not run", "no llama.cpp", "")


def test_a_modelfile_is_read_as_it_is_written():
    found = modelfile.read(
        "# TEMPLATE in a comment\nFROM ./a b.gguf\n"
        'TEMPLATE """{{ range .Messages }}\nFROM here\n{{ end }}"""\n'
        'SYSTEM """Be "good"."""\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 4096\n'
    )

    assert found.model == "a b.gguf"
    assert found.template == "{{ range .Messages }}\nFROM here\n{{ end }}"
    assert found.system == 'Be "good".'
    assert found.stops == ("<|im_end|>",)


@pytest.mark.parametrize("text", ["", "FROM ./a.gguf\n", 'TEMPLATE """x"""\n'])
def test_a_modelfile_without_model_or_template_is_refused(text):
    with pytest.raises(ExportError, match="exactly one FROM and one TEMPLATE"):
        modelfile.read(text)
