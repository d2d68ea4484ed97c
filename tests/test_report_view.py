"""The report on a terminal and in a pipe: complete, within the width, no row poses as ours."""

import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_example import EMPTY, MIXED, REFUSED, SAMPLES
from rich.cells import cell_len
from rich.console import Console

from fastsft import report_view
from fastsft.data.report import Report

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
GREEN = re.compile(r"\x1b\[32m(.*?)\x1b\[0m")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """Gives what a terminal of some width gets, colours and all."""

    def shown(report: Report, *, width: int = 80, no_color: bool = False) -> str:
        console = Console(
            file=io.StringIO(),
            force_terminal=True,
            width=width,
            color_system="standard",
            no_color=no_color,
            highlight=False,
        )
        monkeypatch.setattr(report_view, "out", console)
        report_view.show(report)
        return console.file.getvalue()

    return shown


@pytest.fixture
def piped(capsys: pytest.CaptureFixture[str]):
    """Gives the lines that a pipe gets."""

    def shown(report: Report) -> list[str]:
        report_view.show(report)
        told = capsys.readouterr()
        assert told.err == ""
        return told.out.splitlines()

    return shown


FACTS = (
    "1,200 in = 1,100 trained + 50 held out + 30 dropped (overlength 20, leakage 10) + 20 bad rows",
    "used otherwise than they stood: prompt truncated 14",
    "medical.jsonl.gz: alpaca, 1 file, weight 2; 300 rows in, 293 kept, 15 held out",
    "trained tokens  237,112 of 460,238 an epoch (51.5%)",
    "stop token      trained in 100% of the rows",
    "steps           174 in all, 58 an epoch",
    "adds by itself  “You are Qwen, created by Alibaba Cloud. You are a helpful assistant.”; "
    "pin it with data.system or data.date",
    "shortest 24, median 286, 95% are at most 1,102, longest 2,031",
    "99.8%  used",
    "leakage: 10 rows dropped",
    "a training row repeats an evaluation row",
    "service/2026-03.jsonl:5 ~ service/2026-01.jsonl:12 and 5 more",
    "near duplicates: 34 rows kept",
    "not json: 12 rows; not JSON: Expecting ',' delimiter",
    "hint: fix the line, or set data.bad_rows to skip",
    "- service/2026-01.jsonl: keys not used: id, source",
    "3,204 characters hidden",
)


@pytest.mark.parametrize("fact", FACTS)
def test_the_report_tells(piped, fact: str):
    assert any(fact in line for line in piped(MIXED))


def test_the_verdict_comes_last(piped):
    assert piped(MIXED)[-1] == "clean: 1,100 rows to train on, 3 findings to look at  (1.8 s)"
    assert piped(REFUSED)[-3:] == [
        "refused, for 2 reasons  (1.8 s)",
        "  - 20 rows cannot be read, and data.bad_rows is error",
        "  - leakage: 10 training rows repeat evaluation rows, and data.checks.leakage is error",
    ]


def test_a_stop_token_that_is_not_always_trained_is_told(piped):
    assert any("trained in 99.9% of the rows; it must be 100%" in line for line in piped(REFUSED))


def test_a_report_without_rows_says_only_what_there_is(piped):
    lines = piped(EMPTY)

    assert "  3 in = 0 trained + 3 dropped (overlength 3)" in lines
    assert "  - no row is left to train on: 3 were dropped for their length" in lines
    titles = [line for line in lines if line and not line.startswith(" ")]
    assert titles[1:-1] == ["Sources", "Rows"]


def test_no_line_of_a_row_passes_for_one_of_ours(piped):
    lines = piped(MIXED)

    [forged] = [line for line in lines if "clean: 9,999" in line]
    assert forged == "  │ clean: 9,999 rows to train on"


@pytest.mark.parametrize("width", [20, 40, 80, 120])
@pytest.mark.parametrize("report", [MIXED, EMPTY])
def test_no_line_is_wider_than_the_terminal(terminal, report: Report, width: int):
    lines = ESCAPE.sub("", terminal(report, width=width)).splitlines()

    assert max(map(cell_len, lines)) <= width


def test_nothing_in_a_row_moves_the_terminal(terminal):
    shown = ESCAPE.sub("", terminal(MIXED))

    assert "⟨U+001B⟩[31mred⟨U+001B⟩[0m ⟨U+202E⟩abc ⟨U+0007⟩ {{ 7 * 7 }}" in shown
    assert "[bold]markup[/bold]" in shown
    assert {c for c in shown if unicodedata.category(c) in {"Cc", "Cf"}} == {"\n"}


def test_trained_text_is_green_and_no_other_of_the_row(terminal):
    rows = [line for line in terminal(MIXED, width=200).splitlines() if "│ " in line]

    green = [text for line in rows for text in GREEN.findall(line)]
    assert green[0].startswith("I'm sorry about the wait.")
    assert sum(text.endswith("<|im_end|>") for text in green) == len(SAMPLES)
    assert not any("<|im_start|>" in text for text in green)


def test_trained_text_is_in_brackets_where_there_is_no_colour(terminal, piped):
    marked = "[[I'm sorry about the wait."

    assert any(marked in line for line in piped(MIXED))
    assert marked in ESCAPE.sub("", terminal(MIXED, no_color=True))
    assert "[[" not in ESCAPE.sub("", terminal(MIXED))


def test_one_row_is_shown_in_full_with_its_facts(capsys: pytest.CaptureFixture[str]):
    report_view.row(SAMPLES[2], {"tokens": "961", "shape": "messages"})

    told = capsys.readouterr().out
    assert f"[[{SAMPLES[2].segments[1][0]}]]" in told
    assert "hidden" not in told
    assert told.endswith("  tokens  961\n  shape   messages\n")


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=300), st.integers(8, 96))
def test_every_length_that_occurs_is_seen(counts: list[int], columns: int):
    bars = report_view.histogram(counts, columns=columns, levels=4)

    assert len(bars) == 4
    assert {len(bar) for bar in bars} == {len(bars[0])}
    assert 0 < len(bars[0]) <= columns
    assert bars[-1].isspace() == (sum(counts) == 0)
    if len(counts) <= columns:
        cells = columns // len(counts)
        assert [c != " " for c in bars[-1][::cells]] == [count > 0 for count in counts]
