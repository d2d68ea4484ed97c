"""Talks to the sampling child: starts it, sends prompts, reads answers.  Never imports torch."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsft import start
from fastsft.base import resolve
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import TrainError
from fastsft.launch import environment, scratch_folder
from fastsft.run import Run


@dataclass(frozen=True)
class Sampler:
    """A child process that holds one model."""

    child: "subprocess.Popen[str]"
    tokenizer: ChatTokenizer
    log: Path

    def answers(
        self, chats: Sequence[Sequence[Mapping[str, str]]], *, max_tokens: int
    ) -> list[str]:
        """The greedy answer to each chat (messages up to the last user turn)."""
        prompts = [self._prompt(chat) for chat in chats]
        pad = self.tokenizer.pad_token
        self._send({"prompts": prompts, "max_tokens": max_tokens, "pad_token": pad})
        found: list[str] = self._read()["answers"]
        return found

    def stream(
        self, chat: Sequence[Mapping[str, str]], *, max_tokens: int, temperature: float
    ) -> Iterator[str]:
        """The answer to a chat, piece by piece."""
        self._send(
            {"prompt": self._prompt(chat), "max_tokens": max_tokens, "temperature": temperature}
        )
        while "piece" in (record := self._read()):
            yield record["piece"]

    def wait_ready(self) -> None:
        """Return once the model is loaded."""
        self._read()

    def _prompt(self, chat: Sequence[Mapping[str, str]]) -> str:
        return self.tokenizer.render(list(chat), add_generation_prompt=True)

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(request) + "\n")
        self.child.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            told = self.log.read_text("utf-8", errors="replace").strip().splitlines()
            raise TrainError(
                f"the model process ended: {told[-1][:200] if told else 'no word'}",
                where="sampling",
                hint="if memory ran out, close other programs; `fastsft doctor` checks the stack",
            )
        record: dict[str, Any] = json.loads(line)
        return record


@contextmanager
def model(run: Run, *, base: bool) -> Iterator[Sampler]:
    """A finished run's model, or its base, held as it was trained."""
    recipe = run.recipe()
    found = resolve(recipe.model)
    tokenizer = start.tokenizer(recipe, found, run)
    is_whole = recipe.train.parameters == "all"
    folder = run.adapter if is_whole and not base else found.folder
    adapter = None if is_whole or base else run.adapter
    is_nf4 = recipe.model.quantization == "nf4"
    with sampler(folder, tokenizer, adapter=adapter, nf4=is_nf4) as opened:
        yield opened


@contextmanager
def sampler(
    base: Path, tokenizer: ChatTokenizer, *, adapter: Path | None = None, nf4: bool = False
) -> Iterator[Sampler]:
    """A model ready to answer; gone when the block ends."""
    command = [sys.executable, "-m", "fastsft.evaluate.generate", str(base)]
    command += ["--adapter", str(adapter)] if adapter else []
    command += ["--nf4"] if nf4 else []
    command += [part for stop in tokenizer.stop_ids for part in ("--stop", str(stop))]
    with scratch_folder() as scratch, (scratch / "log").open("w") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=environment(scratch),
            start_new_session=True,
        )
        with child:
            try:
                found = Sampler(child, tokenizer, scratch / "log")
                found.wait_ready()
                yield found
            finally:
                child.kill()
