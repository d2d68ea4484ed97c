"""OpenBLAS is held at one thread inside, and is as it was outside."""

import numpy as np

from fastsft.export import blas


def threads() -> list[int]:
    return [library.threads() for library in blas._loaded()]


def test_threads_are_held_and_given_back():
    np.ones((2, 2)) @ np.ones((2, 2))
    before = threads()

    with blas.one_blas_thread() as held:
        assert held == bool(before)
        assert set(threads()) <= {1}

    assert threads() == before


def test_a_numpy_without_openblas_is_told(monkeypatch):
    monkeypatch.setattr(blas, "_loaded", list)

    with blas.one_blas_thread() as held:
        assert not held
