"""The words of the report: sums add up, text hides nothing, no share flatters."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_example import EMPTY, MIXED, REFUSED, SAMPLES

from fastsft import report_words as told
from fastsft.data.report import Report, Sample


@pytest.mark.parametrize("report", [MIXED, REFUSED, EMPTY])
def test_the_parts_are_all_the_rows(report: Report):
    assert sum(part.rows for part in told.parts(report)) == report.totals["rows_in"]


def test_the_sum_names_every_part():
    assert told.adds_up(MIXED) == (
        "1,200 in = 1,100 trained + 50 held out + 30 dropped (overlength 20, leakage 10)"
        " + 20 bad rows"
    )


def test_a_single_bad_row_is_a_row():
    totals = {"rows_in": 1, "train": 0, "evaluation": 0, "dropped": {"not_json": 1}}

    assert told.adds_up(replace(MIXED, totals=totals)) == "1 in = 0 trained + 1 bad row"


@given(st.text())
def test_visible_text_can_be_printed_anywhere(text: str):
    shown = told.one_line(text)

    assert shown.encode().decode() == shown
    assert "".join(map(told._spelled, shown)) == shown


def test_text_that_cannot_be_seen_is_spelled_out():
    hidden = "a\x1b[31m\u202e\ufeff\ud800\r\n\tb"

    shown = told.visible(hidden)

    assert shown == "a⟨U+001B⟩[31m⟨U+202E⟩⟨U+FEFF⟩⟨U+D800⟩⟨U+000D⟩\n\tb"
    assert told.one_line("a\n\tb") == "a↵⟨U+0009⟩b"


def test_emoji_and_scripts_that_need_joiners_stay_whole():
    text = "👩‍⚕️ می‌خواهم 体温38℃"

    assert told.one_line(text) == text


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 400))
def test_what_is_shown_of_a_row_and_what_is_hidden_is_the_row(
    given_: int, trained: int, limit: int
):
    sample = Sample("a:1", (("g" * given_, False), ("t" * trained, True)))

    pieces = told.pieces(sample, limit=limit)

    shown = "".join(text for text, kind in pieces if kind != "cut")
    hidden = [text for text, kind in pieces if kind == "cut"]
    assert len(shown) == min(limit, given_ + trained)
    assert hidden == [f" … {given_ + trained - limit:,} characters hidden … "] * bool(hidden)
    assert bool(hidden) == (given_ + trained > limit)
    assert all(set(text) == {kind[0]} for text, kind in pieces if kind != "cut")


def test_a_row_without_a_limit_is_whole():
    [*pieces] = told.pieces(SAMPLES[2], limit=None)

    trained = "".join(text for text, kind in pieces if kind == "trained")
    assert trained == SAMPLES[2].segments[1][0]


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "100%"), (0.99996, "99.9%"), (0.515, "51.5%"), (0.00001, "<0.1%"), (0.0, "0%")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share: float, words: str):
    assert told.percent(share) == words


def test_the_verdict_is_one_line():
    assert told.verdict(MIXED) == "clean: 1,100 rows to train on, 3 findings to look at"
    assert told.verdict(REFUSED) == "refused, for 2 reasons"
    assert told.verdict(EMPTY) == "refused, for 1 reason"


def test_bad_rows_stand_together_by_kind():
    groups = told.fault_groups(MIXED)

    assert [(group.reason, group.rows) for group in groups] == [
        ("not_json", 12),
        ("empty_answer", 8),
    ]
    assert groups[0].where[0] == "service/2026-02.jsonl:40"
    assert told.more(groups[0], limit=5) == " and 7 more"
    assert told.more(groups[0], limit=20) == ""


@pytest.mark.parametrize("report", [MIXED, REFUSED, EMPTY])
def test_the_report_survives_json(report: Report):
    read = json.loads(json.dumps(report.as_dict()))

    assert read["totals"] == report.totals
    assert [source["name"] for source in read["sources"]] == [s.name for s in report.sources]
    assert [tuple(map(tuple, sample["segments"])) for sample in read["samples"]] == [
        sample.segments for sample in report.samples
    ]
    assert (read["lengths"] is None) == (report.lengths is None)
    assert tuple(read["refused"]) == report.refused
