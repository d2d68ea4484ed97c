"""An export that is killed, or whose disk fills up, leaves nothing that looks finished."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import finished_run
import pytest

from fastsft.errors import ExportError
from fastsft.export import estimate, llamacpp, make_gguf, record, trained
from fastsft.export.make import Order
from fastsft.export.staging import require_space
from fastsft.run import Run

TELLING = """
import sys
from contextlib import contextmanager
from pathlib import Path
from fastsft.export import make_gguf, trained
from fastsft.export.make import Order
from fastsft.run import Run

@contextmanager
def bar(text):
    def tell(done, total):
        print(text, flush=True)
        sys.stdin.readline()
    tell(0, 0)
    yield tell
    tell(0, 0)

found = trained.opened(Run(Path(sys.argv[1])))
order = Order(Path(sys.argv[2]), bar=bar)
make_gguf.gguf_files(found, order, quants=sys.argv[3].split(","), imatrix=None)
"""
"""Says where it is and waits for a line, at every sign of progress."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run.make(tmp_path_factory.mktemp("killed"))


def killed_after(run: Run, out: Path, quants: str, signs: int) -> str | None:
    """Kills an export after so many signs of progress; where it was, None when it had ended."""
    words = [sys.executable, "-c", TELLING, str(run.folder), str(out), quants]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        for _ in range(signs):
            told = child.stdout.readline()
            if not told:
                return None
            child.stdin.write("\n")
            child.stdin.flush()
        child.kill()
    return told.strip()


def hashes(out: Path) -> dict[str, str]:
    return {name: file.sha256 for name, file in record.read(out).files.items()}


def quants_here() -> str:
    return "f16,q8_0,q4_k_m" if llamacpp.installed() else "f16,q8_0"


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_export_leaves_nothing_finished_and_the_next_succeeds(run, tmp_path, kills):
    quants = quants_here()
    make_gguf.gguf_files(
        trained.opened(run), Order(tmp_path / "whole"), quants=quants.split(","), imatrix=None
    )
    wanted, rng, places = hashes(tmp_path / "whole"), random.Random(kills), []

    for number in range(kills):
        out = tmp_path / str(number) / "gguf"
        places.append(killed_after(run, out, quants, rng.randint(1, 60)))

        assert out.exists() == (places[-1] is None)
        order = Order(out, overwrite=out.exists())
        make_gguf.gguf_files(trained.opened(run), order, quants=quants.split(","), imatrix=None)
        assert hashes(out) == wanted
        assert [path.name for path in out.parent.iterdir()] == ["gguf"]
        shutil.rmtree(out)

    assert any(places)


def test_a_disk_too_small_is_refused_before_writing(run, small_disk):
    disk = small_disk("10m")
    with pytest.raises(ExportError, match=r"needs 0\.0 GiB in .*, 0\.0 GiB free"):
        make_gguf.gguf_files(
            trained.opened(run), Order(disk / "gguf"), quants=["f32"], imatrix=None
        )

    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_midway_leaves_nothing(run, small_disk, monkeypatch):
    disk = small_disk("10m")
    monkeypatch.setattr(estimate, "require_space", lambda *_: require_space(disk, 0))

    with pytest.raises(ExportError, match="is full; nothing was kept"):
        make_gguf.gguf_files(
            trained.opened(run), Order(disk / "gguf"), quants=["f32"], imatrix=None
        )

    assert list(disk.iterdir()) == []


def test_too_little_memory_is_refused_by_the_step_that_needs_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "memory_free", lambda: 2**20)

    with pytest.raises(ExportError, match=r"writing q8_0 needs 0\.6 GiB of memory, 0\.0 GiB are"):
        make_gguf.gguf_files(
            trained.opened(run), Order(tmp_path / "gguf"), quants=["q8_0"], imatrix=None
        )

    assert list(tmp_path.iterdir()) == []
