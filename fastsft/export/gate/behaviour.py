"""The gate's third part: an export answers as the adapter on its base does.  Judges numbers only.

The adapter's own greedy answers to prompts of the run are given to both models, token by token,
and what each says next is compared: so one early difference does not spoil the rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastsft import scoring
from fastsft.data import arrays
from fastsft.data.encode import UNTRAINED
from fastsft.errors import ExportError
from fastsft.export.gate import thresholds
from fastsft.export.gate.verdict import Checks
from fastsft.export.record import Record
from fastsft.export.trained import Trained
from fastsft.scoring import Process
from fastsft.weights import Floats

PROMPTS = 8
PROMPT_TOKENS = 256
"""Longest prompt: all logits of a sequence are held at once, 185 MB over Qwen2.5's 152 000."""
ROWS_LOOKED_AT = 10_000
ANSWER_TOKENS = 48
PATIENCE = 2
"""An export may take so many times as long as the adapter to end its answer."""


class Speaker(Protocol):
    """A model that tells its logits and its greedy answers."""

    def logits(self, ids: Sequence[int]) -> Floats:
        """float32 [T, V]."""

    def greedy(self, ids: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """The answer, up to and with its stop token."""


@dataclass(frozen=True)
class Answer:
    """What the adapter answered: `ids` [n] and the logits that led to each, [n, V]."""

    prompt: list[int]
    ids: list[int]
    logits: Floats
    stopped: bool


@dataclass(frozen=True)
class Reference:
    """The adapter on its base, computed in `dtype`."""

    answers: tuple[Answer, ...]
    dtype: scoring.Dtype
    device: str


def prompts(trained: Trained) -> list[list[int]]:
    """The beginnings of the run's rows, up to what was trained; held-out rows first.

    A question that is too long is cut only where too few rows have a shorter one.
    """
    whole: dict[tuple[int, ...], None] = {}
    cut: dict[tuple[int, ...], None] = {}
    rows = chain.from_iterable(reversed(arrays.load(trained.run.tokens_path)))
    for ids, labels in islice(rows, ROWS_LOOKED_AT):
        prompt = _prompt(ids, labels)
        if len(prompt) <= PROMPT_TOKENS:
            whole.setdefault(prompt)
        else:
            cut.setdefault(prompt[:PROMPT_TOKENS])
        if len(whole) == PROMPTS:
            break
    return [list(ids) for ids in [*whole, *cut][:PROMPTS]]


def _prompt(ids: NDArray[np.int32], labels: NDArray[np.int32]) -> tuple[int, ...]:
    """A row's ids up to its first trained token; half of a row that is trained whole."""
    first = int(np.argmax(labels != UNTRAINED))
    end = first if first > 1 else max(1, len(ids) // 2)
    return tuple(ids[:end].tolist())


def reference(trained: Trained, made: Record, process: Process) -> Reference:
    """What the adapter on its base answers.

    Raises: ExportError when it fits the memory in neither float32 nor bfloat16.
    """
    whole, nf4 = trained.is_whole, None
    if made.merge_base == "dequantised":
        nf4 = scoring.Nf4(trained.recipe.model.double_quant)
    model = trained.adapter if whole else trained.base.folder
    adapter = None if whole else trained.adapter
    dtype = _dtype(scoring.bytes_needed(model, "float32", adapter=adapter, nf4=nf4))
    with process.opened(model, adapter=adapter, nf4=nf4, dtype=dtype) as scorer:
        stops = trained.tokenizer.stop_ids
        answers = tuple(_answer(scorer, ids, stops) for ids in prompts(trained))
        return Reference(answers, dtype, scorer.device)


def _dtype(needed: int) -> scoring.Dtype:
    """float32 where that many bytes fit, else bfloat16, which `Process.opened` checks again."""
    return "float32" if scoring.place(needed) else "bfloat16"


def _answer(speaker: Speaker, prompt: list[int], stops: Sequence[int]) -> Answer:
    ids = speaker.greedy(prompt, max_tokens=ANSWER_TOKENS, stop_ids=stops)
    logits = speaker.logits([*prompt, *ids])[len(prompt) - 1 : -1].copy()
    return Answer(prompt, ids, logits, stopped=ids[-1] in stops)


@dataclass(frozen=True)
class Likeness:
    """How an export's logits compare, over all tokens of the reference's answers."""

    tokens: int
    agreed: int
    ties: int
    misses: int  # disagreements where the reference was not undecided
    mean_cosine: float
    least_cosine: float
    divergence: float  # mean Kullback-Leibler of the reference from the export, in nats
    largest_difference: float
    largest_noise: float  # of that, as a share of the reference's standard deviation


def likeness(answers: Sequence[Answer], speaker: Speaker, noise: float | None) -> Likeness:
    """The export's logits along the reference's answers, against the reference's.

    Raises: ExportError when the two have vocabularies of different sizes, or the export's
    logits are not finite.
    """
    parts = [_part(answer, _along(answer, speaker), noise) for answer in answers]
    columns = np.concatenate(parts, axis=1)
    agreed, tied, cosine, divergence, difference, share = columns
    return Likeness(
        tokens=columns.shape[1],
        agreed=int(agreed.sum()),
        ties=int(((1 - agreed) * tied).sum()),
        misses=int(((1 - agreed) * (1 - tied)).sum()),
        mean_cosine=float(cosine.mean()),
        least_cosine=float(cosine.min()),
        divergence=float(divergence.mean()),
        largest_difference=float(difference.max()),
        largest_noise=float(share.max()),
    )


def _along(answer: Answer, speaker: Speaker) -> Floats:
    found = speaker.logits([*answer.prompt, *answer.ids])[len(answer.prompt) - 1 : -1]
    if found.shape != answer.logits.shape or not np.isfinite(found).all():
        raise ExportError(
            f"gives logits {[*found.shape]} where the adapter gives {[*answer.logits.shape]}"
            if found.shape != answer.logits.shape
            else "gives logits that are not finite",
            where="behaviour",
            hint="export again with --overwrite; if it repeats, please report it",
        )
    return found


def _part(answer: Answer, found: Floats, noise: float | None) -> NDArray[np.float64]:
    """For each token of an answer: agreed, tied, cosine, divergence, difference, its share."""
    rows = zip(answer.logits, found, strict=True)
    return np.array([_compared(ours, theirs, noise) for ours, theirs in rows]).T


def _compared(ours: Floats, theirs: Floats, noise: float | None) -> tuple[float, ...]:
    one, other = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (ours, theirs))
    spread = float(one.std()) or 1.0
    second, first = np.partition(one, -2)[-2:]
    is_tie = noise is not None and first - second <= 2 * noise * spread
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    log_p, log_q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (one, other))
    difference = float(np.abs(one - other).max())
    return (
        float(one.argmax() == other.argmax()),
        float(is_tie),
        float(one @ other) / size if size else float(not np.any(one - other)),
        float(np.exp(log_p) @ (log_p - log_q)),
        difference,
        difference / spread,
    )


