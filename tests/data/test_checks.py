"""What the checks say of planted faults, and that they say nothing of sound rows."""

from random import Random

import numpy as np
import pytest
from planted import CHANGES, chinese, english

from fastsft.data.checks import Finding, find
from fastsft.data.features import Content, Features
from fastsft.recipe_data import Action, Checks

ALL: dict[str, Action] = dict.fromkeys(Checks.model_fields, "report")
ALL["nothing_trained"] = "drop"


def content(text: str, answer: str = "") -> Content:
    answer = answer or text
    return Content(whole=f"user {text}", text=text, answers=(answer,))


def looked_at(
    contents: list[Content],
    *,
    evaluated: tuple[int, ...] = (),
    untrained: tuple[int, ...] = (),
    **checks: Action,
) -> list[Finding]:
    is_eval = np.isin(np.arange(len(contents)), evaluated)
    trained = np.where(np.isin(np.arange(len(contents)), untrained), 0, 9)
    return find(Features.of(contents), is_eval, trained, Checks(**{**ALL, **checks}))


def by_check(findings: list[Finding]) -> dict[str, tuple[list[int], list[int] | None]]:
    return {
        found.check: (found.rows.tolist(), None if found.of is None else found.of.tolist())
        for found in findings
    }


SOUND = [content(make(Random(n), 200)) for n in range(30) for make in (english, chinese)]


def test_sound_rows_have_no_findings():
    assert looked_at(SOUND, evaluated=(1, 5, 9)) == []


def test_no_rows_have_no_findings():
    assert looked_at([]) == []


def test_every_copy_but_the_first_is_a_duplicate_on_its_own_side():
    rows = [*SOUND[:4], SOUND[0], SOUND[1], SOUND[1], SOUND[0]]

    found = looked_at(rows, evaluated=(1, 5, 6), leakage="off")

    assert by_check(found) == {"duplicates": ([4, 5, 6, 7], [0, 1, 1, 0])}


def test_a_near_duplicate_is_not_counted_as_an_exact_one_nor_the_other_way_round():
    near = content(CHANGES["one character"](SOUND[0].text, Random(1)))

    found = looked_at([*SOUND[:3], near, SOUND[2]])

    assert by_check(found) == {"duplicates": ([4], [2]), "near_duplicates": ([3], [0])}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_all_planted_leakage_is_found(change):
    rng = Random(2)
    held = [content(make(rng)) for _ in range(40) for make in (english, chinese)]
    rows = [*(content(change(row.text, rng)) for row in held), *SOUND, *held, *held[:7]]
    first = len(held) + len(SOUND)

    found = looked_at(rows, evaluated=tuple(range(first, first + 80)))

    leakage = next(one for one in found if one.check == "leakage")
    assert leakage.rows.tolist() == [*range(80), *range(first + 80, first + 87)]
    assert leakage.of.tolist() == [*range(first, first + 80), *range(first, first + 7)]
    assert leakage.what.startswith(
        "87 training rows repeat an evaluation row (7 exactly, 80 nearly)"
    )


def test_a_duplicate_of_a_leaking_row_leaks_too():
    near = content(CHANGES["one character"](SOUND[0].text, Random(1)))

    found = looked_at([near, near, SOUND[0], near], evaluated=(2,), duplicates="off")

    assert by_check(found) == {"leakage": ([0, 1, 3], [2, 2, 2])}


def test_the_same_conversation_under_another_system_message_is_nearly_the_same():
    rows = [Content(whole=f"{who} hello", text="hello", answers=("hello",)) for who in "ab"]

    assert by_check(looked_at(rows)) == {"near_duplicates": ([1], [0])}


def test_flagged_rows_are_found_in_the_order_of_the_recipe():
    rows = [
        *SOUND[:2],
        content("a question", "A"),
        content("the cafÃ© is open"),
        content("a \x07 bell"),
        content("mail to anna@mail.com"),
        content("ring 13812345678, or 13912345678"),
        content("id 11010519491231002X of bob@mail.com"),
    ]

    found = looked_at(rows, untrained=(1,))

    assert by_check(found) == {
        "nothing_trained": ([1], None),
        "short_answers": ([2], None),
        "mojibake": ([3], None),
        "control_characters": ([4], None),
        "personal_data": ([5, 6, 7], None),
    }
    assert [one.check for one in found] == list(by_check(found))
    assert "(e-mail addresses in 2, phone numbers in 1, identity numbers in 1)" in found[-1].what


@pytest.mark.parametrize("check", ["short_answers", "mojibake", "duplicates", "near_duplicates"])
def test_a_check_that_is_off_finds_nothing(check: str):
    rows = [content("cafÃ©", "A")] * 2
    rows.append(Content(whole="system", text="cafÃ©", answers=("A",)))

    assert check in by_check(looked_at(rows))
    assert check not in by_check(looked_at(rows, **{check: "off"}))


def test_every_check_says_what_to_do_and_carries_its_action():
    rows = [content("cafÃ© \x07 a@b.org", "A")] * 3

    found = looked_at(rows, evaluated=(2,), untrained=(0,), mojibake="error")

    assert {one.check: one.action for one in found}["mojibake"] == "error"
    assert all(";" in one.what and not one.what.endswith(".") for one in found)


def greeted(n: int) -> list[Content]:
    closing = "希望以上回答对您有所帮助。"
    rows = [content("q", f"{one.text} 完。{closing}") for one in SOUND[:n]]
    return [Content(one.answers[0], one.answers[0], one.answers) for one in rows]


def test_a_sentence_that_ends_many_answers_is_boilerplate():
    found = looked_at([*SOUND[30:], *greeted(12)])

    assert by_check(found) == {"boilerplate": (list(range(30, 42)), [30] * 12)}
    assert found[0].what.startswith("the answers of 12 rows end with one of 1 last sentences")


def test_a_sentence_in_nine_answers_is_no_boilerplate():
    assert looked_at([*SOUND[30:], *greeted(9)]) == []


def test_a_sentence_below_two_percent_is_no_boilerplate():
    rng = Random(9)
    others = [content(english(rng, 60)) for _ in range(700)]

    assert looked_at([*others, *greeted(12)], near_duplicates="off", leakage="off") == []
