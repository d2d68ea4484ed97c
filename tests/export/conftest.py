"""Fixtures that several tests of exports share: starting a model process takes ten seconds."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastsft import scoring
from fastsft.export import llamacpp


@pytest.fixture(scope="session")
def scoring_process() -> Iterator[scoring.Process]:
    """One child that scores models, for the whole session."""
    with scoring.process() as process:
        yield process


@pytest.fixture(scope="session")
def llama_cpp() -> None:
    """Skips the test where the extra is not installed; it is never loaded into this process."""
    if llamacpp.installed() is None:
        pytest.skip("needs the extra gguf (llama-cpp-python)")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Gives a disk of so many bytes (as mount has it), or skips the test."""
    disk = tmp_path / "disk"
    made: list[Path] = []

    def mounted(size: str) -> Path:
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no right to mount a tmpfs")
        made.append(disk)
        return disk

    yield mounted
    for path in made:
        subprocess.run(["umount", str(path)], check=True)
