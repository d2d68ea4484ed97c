"""Writes the demo's rows: a customer message in, a JSON record out.  No torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from fastsft.demo import messages
from fastsft.demo.messages import Message

SYSTEM: Final = "Turn the customer message into a JSON record."
TRAIN_ROWS: Final = 600
HELDOUT_ROWS: Final = 120
SEED: Final = 20_260

Row = dict[str, list[dict[str, str]]]


def record(message: Message) -> str:
    """The answer the demo teaches: one line of JSON, keys always in this order."""
    fields = {
        "language": message.language,
        "intent": message.intent,
        "product": message.product,
        "urgent": "yes" if message.urgent else "no",
    }
    return json.dumps(fields)


def row(message: Message) -> Row:
    """One conversation in the `messages` shape."""
    turns = (("system", SYSTEM), ("user", message.text), ("assistant", record(message)))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def split(*, seed: int = SEED) -> tuple[list[Row], list[Row]]:
    """The rows to train on, and held-out rows whose messages are none of those."""
    drawn = _distinct(Random(seed))
    heldout = [row(next(drawn)) for _ in range(HELDOUT_ROWS)]
    return [row(next(drawn)) for _ in range(TRAIN_ROWS)], heldout


def _distinct(rng: Random) -> Iterator[Message]:
    seen: set[str] = set()
    while True:
        message = messages.draw(rng)
        if message.text not in seen:
            seen.add(message.text)
            yield message


def write(folder: Path) -> None:
    """Writes `train.jsonl` and `heldout.jsonl`, the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "heldout"), split(), strict=True):
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    """Runs `python -m fastsft.demo.data --out DIR`."""
    parser = argparse.ArgumentParser(description="Write the demo's train and held-out rows.")
    parser.add_argument("--out", type=Path, required=True)
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
