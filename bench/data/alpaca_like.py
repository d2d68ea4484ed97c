"""Makes rows with the lengths of Alpaca's, half English and half Chinese, the same every time.

python bench/data/alpaca_like.py 50000 rows.jsonl
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

MEDIAN_TOKENS, SIGMA = 179, 0.7
"""Log-normal, 95 % below 565 tokens.  Source: shared notes on performance, 5.2."""
ENGLISH = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "that",
    "for",
    "was",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "we",
    "there",
    "can",
    "an",
    "your",
    "which",
    "their",
    "said",
    "if",
    "do",
    "will",
    "each",
    "about",
    "how",
    "up",
    "out",
    "them",
    "then",
    "she",
    "many",
    "some",
    "so",
    "these",
    "would",
    "other",
    "into",
    "has",
    "more",
    "her",
    "two",
    "like",
    "him",
    "see",
    "time",
    "could",
    "no",
    "make",
    "than",
    "first",
    "been",
    "its",
    "who",
    "now",
    "people",
    "my",
    "made",
    "over",
    "did",
    "down",
    "only",
    "way",
    "find",
    "use",
    "may",
    "water",
    "long",
    "little",
    "very",
    "after",
    "words",
    "called",
    "just",
    "where",
    "most",
    "know",
]
CHINESE = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面"
    "而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性"
    "好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比或但质气第"
)


def rows(count: int, *, median_tokens: int = MEDIAN_TOKENS) -> Iterator[dict[str, object]]:
    """Conversations of one question and one answer."""
    random = np.random.default_rng(7)
    return (_row(random, median_tokens) for _ in range(count))


def _row(random: np.random.Generator, median_tokens: int) -> dict[str, object]:
    tokens = int(np.clip(random.lognormal(np.log(median_tokens), SIGMA), 20, 1400))
    asked = max(6, int(tokens * random.uniform(0.1, 0.5)))
    say = _chinese if random.random() < 0.5 else _english
    turns = (("user", asked), ("assistant", tokens - asked))
    return {"messages": [{"role": role, "content": say(random, size)} for role, size in turns]}


def _english(random: np.random.Generator, tokens: int) -> str:
    return " ".join(_picked(random, ENGLISH, max(1, int(tokens * 0.85)))).capitalize() + "."


def _chinese(random: np.random.Generator, tokens: int) -> str:
    letters = "".join(_picked(random, CHINESE, max(2, int(tokens * 1.3))))
    return "，".join(letters[i : i + 12] for i in range(0, len(letters), 12)) + "。"


def _picked(random: np.random.Generator, of: Sequence[str], count: int) -> list[str]:
    return [of[place] for place in random.integers(len(of), size=count).tolist()]


def write(path: Path, count: int, *, median_tokens: int = MEDIAN_TOKENS) -> None:
    """The rows as JSONL."""
    made = rows(count, median_tokens=median_tokens)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in made)


if __name__ == "__main__":
    write(Path(sys.argv[2]), int(sys.argv[1]))
