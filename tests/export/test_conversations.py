"""The samples are many, alike on every machine, and of the shapes that they promise."""

import unicodedata
from typing import Any

import pytest

from fastsft.export import conversations

ALL: list[dict[str, Any]] = [
    {"last": last, "with_system": with_system, "is_padded": is_padded}
    for last in ("user", "assistant")
    for with_system in (True, False)
    for is_padded in (True, False)
]


def test_there_are_texts_enough_and_none_twice_or_empty() -> None:
    texts = conversations.texts()

    assert len(texts) >= 320
    assert len(texts) == len({*texts} - {""})


def test_texts_and_chats_are_composed_unicode() -> None:
    contents = [m["content"] for chat in conversations.chats() for m in chat]

    assert all(unicodedata.is_normalized("NFC", text) for text in conversations.texts())
    assert all(unicodedata.is_normalized("NFC", text) for text in contents)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_roles_alternate_and_the_last_is_the_one_asked_for(options: dict[str, Any]) -> None:
    chats = conversations.chats(**options)
    roles = [[m["role"] for m in chat if m["role"] != "system"] for chat in chats]

    assert len({str(chat) for chat in chats}) >= 320
    assert {tuple(row) for row in roles} == {
        tuple((["user", "assistant"] * turns)[: 2 * turns - (options["last"] == "user")])
        for turns in (1, 2, 3, 4)
    }


def test_system_prompts_come_first_or_not_at_all() -> None:
    mixed = conversations.chats()
    without = conversations.chats(with_system=False)

    assert sum(chat[0]["role"] == "system" for chat in mixed) == len(mixed) / 3
    assert {m["role"] for chat in mixed for m in chat[1:]} == {"user", "assistant"}
    assert {m["role"] for chat in without for m in chat} == {"user", "assistant"}


@pytest.mark.parametrize("is_padded", [True, False])
def test_contents_have_white_space_around_them_only_where_asked_for(is_padded: bool) -> None:
    chats = conversations.chats(is_padded=is_padded)

    assert all((m["content"] != m["content"].strip()) is is_padded for c in chats for m in c)
