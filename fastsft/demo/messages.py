"""Draws short customer messages, and what each of them says, from a random generator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from fastsft.demo.words import CITIES, INTENTS, NAMES, PRODUCTS, Language


@dataclass(frozen=True)
class Message:
    """One customer message with the facts it was written from; the facts are in English."""

    text: str
    language: Language
    intent: str
    product: str
    city: str
    order: int
    urgent: bool
    name: str | None


_EN: Final[Mapping[str, Sequence[str]]] = {
    "refund": (
        "I want my money back for the {p}, order {o}.",
        "Please refund order {o}, the {p} is not what I expected.",
        "The {p} from order {o} is broken and I want a refund.",
        "I sent the {p} back, order {o}. When do I get my money?",
        "I paid twice for the {p} in order {o}, please return the money.",
    ),
    "exchange": (
        "I got the wrong {p} in order {o}, please swap it.",
        "The {p} in order {o} has the wrong colour, can I exchange it?",
        "Can I get another size of the {p}? My order is {o}.",
        "Please exchange the {p}, order number {o}.",
        "I would like a different {p} instead of the one in order {o}.",
    ),
    "cancel": (
        "Please cancel order {o}, I do not need the {p} any more.",
        "I changed my mind about the {p}, stop order {o}.",
        "Can you cancel the {p}? Order number {o}.",
        "I ordered the {p} by mistake, order {o}, please do not send it.",
        "I found a cheaper {p}, so call off order {o}.",
    ),
    "delivery": (
        "Where is my {p}? The order number is {o}.",
        "The {p} in order {o} has not arrived.",
        "When will the {p} come? Order {o}.",
        "I am still waiting for order {o}, a {p}.",
        "The tracking page of order {o} shows nothing about my {p}.",
    ),
    "repair": (
        "My {p} stopped working, order {o}, can you fix it?",
        "The {p} from order {o} makes a strange noise, please repair it.",
        "Can someone repair the {p}? I bought it with order {o}.",
        "A part of the {p} fell off, order {o}, I need it fixed.",
        "The {p} needs a repair, order number {o}.",
    ),
    "invoice": (
        "Please send me the invoice for order {o}, a {p}.",
        "I need a receipt for the {p}, order {o}.",
        "The bill for my {p} is missing, order {o}.",
        "Could I have an invoice for the {p}? Order number {o}.",
        "My company needs the bill of order {o} for the {p}.",
    ),
}
_ZH: Final[Mapping[str, Sequence[str]]] = {
    "refund": (
        "我想给{p}退款，订单{o}。",
        "订单{o}的{p}坏了，请把钱退给我。",
        "{p}已经寄回，订单{o}，什么时候退钱？",
        "{p}和描述不一样，我要退款，订单号{o}。",
    ),
    "exchange": (
        "订单{o}的{p}颜色不对，可以换一个吗？",
        "我收到的{p}发错了，请换货，订单{o}。",
        "{p}的尺寸不合适，想换别的，订单号{o}。",
        "请帮我换一个{p}，订单{o}。",
    ),
    "cancel": (
        "请取消订单{o}，我不需要{p}了。",
        "{p}买错了，订单{o}，请不要发货。",
        "我不想要{p}了，取消订单{o}。",
        "订单号{o}的{p}能取消吗？",
    ),
    "delivery": (
        "我的{p}到哪里了？订单{o}。",
        "订单{o}的{p}还没有收到。",
        "{p}什么时候送到？订单号{o}。",
        "我一直在等{p}，订单{o}没有消息。",
    ),
    "repair": (
        "{p}不能用了，订单{o}，可以修吗？",
        "订单{o}的{p}有奇怪的声音，请维修。",
        "我的{p}掉了一个零件，需要修理，订单{o}。",
        "请帮我修{p}，订单号{o}。",
    ),
    "invoice": (
        "请给我{p}的发票，订单{o}。",
        "订单{o}的{p}没有发票。",
        "公司需要{p}的发票，订单号{o}。",
        "我要开{p}的发票，订单{o}。",
    ),
}
_BODIES: Final = {"en": _EN, "zh": _ZH}
_GREETINGS: Final = {
    "en": ("Hello.", "Hi there.", "Good morning.", "Dear team,", "Good evening.", "", ""),
    "zh": ("你好。", "您好。", "早上好。", "客服你好。", "", ""),
}
_PLACES: Final = {
    "en": (
        "I live in {c}.",
        "My address is in {c}.",
        "I am writing from {c}.",
        "Greetings from {c}.",
        "It was bought in {c}.",
    ),
    "zh": ("我住在{c}。", "地址在{c}。", "我在{c}。", "这是在{c}买的。"),
}
_EXTRAS: Final = {
    "en": ("My name is {n}.", "This is {n}.", "It cost {x} euros."),
    "zh": ("我叫{n}。", "我是{n}。", "价格是{x}元。"),
}
_URGENT: Final = {
    "en": (
        "This is urgent!",
        "Please hurry.",
        "I need an answer today.",
        "As soon as possible, please.",
        "It cannot wait.",
    ),
    "zh": ("很急！", "请尽快处理。", "今天必须回复。", "麻烦快一点。"),
}
_CALM: Final = {
    "en": ("Thank you.", "There is no rush.", "Take your time.", "Kind regards.", "", ""),
    "zh": ("谢谢。", "不着急。", "慢慢来。", "", ""),
}


def draw(rng: Random, *, language: Language | None = None) -> Message:
    """One message; two out of three are English unless `language` says otherwise."""
    lang: Language = language or ("zh" if rng.random() < 1 / 3 else "en")
    facts = Message(
        text="",
        language=lang,
        intent=rng.choice(list(INTENTS)),
        product=rng.choice(list(PRODUCTS)),
        city=rng.choice(list(CITIES)),
        order=rng.randint(1000, 9999),
        urgent=rng.random() < 0.45,
        name=rng.choice(list(NAMES)) if rng.random() < 0.4 else None,
    )
    return Message(**{**vars(facts), "text": _write(facts, rng)})


def phrases(language: Language) -> list[str]:
    """Every fixed piece of text between the words that change."""
    sentences = [one for bodies in _BODIES[language].values() for one in bodies]
    for options in (_GREETINGS, _PLACES, _EXTRAS, _URGENT, _CALM):
        sentences += options[language]
    return [piece for sentence in sentences for piece in re.split(r"\{\w\}", sentence) if piece]


def _write(facts: Message, rng: Random) -> str:
    lang = facts.language
    middle = [_BODIES[lang][facts.intent], _PLACES[lang]]
    sentences = [rng.choice(options) for options in middle] + _extra(facts, rng)
    rng.shuffle(sentences)
    tone = rng.choice((_URGENT if facts.urgent else _CALM)[lang])
    whole = [rng.choice(_GREETINGS[lang]), *sentences, tone]
    return _fill((" " if lang == "en" else "").join(part for part in whole if part), facts, rng)


def _extra(facts: Message, rng: Random) -> list[str]:
    *naming, price = _EXTRAS[facts.language]
    if facts.name is not None:
        return [rng.choice(naming)]
    return [price] if rng.random() < 0.3 else []


def _fill(text: str, facts: Message, rng: Random) -> str:
    return text.format(
        p=say(facts.product, PRODUCTS, facts.language),
        c=say(facts.city, CITIES, facts.language),
        n=say(facts.name or "", NAMES, facts.language),
        o=facts.order,
        x=rng.randint(10, 99),
    )


def say(word: str, words: Mapping[str, str], language: Language) -> str:
    """The word itself, or its Chinese counterpart."""
    return word if language == "en" else words.get(word, word)
