"""Fixtures that several tests of exports share: starting a model process takes ten seconds."""

from collections.abc import Iterator

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
