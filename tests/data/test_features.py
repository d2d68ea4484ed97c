"""What is known of each row: flags with few false alarms, sentences, scripts, little memory."""

import pickle

import numpy as np
import pytest

from fastsft.data import features as f
from fastsft.data.characters import SCRIPTS
from fastsft.data.features import Content, Features, edges


def content(text: str, *answers: str) -> Content:
    return Content(whole=text, text=text, answers=answers or ("A whole answer.",))


def flagged(text: str, flag: int) -> bool:
    return bool(Features.of([content(text)]).flags[0] & flag)


GARBLED = [
    "cafÃ©",
    "Ã–sterreich",
    "voilÃ\xa0 tout",
    "donâ€™t",
    "5 Â£",
    "HelloÂ world",
    "PoÅ‚ska",
    "ÐŸÑ€Ð¸Ð²ÐµÑ‚",
    "ä½\xa0å¥½ï¼Œä¸–ç•Œ",
    "ä¸\xadæ–‡",
    "lost \ufffd here",
    "锟斤拷锟斤拷",
    "烫烫烫",
    "浣犲ソ锛屼笘鐣屻€傝繖鏄",
    "smile ðŸ˜€",
]
SOUND = [
    "Élève à l’école : « Où est-il ? Là\xa0! » – « voilà\xa0» … à\xa0½ heure, l’été…",
    "Não há ação sem coração. NÃO! AMANHÃ – “MAÇÃ” IRMÃ… Âge ÂNGULO",
    "Über Österreich: „Größe“ – Ä“ und Ü”, naïve CAFÉ® PELÉ™ m²",
    "中文没有问题，“引号”——破折号……「」『』；横浜、日本語テスト。",
    "Привет, мир. Γειά σου Κόσμε. مرحبا بالعالم",
    "Łódź Żółć Šibenik Ångström Åse Ærø",
    "emoji 👩‍👩‍👧 stays, € 5, 20 °C",
    "Tiếng Việt có dấu: Đường phố Hà Nội, ạ ả ấ ầ â ê ô ơ ư",
]


@pytest.mark.parametrize("text", GARBLED)
def test_text_decoded_with_the_wrong_encoding_is_flagged(text: str):
    assert flagged(text, f.MOJIBAKE)


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_in_many_languages_raises_no_flag(text: str):
    assert Features.of([content(text)]).flags[0] == 0


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\x85", "\u202e", "\u202d"])
def test_a_control_character_is_flagged(character: str):
    assert flagged(f"a{character}b", f.CONTROL)


@pytest.mark.parametrize("character", ["\t", "\n", "\r\n", "\u200d", "\u200f", "\u2067"])
def test_layout_and_joiners_are_no_control_characters(character: str):
    assert not flagged(f"a{character}b", f.CONTROL)


@pytest.mark.parametrize("text", ["write to anna.b+c@mail.co.uk now", "邮箱：wang@163.com。"])
def test_an_address_is_flagged(text: str):
    assert flagged(text, f.EMAIL)


@pytest.mark.parametrize(
    "text", ["user@example.com", "git clone git@github.com:a/b", "@property", "pkg@1.2.3", "a @ b"]
)
def test_what_only_has_an_at_sign_is_no_address(text: str):
    assert not flagged(text, f.EMAIL)


@pytest.mark.parametrize(
    "text",
    [
        "电话13812345678。",
        "手机：１３８１２３４５６７８",
        "+86 138-1234-5678",
        "010-62345678",
        "call +44 20 7946 0958",
        "+1 (415) 555-2671",
        "(415) 555-2671",
        "415-555-2671",
        "+14155552671",
    ],
)
def test_a_phone_number_is_flagged(text: str):
    assert flagged(text, f.PHONE)


