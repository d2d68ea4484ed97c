"""Writes the two domain sets and the replay set from `parts/`: the same bytes each time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

from ruamel.yaml import YAML

FOLDER: Final = Path(__file__).parent
SEED: Final = 41
ROWS_PER_CASE: Final = 10
Row = dict[str, Any]
Parts = dict[str, Any]
T = TypeVar("T")


def parts(name: str) -> Any:
    """The sentences of `parts/NAME.yaml`."""
    return YAML(typ="safe", pure=True).load(FOLDER / "parts" / f"{name}.yaml")


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of `items`, by `random()`: alone among the draws it is the same in every Python."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: Random, items: Iterable[T]) -> list[T]:
    """The items in a drawn order."""
    drawn = [(rng.random(), item) for item in items]
    return [item for _, item in sorted(drawn, key=lambda pair: pair[0])]


# Chinese, medical style, Alpaca


def medical() -> list[Row]:
    """Two hundred rows: forty complaints, and five things that people ask about each."""
    rng = Random(SEED)
    frames = parts("frames")["medical"]
    kinds = (_triage, _care, _flags, _cause, _prevention)
    return shuffled(
        rng,
        [
            kind(frames, _words({**frames, **complaint}, rng), rng)
            for complaint in parts("complaints")
            for kind in kinds
        ],
    )


def _words(material: Parts, rng: Random) -> Parts:
    """What the frames' fields stand for; a complaint's own people and spans go first."""
    youngest, oldest = material.get("ages", (20, 75))
    age = youngest + int(rng.random() * (oldest - youngest))
    one, two = material["care"]
    return {
        **material,
        "one": one,
        "two": two,
        "who": pick(rng, material["people"]),
        "span": pick(rng, material["spans"]),
        "person": f"{pick(rng, material['sexes'])}，{age}岁",
    }


def _triage(frames: Parts, words: Parts, rng: Random) -> Row:
    lead = pick(rng, frames["triage"]["visitors"])
    case = f"{lead}{words['person']}。{words['feels']}，已经{words['span']}。"
    return _alpaca(frames["triage"], words, rng) | {"input": case}


def _care(frames: Parts, words: Parts, rng: Random) -> Row:
    row = _alpaca(frames["care"], words, rng)
    return {"system": frames["system"], **row} if rng.random() < 0.3 else row


def _flags(frames: Parts, words: Parts, rng: Random) -> Row:
    return _alpaca(frames["flags"], words, rng)


def _cause(frames: Parts, words: Parts, rng: Random) -> Row:
    cause = frames["cause"]
    opening = pick(rng, cause["openings"]).format(**words)
    history = [[opening, pick(rng, cause["questions"])]]
    return _alpaca(cause, words, rng) | {"history": history}


def _prevention(frames: Parts, words: Parts, rng: Random) -> Row:
    return _alpaca(frames["prevention"], words, rng)


def _alpaca(frame: Parts, words: Parts, rng: Random) -> Row:
    return {
        "instruction": pick(rng, frame["asks"]).format(**words),
        "input": "",
        "output": pick(rng, frame["answers"]).format(**words),
    }


# English, customer service, ShareGPT


def service() -> list[Row]:
    """Two hundred rows: twenty kinds of request, ten each, of one to three turns."""
    rng = Random(SEED + 1)
    frames = parts("frames")["service"]
    return shuffled(rng, [row for case in parts("cases") for row in _case(case, frames, rng)])


def _case(case: Parts, frames: Parts, rng: Random) -> Iterator[Row]:
    """Each row has its own question and answer; the tenth, out of nine, goes on differently."""
    pairs = shuffled(rng, [(ask, answer) for ask in case["asks"] for answer in case["answers"]])
    for number in range(ROWS_PER_CASE):
        again = number // len(pairs)
        ask, answer = pairs[number % len(pairs)]
        opened = pick(rng, frames["greetings"]) + ask + pick(rng, frames["moods"])
        more = case["more"][(number + again) % len(case["more"])]
        turns = [(opened, answer), more, pick(rng, frames["closings"])]
        length = 3 if again else 1 + int(rng.random() * 3)
        yield _sharegpt(turns[:length], frames, rng)


def _sharegpt(turns: Sequence[Sequence[str]], frames: Parts, rng: Random) -> Row:
    product, other, *_ = shuffled(rng, frames["products"])
    number = 1000 + int(rng.random() * 9000)
    words = {"p": product, "q": other, "n": number, "d": pick(rng, frames["days"])}
    said = [
        {"from": speaker, "value": text.format(**words)}
        for turn in turns
        for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    row: Row = {"conversations": said}
    return {"system": pick(rng, frames["systems"]), **row} if rng.random() < 0.3 else row


# General, for replay


def general() -> list[Row]:
    """Sixty rows in the `messages` shape, half English and half Chinese."""
    questions = parts("questions")
    pairs = shuffled(Random(SEED + 2), [*questions["english"], *questions["chinese"]])
    return [_messages(question, answer) for question, answer in pairs]


def _messages(question: str, answer: str) -> Row:
    turns = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


# The files


def files() -> dict[str, str]:
    """The text of each file, by its name."""
    return {
        "medical_zh.json": json.dumps(medical(), ensure_ascii=False, indent=1) + "\n",
        "service_en.jsonl": _lines(service()),
        "general.jsonl": _lines(general()),
    }


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Writes the three files beside this one."""
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
