"""The parity gate: proves that an export is what was trained, and writes what it found.

It changes no weight and deletes no export: what fails is marked, not removed.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fastsft import scoring
from fastsft.errors import ExportError
from fastsft.export import card, make, record, vocabulary
from fastsft.export.gate import behaviour, speakers, structure, text
from fastsft.export.gate.verdict import Check, Checks, Verdict
from fastsft.export.record import Record
from fastsft.export.trained import Trained
from fastsft.run import write_atomically
from fastsft.scoring import Process

Progress = Callable[[int, int], None]
Say = Callable[[str], None]

_CARD = "README.md"
_SHOWN = 40


def _silent(_: str) -> None:
    """Nobody listens."""


def verify(
    folder: Path,
    trained: Trained,
    *,
    process: Process | None = None,
    say: Say = _silent,
    progress: Progress | None = None,
) -> Verdict:
    """Checks an export against the run that it was made from.

    `process` is one that scores models already; without it one is started when it is needed.

    Writes `verify.json`; `UNVERIFIED` goes when every check ran and passed, else it says why.
    `say` hears what is checked next, `progress` how many bytes of it were read, and of all.
    What fails is in the verdict: `Verdict.require` raises it.

    Raises: ExportError when the folder is no export.
    """
    made = record.read(folder)
    found = [_origin(made, trained)]
    say("comparing weights")
    with _base(folder, made, trained) as base:
        checked, whole = structure.check(folder, made, base, trained.adapter, progress=progress)
    found.append(checked)
    if made.kind != "gguf-lora":
        say("comparing token ids")
        known = vocabulary.of(trained) if made.kind == "gguf" else None
        texts = text.Texts(trained, known.covers if known else None)
        found.append(text.check(folder, made, texts, whole))
        found[-1].notes.extend(known.notes if known else ())
    found.append(_behaviour(folder, made, trained, whole, found, process, say))
    verdict = Verdict(
        folder=str(folder),
        kind=made.kind,
        checks=tuple(check for part in found for check in part.found),
        notes=tuple(note for part in found for note in part.notes),
        versions=record.versions(),
    )
    _write(folder, made, verdict)
    return verdict


@contextmanager
def _base(folder: Path, made: Record, trained: Trained) -> Iterator[Path]:
    """The weights that were merged onto."""
    with make.base_of(trained, make.Order(folder, merge_base=made.merge_base)) as base:
        yield base


def _origin(made: Record, trained: Trained) -> Checks:
    """The export must be of this run, its base and its adapter as they are now."""
    checks = Checks("structure")
    pairs = (
        ("run", made.run, trained.run.folder.name),
        ("base", made.base_fingerprint, trained.base.fingerprint),
        ("adapter", made.adapter_sha256, make.adapter_sha256(trained)),
    )
    wrong = [
        f"it was made from {what} {found[:_SHOWN]}, this is {wanted[:_SHOWN]}"
        for what, found, wanted in pairs
        if found != wanted
    ]
    if wrong:
        cure = "name the run that it was made from with --run, or export again with --overwrite"
        checks.failed("origin", record.NAME, "; ".join(wrong), "this run", cure=cure)
    else:
        checks.passed("origin", record.NAME, made.run, "this run")
    return checks


def _behaviour(
    folder: Path,
    made: Record,
    trained: Trained,
    whole: frozenset[str],
    before: list[Checks],
    process: Process | None,
    say: Say,
) -> Checks:
    """The models side by side, where nothing is wrong with them already."""
    checks = Checks("behaviour")
    if any(check.result == "failed" for part in before for check in part.found):
        checks.not_run("logits", "", "a check before it failed")
        return checks
    names = sorted(whole) if made.kind in ("gguf", "gguf-lora") else [""]
    with nullcontext(process) if process else scoring.process() as scorers:
        say("the adapter answers")
        try:
            known = behaviour.reference(trained, made, scorers)
        except ExportError as error:
            checks.not_run("logits", "", f"the adapter on its base: {error.what}", cure=error.hint)
            return checks
        checks.notes.extend(behaviour.describe(known))
        side = speakers.Side(folder, made, trained, scorers, known.dtype)
        for name in names:
            say(f"{name or made.kind} answers")
            _ask(side, name, known, checks)
    return checks


def _ask(side: speakers.Side, name: str, known: behaviour.Reference, checks: Checks) -> None:
    kind = _kind(name, side.made, side.trained)
    stops = side.trained.tokenizer.stop_ids
    try:
        with speakers.opened(side, name) as speaker:
            behaviour.judge(name, kind, known, speaker, stops, checks)
    except speakers.Unavailable as error:
        checks.not_run("logits", name, error.what, cure=error.hint)
    except ExportError as error:
        checks.failed("logits", name, error.what, "loads and answers", cure=error.hint)


def _kind(name: str, made: Record, trained: Trained) -> str:
    """The type whose thresholds hold; "base" is the base's own, half a float as a rule."""
    kind = next(file.type for of, file in made.files.items() if not name or of == name)
    if kind != "base":
        return kind
    config = json.loads((trained.base.folder / "config.json").read_text("utf-8"))
    stored = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    return stored if stored in ("float32", "float16") else "bfloat16"


def _write(folder: Path, made: Record, verdict: Verdict) -> None:
    """The verdict, and the mark where it is not a clear pass; the mark first, gone last."""
    mark = folder / record.UNVERIFIED
    files = {name: file.sha256 for name, file in made.files.items()}
    told = {**verdict.as_dict(), "files": files}
    if verdict.outcome != "passed":
        write_atomically(mark, "".join(_reasons(verdict)))
    write_atomically(folder / record.VERDICT, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    readme = folder / _CARD
    if readme.is_file():
        write_atomically(readme, card.with_verdict(readme.read_text("utf-8"), told))
    if verdict.outcome == "passed":
        mark.unlink(missing_ok=True)


def _reasons(verdict: Verdict) -> Iterator[str]:
    """One line for each check that failed or did not run."""
    yield f"{verdict.summary}\n"
    for check in (*verdict.failures, *verdict.left_out):
        yield f"{check.result}: {_line(check)}\n"


def _line(check: Check) -> str:
    place = f" of {check.file}" if check.file else ""
    return f"{check.area}: {check.name}{place}: {check.why}"