@pytest.mark.parametrize(
    "text",
    [
        "order 48291375",
        "order number 123456789",
        "at 1700000000",
        "at 1700000000000 ms",
        "2024-01-15 12:30:45",
        "ISBN 978-7-111-12345-6",
        "192.168.100.200 or 10.0.0.1",
        "3.14159265358979",
        "1 234 567 890 + 12 345 678",
        "7 + 1000",
        "1,234,567,890",
    ],
)
def test_other_numbers_are_no_personal_data(text: str):
    assert Features.of([content(text)]).flags[0] == 0


@pytest.mark.parametrize("text", ["身份证11010519491231002X", "SSN 123-45-6789"])
def test_an_identity_number_is_flagged(text: str):
    assert flagged(text, f.ID_NUMBER)


@pytest.mark.parametrize("text", ["110105194912310021", "110105194913310029", "000-12-3456"])
def test_a_number_with_a_wrong_check_or_date_is_no_identity_number(text: str):
    assert not flagged(text, f.ID_NUMBER)


@pytest.mark.parametrize(("answer", "is_short"), [("", 1), (" 是 ", 1), ("A", 1), ("是的", 0)])
def test_an_answer_of_one_character_is_flagged(answer: str, is_short: int):
    found = Features.of([content("some question", "a full answer", answer)])

    assert bool(found.flags[0] & f.SHORT_ANSWER) == bool(is_short)


def test_the_first_and_last_sentence_of_an_answer_are_found():
    answer = "Sure! I am happy to help you. Version 1.5 is out.\nIs there anything else you need?"

    assert edges(answer) == ("Sure! I am happy to help you.", "Is there anything else you need?")
    assert edges("很高兴为您服务，请说。这是答案。希望以上回答对您有所帮助。") == (
        "很高兴为您服务，请说。",
        "希望以上回答对您有所帮助。",
    )


def test_an_answer_of_one_sentence_has_no_closing():
    assert edges("The sentiment of this review is positive.") == (
        "The sentiment of this review is positive.",
        "",
    )
    assert edges("Yes.") == ("", "")


def test_characters_are_counted_by_script():
    found = Features.of([content("abc 你好 12！"), content("かな 한국 мир मन 𠀀 😀 سلا")])

    counted = dict(zip(SCRIPTS, found.scripts.tolist(), strict=True))
    assert counted == {
        "han": 3,
        "kana": 2,
        "hangul": 2,
        "latin": 3,
        "cyrillic": 3,
        "arabic": 3,
        "devanagari": 2,
        "other": 0,
    }


def test_the_exact_hash_is_of_the_normalised_whole():
    rows = ["ＡＢＣ ﬁne", "ABC fine", "ABC fine."]

    exact = Features.of([Content(row, "t", ("a",)) for row in rows]).exact

    assert (exact[0] == exact[1]).all()
    assert (exact[1] != exact[2]).any()


def test_joining_pieces_gives_what_the_whole_gives():
    rows = [
        content(f"row {n} " + "词" * n, f"The answer to number {n}. So be it.") for n in range(50)
    ]

    joined = Features.join(Features.of(rows[at : at + 7]) for at in range(0, 50, 7))

    for ours, theirs in zip(joined._columns(), Features.of(rows)._columns(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert joined.scripts.tolist() == Features.of(rows).scripts.tolist()


def test_chosen_rows_are_taken_in_order():
    found = Features.of([content(text) for text in ("one", "two", "three")])

    taken = found.take(np.array([2, 0]))

    assert taken.exact.tolist() == found.exact[[2, 0]].tolist()
    assert len(taken) == 2


def test_no_rows_have_no_features():
    assert len(Features.join([])) == len(Features.of([])) == 0


def test_features_cross_a_process_border_and_are_small():
    found = Features.of([content("some words " * 80)] * 100)

    assert len(pickle.dumps(found)) < 100 * 450
    assert (pickle.loads(pickle.dumps(found)).exact == found.exact).all()


def test_a_lone_surrogate_is_survived():
    assert len(Features.of([content("a\ud800b", "\ud800")])) == 1
