"""What is said of two models side by side: ties, noise, stops, nonsense.  Judges fakes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from fastsft.errors import ExportError
from fastsft.export.gate import behaviour
from fastsft.export.gate.behaviour import Answer, Reference
from fastsft.export.gate.verdict import Check, Checks
from fastsft.weights import Floats

VOCABULARY, STOP = 50, 49
PROMPT = [1, 2, 3]


@dataclass(frozen=True)
class Fake:
    """A model whose logits after a sequence depend on its length only."""

    table: Floats  # [T, V]
    said: tuple[int, ...]

    def logits(self, ids: Sequence[int]) -> Floats:
        return self.table[: len(ids)]

    def greedy(self, ids: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        return list(self.said[:max_tokens])


def model(seed: int = 0) -> Fake:
    table = np.random.default_rng(seed).normal(size=(8, VOCABULARY)).astype(np.float32)
    table[7, STOP] = 9
    return Fake(table, tuple(int(row.argmax()) for row in table[2:8]))


def reference(fake: Fake) -> Reference:
    ids = list(fake.said)[:-1]
    logits = fake.table[2 : 2 + len(ids)]
    return Reference((Answer(PROMPT, ids, logits, stopped=True),), "float32", "CPU")


def judged(kind: str, known: Reference, speaker: Fake) -> dict[str, Check]:
    checks = Checks("behaviour")
    behaviour.judge("it.gguf", kind, known, speaker, [STOP], checks)
    return {check.name: check for check in checks.found}


def moved(fake: Fake, size: float) -> Fake:
    noise = np.random.default_rng(1).normal(size=fake.table.shape).astype(np.float32)
    return Fake(fake.table + size * noise, fake.said)


def test_a_model_is_like_itself():
    found = judged("f32", reference(model()), model())

    assert {check.result for check in found.values()} == {"passed"}
    assert found["greedy tokens"].measured == "5 of 5 equal"
    assert found["logits"].numbers["mean_cosine"] == pytest.approx(1)
    assert found["logits"].numbers["kl_nats"] == pytest.approx(0, abs=1e-12)


def test_another_model_fails_on_logits_and_on_greedy_tokens():
    found = judged("f16", reference(model()), model(5))

    assert found["logits"].result == found["greedy tokens"].result == "failed"
    assert "must be mean cosine >= 0.9999" in found["logits"].why


def test_a_token_between_two_equals_is_a_tie():
    fake = model()
    best, next_ = np.argsort(fake.table[3])[-1:-3:-1]
    fake.table[3, next_] = fake.table[3, best] - np.float32(0.001)
    other = Fake(fake.table.copy(), fake.said)
    other.table[3, next_] += np.float32(0.002)

    found = judged("f16", reference(fake), other)["greedy tokens"]

    assert (found.result, found.measured) == ("passed", "4 of 5 equal, 1 ties")


def test_a_clear_token_that_is_another_is_no_tie():
    fake = model()
    other = Fake(fake.table.copy(), fake.said)
    other.table[3, 0] = other.table[3].max() + 1

    assert judged("f16", reference(fake), other)["greedy tokens"].result == "failed"


def test_coarse_types_are_judged_by_cosine_and_their_greedy_tokens_are_told():
    found = judged("q4_k_m", reference(model()), moved(model(), 0.3))

    assert found["logits"].result == "passed"
    assert found["logits"].threshold == "mean cosine >= 0.9"
    assert found["greedy tokens"].threshold == "told, not judged"


def test_a_type_that_the_model_does_not_bear_says_what_to_take():
    found = judged("q8_0", reference(model()), moved(model(), 0.3))["logits"]

    assert found.result == "failed"
    assert "take a finer --quant" in found.cure


def test_an_answer_that_never_ends_fails():
    endless = Fake(model().table, (7,) * 100)
    ending = Fake(model().table, (7, 7, STOP))

    known = reference(model())

    failed = judged("f32", known, endless)["stop token"]
    assert (failed.result, failed.why) == ("failed", "0 of 1 answers end, must be 1 or more")
    assert judged("f32", known, ending)["stop token"].result == "passed"


def test_an_adapter_that_never_stops_asks_no_stop_and_says_so():
    known = reference(model())
    (answer,) = known.answers
    known = Reference((Answer(answer.prompt, answer.ids, answer.logits, False),), "float32", "CPU")

    assert "stop token" not in judged("f32", known, model())
    assert "the adapter itself ends 0 of 1 answers" in list(behaviour.describe(known))[1]


def test_logits_that_are_no_numbers_or_of_another_vocabulary_are_refused():
    broken = Fake(np.full((8, VOCABULARY), np.nan, np.float32), (STOP,))
    narrow = Fake(model().table[:, :-1], (STOP,))

    with pytest.raises(ExportError, match="logits that are not finite"):
        behaviour.likeness(reference(model()).answers, broken, None)
    with pytest.raises(ExportError, match=r"gives logits \[5, 49\] where the adapter gives"):
        behaviour.likeness(reference(model()).answers, narrow, None)
