"""Runs a module of ours as a child that speaks JSON lines.  Never imports torch."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsft.errors import ExportError
from fastsft.launch import environment, scratch_folder

_MEMORY = "if memory ran out, close other programs; `fastsft doctor` checks the stack"
_TOLD = 300  # characters of the last line that are worth repeating


@dataclass(frozen=True)
class Child:
    """A running child; `scratch` is a folder of its own, gone when it ends."""

    process: "subprocess.Popen[str]"
    name: str
    scratch: Path
    log: Path

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request.

        Raises: ExportError when the child died; it says of what.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next record; an `error` record is raised as the ExportError that it is.

        Raises: ExportError when the child died; it says of what.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            raise self._died()
        record: dict[str, Any] = json.loads(line)
        if "error" in record:
            raise ExportError(**record["error"])
        return record

    def _died(self) -> ExportError:
        code = self.process.wait()
        told = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        why = told[-1][:_TOLD] if told else f"exit code {code}, and no word"
        if code < 0:
            why = f"it was ended by {signal.Signals(-code).name}"
        return ExportError(f"the process ended: {why}", where=self.name, hint=_MEMORY)


@contextmanager
def started(module: str, arguments: Sequence[str], *, name: str) -> Iterator[Child]:
    """A child that runs `module`; it is gone when the block ends.

    It ends by itself when this process dies, once it reads its stdin or writes to its stdout.
    """
    with scratch_folder() as scratch, (scratch / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=environment(scratch),
            start_new_session=True,
        )
        with process:
            try:
                yield Child(process, name, scratch, scratch / "log")
            finally:
                process.kill()
