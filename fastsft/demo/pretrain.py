"""Makes the tiny base from nothing: corpus, vocabulary, pre-training, probes.  Needs torch.

1,300 steps of 16 rows took 1,075 s on two busy cores; base/README.md has the probes' results.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import Qwen2Config, Qwen2ForCausalLM

from fastsft.demo import corpus, layout, messages
from fastsft.demo.markup import Family, Segment, segments
from fastsft.demo.vocabulary import IDS, SIZE, Json, polyglot_json, train
from fastsft.demo.words import CITIES, INTENTS, NAMES, PRODUCTS, Language

SEED: Final = 7
STEPS: Final = 1300
ROW_TOKENS: Final = 128
BATCH_ROWS: Final = 16
WARMUP_STEPS: Final = 40
DECAY_SHARE: Final = 0.4
MUON_RATE: Final = 0.02
ADAM_RATE: Final = 3e-3
# Answers are what the demo needs; the rest of the row holds the text's shape in place.
REST_WEIGHT: Final = 0.2
INIT_STD: Final = 0.06
SHARED: Final = 0.8
FAMILIES: Final[Sequence[Family]] = ("qwen2.5", "llama", "mistral")
SHARES: Final = (60, 20, 20)
PROBE_ROWS: Final = 100
_PAD: Final = IDS["<|endoftext|>"]


@dataclass(frozen=True)
class Batch:
    """Rows of one length, padded; `weights` is 0 on padding."""

    ids: Tensor  # [B, T]
    weights: Tensor  # [B, T]


@dataclass(frozen=True)
class Coded:
    """A dialogue as token ids, and the weight of each in the loss."""

    ids: list[int]
    weights: list[float]


def code(tokenizer: Tokenizer, pieces: Iterable[Segment], *, limit: int) -> Coded:
    """As many whole turns as fit into `limit` tokens."""
    coded, pending = Coded([], []), Coded([], [])
    for piece in pieces:
        ids = tokenizer.encode(piece.text, add_special_tokens=False).ids
        pending.ids.extend(ids)
        pending.weights.extend([1.0 if piece.is_answer else REST_WEIGHT] * len(ids))
        if piece.is_answer:
            if len(coded.ids) + len(pending.ids) > limit:
                break
            coded = Coded(coded.ids + pending.ids, coded.weights + pending.weights)
            pending = Coded([], [])
    return coded


def collate(rows: Sequence[Coded]) -> Batch:
    """Right-padded rows."""
    longest = max(len(row.ids) for row in rows)
    ids = [row.ids + [_PAD] * (longest - len(row.ids)) for row in rows]
    weights = [row.weights + [0.0] * (longest - len(row.ids)) for row in rows]
    return Batch(torch.tensor(ids), torch.tensor(weights))


def batches(tokenizer: Tokenizer, rng: Random) -> Iterator[Batch]:
    """Pre-training batches without end."""
    while True:
        rows: list[Coded] = []
        while len(rows) < BATCH_ROWS:
            family = rng.choices(FAMILIES, SHARES)[0]
            row = code(tokenizer, segments(corpus.dialogue(rng), family), limit=ROW_TOKENS)
            if row.ids:
                rows.append(row)
        yield collate(rows)


def vocabulary(rng: Random, *, dialogues: int = 6000) -> Json:
    """The vocabulary; in Chinese a product or city never joins with the text around it."""
    drawn = [corpus.dialogue(rng) for _ in range(dialogues)]
    texts = [text for one in drawn for turn in one.turns for text in turn if text.isascii()]
    lists = (PRODUCTS, CITIES, INTENTS, NAMES)
    chinese = [*messages.phrases("zh"), *(word for words in lists for word in words.values())]
    english = [word for words in lists for word in words]
    roles = ["system\nuser\nassistant\nYou are a helpful assistant."]
    again = [*chinese, *english, *(f" {word}" for word in english), *roles]
    return train(texts + again * 50)


def fresh_model(tokenizer: Tokenizer) -> Qwen2ForCausalLM:
    """An untrained model whose q, k and v biases are zero and stay zero."""
    torch.manual_seed(SEED)
    shape = {key: value for key, value in layout.config("qwen2.5").items() if key != "dtype"}
    model = Qwen2ForCausalLM(Qwen2Config(**shape | {"initializer_range": INIT_STD})).float()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(_embeddings(tokenizer, shape["hidden_size"]))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.zeros_(parameter).requires_grad_(False)
    return model


def _embeddings(tokenizer: Tokenizer, width: int) -> Tensor:
    """Random rows, but a word starts close to itself after a space and to its translation.

    A word has more forms than a digit; this lets copying begin as if it had one.
    """
    english = {zh: en for words in (PRODUCTS, CITIES, INTENTS, NAMES) for en, zh in words.items()}
    spoken = [tokenizer.decode([at], skip_special_tokens=False).strip() for at in range(SIZE)]
    meanings = [english.get(word, word) for word in spoken]
    at = {word: place for place, word in enumerate(dict.fromkeys(meanings))}
    shared = torch.randn(len(at), width)[[at[word] for word in meanings]]  # [V, D]
    own = torch.randn(SIZE, width)
    rows: Tensor = INIT_STD * (SHARED * shared + (1 - SHARED**2) ** 0.5 * own)
    return rows


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: rare directions move as much as common ones.

    AdamW alone, on an earlier corpus with more words, had learned no product in 2,000 steps.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.  torch.optim.Muon computes
    in bfloat16, which most laptops' CPUs cannot.
    """

    def __init__(self, matrices: Sequence[Tensor], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(_by_shape(matrices), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every matrix once."""
        for group in self.param_groups:
            updates = [self._momentum(one, group["momentum"]) for one in group["params"]]
            rows, columns = updates[0].shape
            scale = group["lr"] * max(1.0, rows / columns) ** 0.5
            for one, update in zip(group["params"], _orthogonal(updates), strict=True):
                one.sub_(update, alpha=scale)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        assert matrix.grad is not None, "fit() has just called backward()"
        mean: Tensor = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum)


def _by_shape(matrices: Sequence[Tensor]) -> list[dict[str, object]]:
    shapes = dict.fromkeys(one.shape for one in matrices)
    return [{"params": [one for one in matrices if one.shape == shape]} for shape in shapes]


def _orthogonal(matrices: Sequence[Tensor]) -> Tensor:
    """Five Newton-Schulz steps towards the nearest orthogonal matrices; Muon's coefficients."""
    x: Tensor = torch.stack(list(matrices))  # [N, rows, columns]
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    is_tall = x.size(-2) > x.size(-1)
    x = x.mT if is_tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if is_tall else x


def fit(model: Qwen2ForCausalLM, stream: Iterator[Batch], steps: int, console: Console) -> None:
    """Muon for the matrices, AdamW for the rest; warm-up, a plateau, then linear to zero."""
    optimizers = _optimizers(model)
    paces = [LambdaLR(one, lambda step: _pace(step, steps)) for one in optimizers]
    started = time.monotonic()
    model.train()
    for step in track(range(1, steps + 1), "pre-training", console=console):
        loss = _loss(model, next(stream))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, pace in zip(optimizers, paces, strict=True):
            optimizer.step()
            pace.step()
        model.zero_grad(set_to_none=True)
        if step % 50 == 0:
            share, passed = hits(model, next(stream)), time.monotonic() - started
            console.print(f"step {step}: loss {loss.item():.3f}, hits {share:.0%}, {passed:.0f} s")


def _optimizers(model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    trained = [one for one in model.named_parameters() if one[1].requires_grad]
    is_hidden = [one.dim() == 2 and "embed" not in name for name, one in trained]
    hidden = [one for (_, one), inside in zip(trained, is_hidden, strict=True) if inside]
    others = [one for (_, one), inside in zip(trained, is_hidden, strict=True) if not inside]
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    return [Muon(hidden, lr=MUON_RATE), adam]


def _pace(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps))


def _loss(model: Qwen2ForCausalLM, batch: Batch) -> Tensor:
    logits = model(batch.ids, use_cache=False).logits[:, :-1]  # [B, T-1, V]
    weights = batch.weights[:, 1:].flatten()
    each = F.cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    return (each * weights).sum() / weights.sum()


@torch.no_grad()
def hits(model: Qwen2ForCausalLM, batch: Batch) -> float:
    """The share of answer tokens that the model guesses, given those before."""
    is_answer, is_right = _guess(model, batch)
    return float(is_right[is_answer].float().mean())


@torch.no_grad()
def exact(model: Qwen2ForCausalLM, rows: Sequence[Coded]) -> float:
    """The share of rows whose whole answer, end included, is what greedy decoding would give."""
    is_answer, is_right = _guess(model, collate(rows))
    return float((is_right | ~is_answer).all(dim=1).float().mean())


def _guess(model: Qwen2ForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    guesses = model(batch.ids, use_cache=False).logits[:, :-1].argmax(-1)
    return batch.weights[:, 1:] == 1.0, guesses == batch.ids[:, 1:]


def probe(model: Qwen2ForCausalLM, tokenizer: Tokenizer, console: Console) -> None:
    """Prints, per family, language and field, how many single questions are answered exactly."""
    for family in FAMILIES:
        for language in ("en", "zh"):
            shares = {
                field: exact(model, _asked(tokenizer, field, family, language))
                for field in corpus.FIELDS
            }
            told = " ".join(f"{field} {share:.0%}" for field, share in shares.items())
            console.print(f"probe {family} {language}: {told}")


def _asked(tokenizer: Tokenizer, field: str, family: Family, language: Language) -> list[Coded]:
    rng = Random(f"probe {field} {family} {language}")
    drawn = (messages.draw(rng, language=language) for _ in range(PROBE_ROWS))
    asked = (segments(corpus.question(field, message, rng), family) for message in drawn)
    return [code(tokenizer, pieces, limit=layout.MAX_POSITIONS) for pieces in asked]


def save(model: Qwen2ForCausalLM, words: Json, out: Path) -> None:
    """Writes the base as bfloat16, with its config, tokenizer and template."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    layout.write_files(out, "qwen2.5", words)


def main() -> None:
    """Runs `python -m fastsft.demo.pretrain --out DIR`."""
    parser = argparse.ArgumentParser(description="Pre-train the demo's tiny base model.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    torch.set_num_threads(2)
    console = Console()
    words = vocabulary(Random(SEED))
    tokenizer = Tokenizer.from_str(json.dumps(polyglot_json(words)))
    model = fresh_model(tokenizer)
    console.print(f"{sum(one.numel() for one in model.parameters()):,} parameters")
    fit(model, batches(tokenizer, Random(SEED + 1)), asked.steps, console)
    save(model, words, asked.out)
    probe(model.float(), tokenizer, console)


if __name__ == "__main__":
    main()
