"""Near duplicates: planted pairs are found, distinct rows left alone, time stays bounded."""

import time
import unicodedata
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from planted import CHANGES, chinese, english, service

from fastsft.data import minhash
from fastsft.data.minhash import near, pairs
from fastsft.data.signatures import Signatures, similarity

N = 300
CORPORA = {"english": english, "chinese": chinese, "service": service}


def signed(texts: list[str]) -> Signatures:
    return Signatures.of([unicodedata.normalize("NFKC", text) for text in texts])


def found(texts: list[str]) -> list[tuple[int, int]]:
    rows, of = pairs(signed(texts))
    return list(zip(rows.tolist(), of.tolist(), strict=True))


def grams(text: str, size: int) -> set[str]:
    """The n-grams of a text that is folded already, with the ends counted."""
    padded = "\0" * 4 + text + "\0" * 4
    return {padded[at : at + size] for at in range(len(padded) - size + 1)}


def jaccard(a: str, b: str, size: int = 5) -> float:
    return len(grams(a, size) & grams(b, size)) / len(grams(a, size) | grams(b, size))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("length", [40, 60, 300, 1200])
@pytest.mark.parametrize("make", [english, chinese])
def test_every_planted_pair_is_found(
    make: Callable[[Random, int], str], length: int, change: Callable[[str, Random], str]
):
    rng = Random(length)
    texts = [make(rng, length) for _ in range(N)]

    planted = [*texts, *(change(text, rng) for text in texts)]

    assert found(planted) == [(N + row, row) for row in range(N)]


@pytest.mark.parametrize("make", CORPORA.values(), ids=CORPORA)
def test_of_2000_distinct_rows_none_is_called_a_copy(make: Callable[[Random], str]):
    rng = Random(2)

    assert found([make(rng) for _ in range(2000)]) == []


@pytest.mark.slow
@pytest.mark.parametrize("make", CORPORA.values(), ids=CORPORA)
def test_of_10000_distinct_rows_none_is_called_a_copy(make: Callable[[Random], str]):
    rng = Random(3)

    assert found([make(rng) for _ in range(10_000)]) == []


def test_a_pair_in_the_middle_of_the_scale_is_estimated_closely():
    rng = Random(4)
    texts = [english(rng, 900).replace(".", "").replace(",", "") for _ in range(50)]
    texts = [" ".join(text.replace("?", "").replace(";", "").split()) for text in texts]
    others = [text[:300] + english(rng, 40).split(".")[0] + text[400:] for text in texts]
    others = [" ".join(other.replace(",", "").replace(";", "").split()) for other in others]
    truth = [jaccard(a, b) for a, b in zip(texts, others, strict=True)]

    estimates = similarity(signed([*texts, *others]), np.arange(50), np.arange(50, 100))

    assert np.abs(estimates - truth).max() < 0.05


def test_case_width_and_spacing_make_no_difference():
    text = "The Quick Brown Fox jumps over the lazy dog, again and again."
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)

    assert found([text, text.upper(), wide, f"  {text} ".replace(" ", "\n\n")]) == [
        (1, 0),
        (2, 0),
        (3, 0),
    ]


def test_punctuation_inside_chinese_leaves_no_trace():
    assert found(
        ["你好，世界。今天天气不错！", "你好世界今天天气不错", "你好  世界——今天天气不错"]
    ) == [
        (1, 0),
        (2, 0),
    ]


def test_very_short_texts_are_the_same_or_different():
    assert found(["1+1", "1+2", "1+1 ", "好的", "好吗", "好的。", "", "?!", "..."]) == [
        (2, 0),
        (5, 3),
    ]


def test_of_a_large_cluster_all_but_the_first_are_found():
    rng = Random(6)
    texts = [english(rng, 200) for _ in range(20)]
    copies = [CHANGES["one character"](texts[3], rng) for _ in range(100)]

    rows, of = pairs(signed([*texts, *copies]))

    assert rows.tolist() == list(range(20, 120))
    assert (of < rows).all()
    assert set(of.tolist()) <= {3, *rows.tolist()}


def test_no_rows_have_no_pairs():
    assert found([]) == found(["alone"]) == []


def test_each_side_is_looked_at_by_itself():
    text = english(Random(7), 300)
    texts = [text, text + " x", text + " y", text + " z"]
    is_eval = np.array([False, True, False, True])

    sides = near(signed(texts), is_eval)

    assert sides.earlier.tolist() == [-1, -1, 0, 1]
    assert sides.evaluated.tolist() == [1, -1, 1, -1]


def test_short_twins_on_both_sides_leak():
    sides = near(
        signed(["好的", "好的。", "好的！", "好吗"]), np.array([False, True, False, False])
    )

    assert sides.evaluated.tolist() == [1, -1, 1, -1]
    assert sides.earlier.tolist() == [-1, -1, 0, -1]


def test_4000_rows_from_one_mould_take_no_quadratic_time(
    monkeypatch: pytest.MonkeyPatch,
):
    rng = Random(8)
    mould = english(rng, 150)
    texts = [f"{mould} {english(rng, 60)}" for _ in range(4000)]
    compared = []

    def counting(signatures: Signatures, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        compared.append(len(a))
        return similarity(signatures, a, b)

    monkeypatch.setattr(minhash, "similarity", counting)

    pairs(signed(texts))

    assert 0 < sum(compared) < 4000 * 32 * minhash._BUCKET


def test_a_text_of_ten_million_characters_is_signed_in_time():
    begin = time.perf_counter()

    signed(["word and " * 1_100_000, "short one"])

    assert time.perf_counter() - begin < 10
