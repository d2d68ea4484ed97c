"""The page: whole in itself, every row inert, sums that add up."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

import pytest
from report_example import EMPTY, MIXED, REFUSED, SAMPLES

from fastsft import report_html
from fastsft import report_words as told
from fastsft.data.report import Lengths, Report

ATTACK = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)></pre>{{ 7 * 7 }}\x1b\u202e\ud800"
)
CLOSED = {"action", "chosen"}  # words of ours, from a fixed list


class Page(HTMLParser):
    """A page's tags in order, and the text within each kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        if tag not in {"meta", "br", "line"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self._open), data))

    def within(self, *tags: str) -> str:
        return "".join(text for where, text in self.texts if set(tags) <= set(where))


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed, but for words from a fixed list."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple):
        return tuple(with_texts(item, change) for item in value)
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value):
        names = {field.name for field in fields(value)} - CLOSED
        changed = {name: with_texts(getattr(value, name), change) for name in names}
        return replace(value, **changed)
    return value


def test_every_text_of_a_report_is_inert():
    attacked = report_html.page(with_texts(MIXED, lambda text: f"{text}{ATTACK}"))
    harmless = report_html.page(with_texts(MIXED, lambda text: f"{text}x"))

    assert Page(attacked).tags == Page(harmless).tags
    assert "alert(1)" in Page(attacked).within("pre")
    assert "49" not in Page(attacked).within("pre", "mark")
    assert not {"\x1b", "\u202e", "\ud800"} & set(attacked)
    assert attacked.encode()


def test_the_page_loads_and_runs_nothing():
    page = report_html.page(MIXED)

    names = {name for _, attributes in Page(page).tags for name in attributes}
    assert not {"src", "href", "action", "srcset"} & names
    assert not [name for name in names if name.startswith("on")]
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in Page(page).tags)
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|url\(|@import|@font-face", page)


def test_rows_are_shown_as_they_are_with_their_trained_text_marked():
    page = Page(report_html.page(MIXED))

    shown = [told.visible("".join(text for text, _ in sample.segments)) for sample in SAMPLES]
    trained = [
        told.visible(t) for sample in SAMPLES for t, is_trained in sample.segments if is_trained
    ]
    assert page.within("pre").replace("\n", "") == "".join(shown).replace("\n", "")
    assert page.within("pre", "mark") == "".join(trained)


def test_a_very_long_row_says_what_it_hides():
    long = replace(SAMPLES[0], segments=(("g" * 5000, False), ("t" * 5000, True)))

    page = Page(report_html.page(replace(MIXED, samples=(long,))))

    assert page.within("pre", "em") == " … 4,000 characters hidden … "


@pytest.mark.parametrize("report", [MIXED, EMPTY])
def test_the_rows_on_the_page_add_up(report: Report):
    section = report_html.page(report).split('<section id="rows">')[1].split("</section>")[0]

    of_parts = re.findall(r"<tr>.*?</tr>", section.split("<tfoot>")[0])
    counts = [int(re.sub(r"<.*?>|\D", "", row)) for row in of_parts]
    assert sum(counts) == report.totals["rows_in"]
    assert f"{report.totals['rows_in']:,}" in section.split("<tfoot>")[1]


def test_the_verdict_is_at_the_top():
    clean = Page(report_html.page(MIXED)).within("header")
    refused = Page(report_html.page(REFUSED)).within("header")

    assert "clean: 1,100 rows to train on, 3 findings to look at" in clean
    assert all(reason in refused for reason in REFUSED.refused)


FACTS = (
    "used otherwise than they stood: prompt truncated 14",
    "HuggingFaceH4/no_robots, split train",
    "237,112 of 460,238 an epoch (51.5%)",
    "pin it with data.system or data.date",
    "median 286",
    "95% within 1,102",
    "max_tokens 2,048",
    "packed, 226 sequences",
    "service/2026-03.jsonl:10 ~ service/2026-01.jsonl:17",
    " and 14 more",
    "fix the line, or set data.bad_rows to skip",
    "no_robots is repeated 2.1 times in an epoch to reach its share",
)


@pytest.mark.parametrize("fact", FACTS)
def test_the_page_tells(fact: str):
    assert fact in Page(report_html.page(MIXED)).within("main")


def test_a_page_without_rows_has_no_chart_and_no_empty_section():
    page = report_html.page(EMPTY)

    assert re.findall(r'<section id="(.*?)"', page) == ["rows", "sources"]
    assert "<svg" not in page


LENGTHS = Lengths(10, 30, 90, 100, edges=(0, 20, 40, 100), counts=(1, 4, 2))


def test_the_bars_are_as_high_as_their_counts():
    bars = report_html._bars(LENGTHS)

    assert [bar.height for bar in bars] == [25, 100, 50]
    assert bars[2].label == "40 to 100 tokens: 2 rows"


def test_a_mark_lies_within_its_bin():
    left = [report_html._left(LENGTHS, tokens) for tokens in (0, 20, 30, 70, 100, 500)]

    assert left == pytest.approx([0, 100 / 3, 50, 250 / 3, 100, 100])
    assert report_html._marks(LENGTHS, 500)[2].label == "max_tokens 500 →"
