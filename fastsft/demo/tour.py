"""The demo: fine-tune the tiny base, score it before and after, export, compare.  No torch."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsft import commands, console, exporting, recipe_file, sampling
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import ExportError, RecipeError
from fastsft.export import llamacpp, make_gguf, trained
from fastsft.export.trained import Trained

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

    Raises ExportError when an export does not answer as the adapter does.
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
    found = trained.opened(made)
    expected = _adapter_answers(found, chats)
    return {
        "exact match before": _score(before, wanted),
        "exact match after": _score(after, wanted),
        **_exported(found, chats, expected),
        "training": f"{trained_s:.0f} s",
        "all": f"{time.monotonic() - began:.0f} s",
        "exports": made.exports,
        "try": f"fastsft chat {made.folder}",
        "run": made.folder,
    }


def _exported(found: Trained, chats: Sequence[Chat], expected: Sequence[str]) -> dict[str, str]:
    """Each export of the run, and on how many chats it answers as the adapter does."""
    exporting.export(found.run.folder, exporting.Asked("merged"), answer=False)
    with (
        console.spinner("the merged model answers them"),
        sampling.sampler(found.run.exports / "merged", found.tokenizer) as whole,
    ):
        answers = whole.answers(chats, max_tokens=ANSWER_TOKENS)
    told = {"merged": _same("merged", answers, expected)}
    quants = ("q8_0", "q4_k_m") if llamacpp.installed() else ("q8_0",)
    asked = exporting.Asked("gguf", quants=",".join(quants))
    exporting.export(found.run.folder, asked, answer=False)
    for quant in quants:
        file = found.run.exports / "gguf" / make_gguf.file_name(found, quant)
        told[file.name] = _gguf_told(found.tokenizer, file, chats, expected)
    return told


def _gguf_told(
    tokenizer: ChatTokenizer, file: Path, chats: Sequence[Chat], expected: Sequence[str]
) -> str:
    if not llamacpp.installed():
        return "written; to see it answer: uv sync --extra gguf, then the demo again"
    with console.spinner(f"{file.name} answers them"), llamacpp.opened(file) as model:
        answers = []
        for chat in chats:
            prompt = tokenizer.render(chat, add_generation_prompt=True)
            (ids,) = model.tokenize([prompt], add_special=False)
            new = model.greedy(ids, max_tokens=ANSWER_TOKENS, stop_ids=tokenizer.stop_ids)
            kept = [token for token in new if token not in tokenizer.stop_ids]
            answers.append(tokenizer.decode(kept))
    return _same(file.name, answers, expected)


def _heldout() -> tuple[list[Chat], list[str]]:
    """The held-out chats up to their answer, and the answers."""
    lines = (FOLDER / "heldout.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    return [row[:-1] for row in rows], [row[-1]["content"] for row in rows]


def _score(answers: Sequence[str], wanted: Sequence[str]) -> str:
    hits = sum(one.strip() == other for one, other in zip(answers, wanted, strict=True))
    return f"{hits} of {len(wanted)} ({hits / len(wanted):.0%})"


def _adapter_answers(found: Trained, chats: Sequence[Chat]) -> list[str]:
    """What the adapter answers on the 16-bit base that it is merged onto."""
    with (
        console.spinner("the adapter answers them on the 16-bit base"),
        sampling.sampler(found.base.folder, found.tokenizer, adapter=found.adapter) as adapter,
    ):
        return adapter.answers(chats, max_tokens=ANSWER_TOKENS)


def _same(what: str, answers: Sequence[str], expected: Sequence[str]) -> str:
    """On how many chats an export answers as the adapter does.

    Raises: ExportError when they differ on more than a twentieth: rounding turns a rare tie.
    """
    same = sum(one == other for one, other in zip(answers, expected, strict=True))
    told = f"{same} of {len(expected)} answers as the adapter's"
    if same < 0.95 * len(expected):
        raise ExportError(f"only {told}", where=what, hint="please report this with the run folder")
    return told