def judge(
    name: str, kind: str, known: Reference, speaker: Speaker, stops: Sequence[int], checks: Checks
) -> None:
    """The behaviour of one export of a type, against the adapter's."""
    wanted = thresholds.behaviour(kind)
    noise = wanted.noise
    if noise is not None and known.dtype != "float32":
        noise = max(noise, thresholds.BFLOAT16_NOISE)
    found = likeness(known.answers, speaker, noise)
    _judge_logits(name, found, wanted, checks)
    _judge_greedy(name, found, noise, checks)
    _judge_stops(name, known.answers, speaker, stops, wanted.stops, checks)


def _judge_logits(name: str, found: Likeness, wanted: thresholds.Behaviour, checks: Checks) -> None:
    checks.judged(
        "logits",
        name,
        f"cosine {found.mean_cosine:.5f}, least {found.least_cosine:.5f}, "
        f"KL {found.divergence:.1e} over {found.tokens} tokens",
        f"mean cosine >= {wanted.mean_cosine}",
        holds=found.mean_cosine >= wanted.mean_cosine,
        cure="a coarser type than this model bears: take a finer --quant such as q8_0"
        if wanted.noise is None
        else "",
        numbers={
            "mean_cosine": found.mean_cosine,
            "least_cosine": found.least_cosine,
            "kl_nats": found.divergence,
            "largest_difference": found.largest_difference,
            "largest_noise": found.largest_noise,
            "tokens": found.tokens,
        },
    )


def _judge_greedy(name: str, found: Likeness, noise: float | None, checks: Checks) -> None:
    measured = f"{found.agreed} of {found.tokens} equal"
    numbers = {"agreed": found.agreed, "tokens": found.tokens, "ties": found.ties}
    if noise is None:
        checks.passed("greedy tokens", name, measured, "told, not judged", **numbers)
        return
    ties = f", {found.ties} ties" if found.ties else ""
    checks.judged(
        "greedy tokens",
        name,
        measured + ties,
        f"all but where two lie within {2 * noise:g} deviations",
        holds=found.misses == 0,
        numbers=numbers,
    )


def _judge_stops(
    name: str,
    answers: Sequence[Answer],
    speaker: Speaker,
    stops: Sequence[int],
    share: float,
    checks: Checks,
) -> None:
    """Where the adapter ends its answer, the export must end its own."""
    ended = [answer for answer in answers if answer.stopped]
    if not ended:
        return
    found = sum(_ends(speaker, answer, stops) for answer in ended)
    least = int(np.ceil(share * len(ended)))
    checks.judged(
        "stop token",
        name,
        f"{found} of {len(ended)} answers end",
        f"{least} or more",
        holds=found >= least,
        cure="answers would run on; take a finer --quant such as q8_0" if share < 1 else "",
        numbers={"ended": found, "answers": len(ended)},
    )


def _ends(speaker: Speaker, answer: Answer, stops: Sequence[int]) -> bool:
    most = PATIENCE * len(answer.ids) + 8
    said = speaker.greedy(answer.prompt, max_tokens=most, stop_ids=stops)
    return bool(said) and said[-1] in stops


def describe(known: Reference) -> Iterator[str]:
    """What a reader must know of the reference."""
    count = len(known.answers)
    ended = sum(answer.stopped for answer in known.answers)
    yield f"behaviour: {count} prompts of the run, the adapter in {known.dtype} on {known.device}"
    if ended < count:
        yield (
            f"the adapter itself ends {ended} of {count} answers within {ANSWER_TOKENS} tokens; "
            "of the others no stop token is asked"
        )
