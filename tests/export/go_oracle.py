"""The real Go text/template, where a Go toolchain is at hand; or the test is skipped."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".go")


def toolchain() -> str:
    """The `go` command, or the test is skipped."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go toolchain on PATH")
    return go


def rendered(
    requests: Sequence[tuple[str, Sequence[Mapping[str, str]]]], folder: Path
) -> list[str]:
    """What Go makes of each template and chat."""
    go = toolchain()
    lines = [
        json.dumps(
            {
                "Template": template,
                "Messages": [{"Role": m["role"], "Content": m["content"]} for m in chat],
            }
        )
        for template, chat in requests
    ]
    found = subprocess.run(
        [go, "run", str(SOURCE)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GOCACHE": str(folder), "GO111MODULE": "off", "GOTELEMETRY": "off"},
    )
    return [json.loads(line) for line in found.stdout.split("\n")[:-1]]
