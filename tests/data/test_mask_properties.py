"""Whatever is said, in whatever conversation: exactly the answers are trained, packed or not."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from sayings import answers_of, as_trained, unjoined, weighted_chats

from fastsft.data import pack
from fastsft.data.conversation import Conversation
from fastsft.data.encode import encode_batch, prove_batch
from fastsft.data.render import Renderer
from fastsft.data.show import segments
from fastsft.data.tokenizer import ChatTokenizer

REAL = ("qwen2.5", "llama-3.1", "mistral-v0.3", "mistral-nemo")
Load = Callable[[str], ChatTokenizer]
QUICK, THOROUGH = (
    settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    for count in (260, 12_500)  # for each of four tokenizers: 1,040 and 50,000
)


def hold(tokenizer: ChatTokenizer, name: str, chat: Conversation, other: Conversation) -> None:
    """Every property at once, on one conversation beside another."""
    renderer = Renderer(tokenizer, date="2024-07-26")
    both = [renderer(chat), renderer(other)]
    row, beside = encode_batch(both, tokenizer)

    # The proof holds, and says what we say: the answers that are to be trained, nothing else.
    assert prove_batch([(row, both[0])], tokenizer) == [None]
    parts = segments(row.input_ids, row.labels, tokenizer)
    trained = [text for text, is_trained in parts if is_trained]
    answers = answers_of(chat)
    found = [unjoined(text, a, name) for text, a in zip(trained, answers, strict=True)]
    assert found == [as_trained(answer, name) for answer in answers]

    # One BOS where the family has one.
    bos = int(np.count_nonzero(row.input_ids == tokenizer.bos_id)) if tokenizer.bos_id else 0
    assert bos == (tokenizer.bos_id is not None)

    # Neither the rows beside it nor packing change a row's arrays.
    again = encode_batch(both[::-1], tokenizer)[1]
    assert np.array_equal(again.input_ids, row.input_ids)
    assert np.array_equal(again.labels, row.labels)
    packed = pack.join([(beside.input_ids, beside.labels), (row.input_ids, row.labels)])
    at = len(beside.input_ids)
    assert np.array_equal(packed.input_ids[at:], row.input_ids)
    assert np.array_equal(packed.labels[at + 1 :], row.labels[1:])
    assert packed.labels[at] == -100 == row.labels[0]


@pytest.mark.parametrize("name", REAL)
@QUICK
@given(chat=weighted_chats(), other=weighted_chats())
def test_the_mask_is_exact(
    real_tokenizer: Load, name: str, chat: Conversation, other: Conversation
):
    hold(real_tokenizer(name), name, chat, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@THOROUGH
@given(chat=weighted_chats(), other=weighted_chats())
def test_the_mask_is_exact_many_times(
    real_tokenizer: Load, name: str, chat: Conversation, other: Conversation
):
    hold(real_tokenizer(name), name, chat, other)
