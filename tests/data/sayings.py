"""What hypothesis lets people say: text that is hard on tokenizers, in any conversation."""

import re
import unicodedata
from dataclasses import replace

from conversations import turns
from hypothesis import strategies as st

from fastsft.data.conversation import Conversation, Role

STOPS = {"qwen2.5": "<|im_end|>", "llama-3.1": "<|eot_id|>"}
TRIMS = ("llama-3.1", "mistral-v0.3")
PIECES = st.sampled_from(
    ["\n", " ", "  ", "\t", "▁", "e\u0301", "👍", "你", "<", "|", "im_end", "[INST]", "[/INST]"]
)
TEXT = st.lists(st.text(max_size=12) | PIECES, min_size=1, max_size=6).map("".join)
MARKERS = ("<s>", "</s>", "text|>", "<pad>", "control_", "token_0")
CONTROL = re.compile(r"<\|\w+\|>")  # hypothesis finds such constants in the code under test
SAID = TEXT.filter(
    lambda text: (
        text.strip() and not any(mark in text for mark in MARKERS) and not CONTROL.search(text)
    )
)
PAIRS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3)
CHATS = PAIRS.map(
    lambda pairs: turns(*(turn for q, a in pairs for turn in (("user", q), ("assistant", a))))
)


@st.composite
def weighted_chats(draw: st.DrawFn) -> Conversation:
    """With or without a system prompt, any answers of weight 0 but one."""
    pairs = draw(PAIRS)
    system = draw(st.none() | SAID)
    said: list[tuple[Role, str]] = [] if system is None else [("system", system)]
    for question, answer in pairs:
        said += [("user", question), ("assistant", answer)]
    chat = turns(*said)
    learned = draw(st.integers(0, len(pairs) - 1))
    weights = [draw(st.booleans()) or number == learned for number in range(len(pairs))]
    marks = iter(weights)
    return replace(
        chat,
        messages=tuple(
            replace(m, trained=next(marks)) if m.role == "assistant" else m for m in chat.messages
        ),
    )


def as_trained(answer: str, name: str) -> str:
    """What each template and tokenizer make of an answer, written down a second time."""
    text = answer.strip() if name in TRIMS else answer
    if name == "qwen2.5":
        text = unicodedata.normalize("NFC", text)
    if name == "mistral-v0.3":
        text = " " + text.replace("▁", " ")
    return text + STOPS.get(name, "</s>")


def unjoined(found: str, answer: str, name: str) -> str:
    """Qwen's tokenizer may join the template's newline with white space that begins an answer."""
    joined = name == "qwen2.5" and answer[0].isspace() and found != as_trained(answer, name)
    return found.removeprefix("\n") if joined else found


def answers_of(chat: Conversation) -> list[str]:
    """The answers that are trained."""
    return [m.content for m in chat.messages if m.role == "assistant" and m.trained]
