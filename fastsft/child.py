"""Runs a module of ours as a child that speaks JSON lines.  Never imports torch."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsft.errors import ExportError
from fastsft.launch import environment, scratch_folder

_MEMORY = "if memory ran out, close other programs; `fastsft doctor` checks the stack"
_TOLD = 400  # characters of the last line that are worth repeating


@dataclass(frozen=True)
class Child:
    """A running child; `scratch` is a folder of its own, gone when it ends.

    `who` and `hint` are for the error when it dies: who that was, and what to do about it.
    """

    process: "subprocess.Popen[str]"
    name: str
    who: str
    hint: str
    scratch: Path

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request.

        Raises: ExportError when the child died; it says of what.
        """
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # a child that is gone is told by the missing answer
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next record; an `error` record is raised as the ExportError that it is.

        Raises: ExportError when the child died; it says of what.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            what = f"{self.who} {died(self.process, self.scratch / _LOG)}"
            raise ExportError(what, where=self.name, hint=self.hint)
        record: dict[str, Any] = json.loads(line)
        if "error" in record:
            raise ExportError(**record["error"])
        return record


_LOG = "log"


@contextmanager
def started(
    module: str,
    arguments: Sequence[str],
    *,
    name: str,
    who: str = "the process",
    hint: str = _MEMORY,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """A child that runs `module`, with `settings` in its environment; gone when the block ends.

    It ends by itself when this process dies, once it reads its stdin or writes to its stdout.
    """
    with scratch_folder() as scratch, (scratch / _LOG).open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env={**environment(scratch), **(settings or {})},
            start_new_session=True,
        )
        with process:
            try:
                yield Child(process, name, who, hint, scratch)
            finally:
                process.kill()
                _close(process)


def died(process: "subprocess.Popen[str]", log: Path) -> str:
    """How a child ended, and the last line that it printed."""
    code = process.wait()
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"{how}: {lines[-1].strip()[:_TOLD]}" if lines else f"{how} and no word"


def _close(process: "subprocess.Popen[str]") -> None:
    """Close the child's stdin; what it did not live to read is dropped."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
