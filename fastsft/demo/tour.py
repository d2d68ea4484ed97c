"""The demo: fine-tune the tiny base, score it before and after, merge, compare.  No torch."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsft import commands, console, recipe_file, sampling
from fastsft.base import resolve
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import ExportError, RecipeError
from fastsft.run import Run

FOLDER = Path(__file__).parent
ANSWER_TOKENS = 80
Chat = list[dict[str, str]]


def demo(runs: Path, engine: str) -> None:
    """Run the demo and say what it found."""
    if engine not in ("unsloth", "reference"):
        raise RecipeError(f"{engine} is no engine", where="--engine", hint="unsloth or reference")
    found = run(runs, engine)
    console.facts({name: str(value) for name, value in found.items()})
    console.answer(str(found["run"]))


def run(runs: Path, engine: str) -> dict[str, Any]:
    """What the demo found: exact match before and after, times, places.

    Raises ExportError when the merged model does not answer as the adapter does.
    """
    began = time.monotonic()
    chats, wanted = _heldout()
    recipe = recipe_file.load(
        "tiny-qwen2.5", [f"engine={engine}", f"data.path={FOLDER / 'train.jsonl'}"]
    )
    made = commands.begin(recipe, runs, name="demo")
    with (
        console.spinner(f"the base answers {len(chats)} held-out rows"),
        sampling.model(made, base=True) as base,
    ):
        before = base.answers(chats, max_tokens=ANSWER_TOKENS)
    console.note(f"exact match before: {_score(before, wanted)}")
    trained_s = -time.monotonic()
    commands.finish(made, answer=False)
    trained_s += time.monotonic()
    with console.spinner("the adapter answers them"), sampling.model(made, base=False) as tuned:
        after = tuned.answers(chats, max_tokens=ANSWER_TOKENS)
    console.note(f"exact match after: {_score(after, wanted)}")
    report = commands.merged(made, None, None, overwrite=False)
    same, of = _merged_as_adapter(made, report.out, chats)
    console.note(f"merged model and adapter, both on the 16-bit base: {same} of {of} answers equal")
    return {
        "exact match before": _score(before, wanted),
        "exact match after": _score(after, wanted),
        "merged as adapter": f"{same} of {of} answers equal",
        "training": f"{trained_s:.0f} s",
        "all": f"{time.monotonic() - began:.0f} s",
        "merged": report.out,
        "try": f"fastsft chat {made.folder}",
        "run": made.folder,
    }


def _heldout() -> tuple[list[Chat], list[str]]:
    """The held-out chats up to their answer, and the answers."""
    lines = (FOLDER / "heldout.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    return [row[:-1] for row in rows], [row[-1]["content"] for row in rows]


def _score(answers: Sequence[str], wanted: Sequence[str]) -> str:
    hits = sum(one.strip() == other for one, other in zip(answers, wanted, strict=True))
    return f"{hits} of {len(wanted)} ({hits / len(wanted):.0%})"


def _merged_as_adapter(made: Run, merged: Path, chats: Sequence[Chat]) -> tuple[int, int]:
    """On how many chats the merged weights answer as the adapter on the same 16-bit base does.

    Raises ExportError when they differ on more than a twentieth: rounding turns a rare tie.
    """
    base = resolve(made.recipe().model)
    tokenizer = ChatTokenizer.load(base.folder, family=base.family)
    with console.spinner("the merged model answers them"):
        with sampling.sampler(base.folder, tokenizer, adapter=made.adapter) as adapter:
            expected = adapter.answers(chats, max_tokens=ANSWER_TOKENS)
        with sampling.sampler(merged, tokenizer) as whole:
            found = whole.answers(chats, max_tokens=ANSWER_TOKENS)
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    if same < 0.95 * len(chats):
        raise ExportError(
            f"the merged model answers only {same} of {len(chats)} chats as the adapter does",
            where=str(merged),
            hint="please report this with the run folder",
        )
    return same, len(chats)
