"""Fixtures that several rooms share: where the real tokenizers are, and each loaded once."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from fastsft.data.tokenizer import ChatTokenizer

# Spinning threads would slow every other test process down; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED = Path(
    os.environ.get("FASTSFT_SHARED", Path(__file__).resolve().parents[2] / "shared")
).resolve()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data and the history go into folders of this session, for child processes too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@cache
def _load(name: str) -> ChatTokenizer:
    return ChatTokenizer.load(SHARED / "tokenizers" / name)


@pytest.fixture(scope="session")
def tokenizer_folder() -> Callable[[str], Path]:
    """Gives the folder of a real tokenizer, or skips the test where it is absent."""

    def find(name: str) -> Path:
        folder = SHARED / "tokenizers" / name
        if not (folder / "tokenizer.json").is_file():
            pytest.skip(f"no real tokenizer at {folder}; set FASTSFT_SHARED")
        return folder

    return find


@pytest.fixture(scope="session")
def real_tokenizer(tokenizer_folder: Callable[[str], Path]) -> Callable[[str], ChatTokenizer]:
    """Gives a real tokenizer by name, loaded once a session, or skips the test."""

    def load(name: str) -> ChatTokenizer:
        tokenizer_folder(name)
        return _load(name)

    return load


@pytest.fixture(scope="session")
def qwen(real_tokenizer: Callable[[str], ChatTokenizer]) -> ChatTokenizer:
    return real_tokenizer("qwen2.5")


@pytest.fixture(scope="session")
def shared_templates() -> list[Path]:
    """Every published chat template at hand."""
    found = sorted((SHARED / "templates").glob("*.jinja"))
    if not found:
        pytest.skip(f"no templates at {SHARED / 'templates'}; set FASTSFT_SHARED")
    return found
