"""What a row says, as plain text: for its identity, and for the checks.  Knows no template."""

from __future__ import annotations

import json

from fastsft.data.conversation import Conversation, Document, Message
from fastsft.data.features import Content

FIELD, TURN = "\x1f", "\x1e"


def content_of(said: Conversation | Document) -> Content:
    """The whole of it, its text without the system message, and its trained answers."""
    if isinstance(said, Document):
        return Content(whole=said.text, text=said.text, answers=())
    return Content(
        whole=TURN.join(map(_turn, said.messages)),
        text="\n".join(message.content for message in said.messages if message.role != "system"),
        answers=tuple(m.content for m in said.messages if m.role == "assistant" and m.trained),
    )


def _turn(message: Message) -> str:
    if not message.tool_calls:
        return f"{message.role}{FIELD}{message.content}"
    calls = json.dumps(message.tool_calls, sort_keys=True, ensure_ascii=False)
    return f"{message.role}{FIELD}{message.content}{FIELD}{calls}"
