"""What doctor says of llama.cpp: found, another version, only its program, nothing."""

import pytest

from fastsft import doctor
from fastsft.doctor import Finding
from fastsft.export import llamacpp


def found() -> Finding:
    return next(finding for finding in doctor.examine() if finding.name == "llama-cpp-python")


def test_the_tested_llama_cpp_is_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp, "installed", lambda: llamacpp.VERSION)

    assert found() == Finding("llama-cpp-python", "ok", llamacpp.VERSION)


def test_another_version_is_named_beside_the_tested_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp, "installed", lambda: "0.2.1")

    assert found().what == f"0.2.1, tested with {llamacpp.VERSION}"
    assert found().cure == llamacpp.INSTALL


def test_a_quantizer_on_path_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path):
    program = tmp_path / "llama-quantize"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(llamacpp, "installed", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert str(program) in found().what


def test_without_llama_cpp_the_cure_is_what_to_type(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp, "installed", lambda: None)
    monkeypatch.setenv("PATH", "")

    finding = found()

    assert finding.state == "warn"
    assert "no K-quants" in finding.what
    assert "uv sync --extra gguf" in finding.cure
