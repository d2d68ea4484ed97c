"""Rows that are all different, and near copies of them, from a seed."""

import itertools
from collections.abc import Callable
from random import Random

_SYLLABLES = (
    "ba be bi bo ca ce co da de di do fa fe ga ge ha he la le li lo ma me mi na ne no pa pe"
)
_SYLLABLES += " ra re ri ro sa se si so ta te ti to va ve vi wa we tion ing er st ment al ous ly"
_COMMON = "the of and to a in is it you that he was for on are with as his they be at one have this"
_CHINESE = (
    "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会家可下而过天去能对小"
    "多然于心学么之都好看起发当没成只如事把还用第样道想作种开美总从无情己面最女但现前些所同日手又行意动方期它"
    "头经长儿回位分爱老因很给名法间斯知世什两次使身者被高已亲其进此话常与活正感见明问力理尔点文几定本公特做外"
    "孩相西果走将月十实向声车全信重三机工物气每并别真打太新比才便夫再书部水像眼等体却加电主界门利海受听表德少"
)


def _vocabulary() -> list[str]:
    rng = Random(5)
    syllables = _SYLLABLES.split()
    made = ("".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(4000))
    return list(dict.fromkeys([*_COMMON.split(), *made]))


def _falling(n: int) -> list[float]:
    """Cumulative weights that fall like the ranks of words do."""
    return list(itertools.accumulate(1 / (rank + 5) for rank in range(n)))


_WORDS = _vocabulary()
_WORD_WEIGHTS = _falling(len(_WORDS))
_CHARACTERS = list(dict.fromkeys([*_CHINESE, *map(chr, range(0x4E00, 0x5800))]))
_CHARACTER_WEIGHTS = _falling(len(_CHARACTERS))


def _length(rng: Random, mean: float) -> int:
    return max(40, min(6000, round(rng.lognormvariate(0, 0.8) * mean)))


def english(rng: Random, length: int | None = None) -> str:
    """Words in sentences, of Alpaca-like length."""
    length = length or _length(rng, 500)
    words = rng.choices(_WORDS, cum_weights=_WORD_WEIGHTS, k=length // 2)
    for at in range(8, len(words), 11):
        words[at] += rng.choice([".", ",", "?", ";"])
    return " ".join(words)[:length].strip()


def chinese(rng: Random, length: int | None = None) -> str:
    """Characters in sentences."""
    length = length or _length(rng, 170)
    text = rng.choices(_CHARACTERS, cum_weights=_CHARACTER_WEIGHTS, k=length)
    for at in range(9, len(text), 14):
        text[at] = rng.choice("，。？；")
    return "".join(text)


def service(rng: Random) -> str:
    """A customer's question and its answer: few phrases, in many combinations."""
    order, days = rng.randint(10**5, 10**6), rng.randint(2, 30)
    product = english(rng, 12)
    return " ".join(
        rng.choice(phrases).format(order=order, days=days, product=product, note=english(rng, 60))
        for phrases in _SERVICE
    )


_SERVICE = (
    ("Hello,", "Hi there!", "Good morning.", "Dear support team,", "Hey, quick question:"),
    (
        "my order {order} of the {product} has not arrived after {days} days.",
        "I want to send back the {product} from order {order}, bought {days} days ago.",
        "where do I find the invoice for order {order}? It is about a {product}.",
        "the {product} (order {order}) stopped working within {days} days.",
        "can I still change the address of order {order} for the {product}?",
    ),
    ("{note}.", "Also, {note}.", "To be clear: {note}."),
    ("I am sorry to hear that.", "Thank you for writing to us!", "Of course, I can help you."),
    (
        "Order {order} is on its way and should be with you in {days} days.",
        "We will refund order {order} within {days} working days.",
        "A technician will look at the {product}; please allow {days} days.",
        "I have sent the invoice of order {order} to you again.",
    ),
    ("{note}.", "Please note: {note}."),
    ("Is there anything else I can do for you?", "Have a nice day.", "Best regards, the team"),
)


def one_character_changed(text: str, rng: Random) -> str:
    """A letter somewhere becomes another one."""
    at = rng.choice([at for at, character in enumerate(text) if character.isalpha()])
    other = rng.choice([c for c in ("qxz" if text[at].isascii() else "龙鱼鸟") if c != text[at]])
    return text[:at] + other + text[at + 1 :]


def punctuation_changed(text: str, rng: Random) -> str:
    """Every mark becomes another one, and more are added at the end."""
    marks = {"，": "。", "。": "！", "？": "?", "；": "，", ",": ";", ".": "!", "?": ".", ";": " -"}
    return "".join(marks.get(character, character) for character in text) + rng.choice("!.…")


CHANGES: dict[str, Callable[[str, Random], str]] = {
    "one character": one_character_changed,
    "punctuation": punctuation_changed,
}
