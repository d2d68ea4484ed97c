"""Draws the dialogues that the tiny base is pre-trained on: never the demo's JSON record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from fastsft.demo import messages
from fastsft.demo.messages import Message
from fastsft.demo.words import CITIES, COMMON, INTENTS, NAMES, PRODUCTS, SYLLABLES


@dataclass(frozen=True)
class Dialogue:
    """A system prompt, if any, and turns of (user, assistant)."""

    system: str | None
    turns: tuple[tuple[str, str], ...]


_ASK: Final[Mapping[str, Sequence[str]]] = {
    "intent": ("What does the customer want?", "Which service?", "Name the intent."),
    "product": ("What product?", "Which product is it?", "Name the product."),
    "city": ("Which city?", "Where is the customer?", "Name the city."),
    "order": ("Order number?", "What is the order number?", "Copy the order number."),
    "urgent": ("Is it urgent?", "Urgent, yes or no?"),
}
FIELDS: Final = tuple(_ASK)
_DEFAULT_SYSTEM: Final = "You are a helpful assistant."
_LONGEST: Final = 7


def dialogue(rng: Random) -> Dialogue:
    """One dialogue; two thirds are about a customer message, the rest are drills."""
    kinds: list[Callable[[Random], Dialogue]] = [_about_message, drill, _recall, _facts]
    return rng.choices(kinds, (85, 8, 4, 3))[0](rng)


def drill(rng: Random) -> Dialogue:
    """Copying and translating, where a base learns to look back at what was said."""
    return Dialogue(_system(rng), tuple(_exercise(rng) for _ in range(_LONGEST)))


def question(field: str, message: Message, rng: Random) -> Dialogue:
    """One question about one field of `message`, as the probes ask it."""
    asked, answered = _turn(message, [field], rng)
    return Dialogue(None, ((f"{message.text}\n{asked}", answered),))


def answer(field: str, message: Message) -> str:
    """The value of a field, in English whatever the message is in."""
    if field == "urgent":
        return "yes" if message.urgent else "no"
    return str(getattr(message, field))


def _about_message(rng: Random) -> Dialogue:
    """Asks for every field once: a second time, the answer could be copied from the first."""
    message = messages.draw(rng)
    fields = rng.sample(FIELDS, len(FIELDS))
    alone = rng.choice((0, 0, 1, 2))
    turns = [_turn(message, [field], rng) for field in fields[:alone]]
    turns.append(_turn(message, fields[alone:], rng))
    (asked, answered), *more = rng.sample(turns, len(turns))
    if rng.random() < 0.5:
        return Dialogue(asked, ((message.text, answered), *more))
    return Dialogue(_system(rng), ((f"{message.text}\n{asked}", answered), *more))


def _turn(message: Message, fields: Sequence[str], rng: Random) -> tuple[str, str]:
    if len(fields) == 1:
        return rng.choice(_ASK[fields[0]]), answer(fields[0], message)
    values = {field: answer(field, message) for field in fields}
    names = ", ".join(fields)
    if rng.random() < 0.3:
        return f"Lines: {names}.", "\n".join(f"{key}: {value}" for key, value in values.items())
    return f"Quote: {names}.", ", ".join(f'{key} "{value}"' for key, value in values.items())


def _exercise(rng: Random) -> tuple[str, str]:
    if rng.random() < 0.25:
        return _translation(rng)
    words = [_word(rng) for _ in range(rng.randint(1, 8))]
    span = " ".join(words)
    tasks = (("Repeat", span), ("First word", words[0]), ("Last word", words[-1]))
    task, answered = rng.choices(tasks, (6, 1, 1))[0]
    return f"{task}: {span}", answered


def _translation(rng: Random) -> tuple[str, str]:
    words = rng.choice((PRODUCTS, CITIES, INTENTS, NAMES))
    picked = rng.sample(list(words), rng.randint(1, 4))
    english, chinese = ", ".join(picked), "、".join(words[word] for word in picked)
    if rng.random() < 0.5:
        return f"Chinese: {english}", chinese
    return f"English: {chinese}", english


def _word(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return str(rng.randint(1000, 9999) if rng.random() < 0.7 else rng.randint(0, 99_999))
    if kind < 0.6:
        return _invented(rng)
    return rng.choice((*COMMON, *PRODUCTS, *CITIES, *INTENTS, *NAMES))


def _invented(rng: Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))).capitalize()


def _recall(rng: Random) -> Dialogue:
    count = rng.randint(2, 5)
    keys = rng.sample((*NAMES, *COMMON), count)
    values = {key: str(rng.randint(1000, 9999)) for key in keys}
    (first, number), *more = [(f"{key}?", values[key]) for key in rng.choices(keys, k=_LONGEST)]
    told = " ".join(f"{key} has {value}." for key, value in values.items())
    return Dialogue(_system(rng), ((f"{told}\n{first}", number), *more))


def _facts(rng: Random) -> Dialogue:
    return Dialogue(_system(rng), tuple(_person(rng) for _ in range(_LONGEST)))


def _person(rng: Random) -> tuple[str, str]:
    name, colour, age = rng.choice(list(NAMES)), _colour(rng), rng.randint(10, 99)
    glad = rng.random() < 0.5
    told = f"{name} is {age}, likes {colour} and is {'happy' if glad else 'not happy'}."
    facts = {"name": name, "age": age, "colour": colour, "happy": glad}
    return f"As JSON: {told}", json.dumps(facts)


def _colour(rng: Random) -> str:
    return rng.choice(("red", "blue", "green", "yellow", "white", "brown", "orange", "silver"))


def _system(rng: Random) -> str | None:
    return _DEFAULT_SYSTEM if rng.random() < 0.3 else None
