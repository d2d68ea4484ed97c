"""The quantizer: llama.cpp's own bytes, whole files or none, and refusals that say what to type."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import gguf_files
import numpy as np
import pytest

from fastsft.errors import ExportError
from fastsft.export import gguf_index, llamacpp, quantize

needs_llama_cpp = pytest.mark.skipif(llamacpp.installed() is None, reason="needs the extra gguf")
FEW = ["q4_k_m", "q5_k_m"]
REST = sorted(
    name for name, kind in quantize.TYPES.items() if name not in FEW and not kind.needs_imatrix
)
NEEDY = [name for name, kind in quantize.TYPES.items() if kind.needs_imatrix]
DIRECTLY = """
import ctypes, sys
import llama_cpp.llama_cpp as llama
params = llama.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), 1
sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""
SHIM = """#!{python}
import ctypes, sys
import llama_cpp.llama_cpp as llama
params = llama.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), int(sys.argv[4])
sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""
KILLED = """
import sys
from pathlib import Path
from fastsft.export import llamacpp, quantize
llamacpp.installed = lambda: None
quantize.run(Path(sys.argv[1]), Path(sys.argv[2]), "q4_0")
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.tiny(tmp_path_factory.mktemp("gguf") / "tiny-f16.gguf")


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without llama-cpp-python."""
    monkeypatch.setattr(llamacpp, "installed", lambda: None)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def program(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `llama-quantize` first on PATH."""
    path = folder / "bin" / "llama-quantize"
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def quantized_directly(source: Path, out: Path, name: str) -> Path:
    number = str(quantize.TYPES[name].number)
    subprocess.run(
        [sys.executable, "-c", DIRECTLY, str(source), str(out), number],
        check=True,
        capture_output=True,
    )
    return out


def equal_to_llama_cpps(source: Path, folder: Path, name: str) -> None:
    heard: list[tuple[int, int]] = []
    quantize.run(source, folder / "ours.gguf", name, progress=lambda *told: heard.append(told))

    wanted = quantized_directly(source, folder / "wanted.gguf", name)
    assert sha256(folder / "ours.gguf") == sha256(wanted)
    assert heard[-1] == (wanted.stat().st_size,) * 2
    assert sorted(path.name for path in folder.iterdir()) == ["ours.gguf", "wanted.gguf"]


@needs_llama_cpp
@pytest.mark.parametrize("name", FEW)
def test_the_bytes_are_those_of_llama_cpps_quantizer(source: Path, tmp_path: Path, name: str):
    equal_to_llama_cpps(source, tmp_path, name)


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_the_bytes_of_every_type_are_llama_cpps(source: Path, tmp_path: Path, name: str):
    equal_to_llama_cpps(source, tmp_path, name)


@needs_llama_cpp
def test_an_imatrix_old_or_new_gives_the_same_bytes(source: Path, tmp_path: Path):
    squares = gguf_files.squares()
    new = gguf_files.importance(tmp_path / "matrix", squares, count=4)
    quantize.run(source, tmp_path / "new.gguf", "q2_k_s", imatrix=new)
    old = gguf_files.importance_dat(tmp_path / "matrix", squares, calls=4)
    quantize.run(source, tmp_path / "old.gguf", "q2_k_s", imatrix=old)

    said = gguf_index.read(tmp_path / "new.gguf").metadata
    assert sha256(tmp_path / "new.gguf") == sha256(tmp_path / "old.gguf")
    assert said["quantize.imatrix.file"] == "matrix"
    assert said["quantize.imatrix.dataset"] == "calibration.txt"
    assert (said["quantize.imatrix.entries_count"], said["quantize.imatrix.chunks_count"]) == (
        14,
        3,
    )


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDY)
def test_llama_cpp_makes_a_type_that_needs_an_imatrix_only_with_one(
    source: Path, tmp_path: Path, name: str
):
    matrix = gguf_files.importance(tmp_path / "m.gguf", gguf_files.squares(), count=4)

    quantize.run(source, tmp_path / "with.gguf", name, imatrix=matrix)

    assert (tmp_path / "with.gguf").stat().st_size > 100_000
    with pytest.raises(subprocess.CalledProcessError):
        quantized_directly(source, tmp_path / "without.gguf", name)


@needs_llama_cpp
def test_an_imatrix_changes_the_bytes(source: Path, tmp_path: Path):
    matrix = gguf_files.importance(tmp_path / "m.gguf", gguf_files.squares(), count=4)

    quantize.run(source, tmp_path / "with.gguf", "q4_k_m", imatrix=matrix)
    quantize.run(source, tmp_path / "without.gguf", "q4_k_m")

    with_it, without = (tmp_path / name for name in ("with.gguf", "without.gguf"))
    at = gguf_index.read(with_it).data_offset, gguf_index.read(without).data_offset
    assert with_it.read_bytes()[at[0] :] != without.read_bytes()[at[1] :]


@needs_llama_cpp
def test_rows_that_do_not_divide_into_blocks_are_told_of(tmp_path: Path):
    source = gguf_files.tiny(tmp_path / "odd.gguf", feed=320)

    notes = quantize.run(source, tmp_path / "out.gguf", "q4_k_m")

    assert notes == (
        "rows that do not divide into blocks of q4_K are q5_0, in 1 of the tensors",
        "rows that do not divide into blocks of q6_K are q8_0, in 1 of the tensors",
    )


@needs_llama_cpp
def test_a_quantised_source_is_refused_in_llama_cpps_words(source: Path, tmp_path: Path):
    quantize.run(source, tmp_path / "q4_0.gguf", "q4_0")

    with pytest.raises(ExportError, match="requantizing from type q4_0 is disabled"):
        quantize.run(tmp_path / "q4_0.gguf", tmp_path / "again.gguf", "q4_k_m")

    assert [path.name for path in tmp_path.iterdir()] == ["q4_0.gguf"]


@needs_llama_cpp
def test_a_program_on_path_does_it_where_the_package_is_missing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_package: None
):
    program(tmp_path, SHIM.format(python=sys.executable), monkeypatch)

    quantize.run(source, tmp_path / "ours.gguf", "q4_k_m")

    wanted = quantized_directly(source, tmp_path / "wanted.gguf", "q4_k_m")
    assert sha256(tmp_path / "ours.gguf") == sha256(wanted)


def test_a_failing_programs_last_words_are_in_the_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_package: None
):
    program(tmp_path, "#!/bin/sh\necho no such model >&2\nexit 3\n", monkeypatch)

    with pytest.raises(ExportError, match="llama-quantize ended with code 3: no such model"):
        quantize.run(source, tmp_path / "out.gguf", "q4_k_m")

    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_export_leaves_no_process_and_nothing_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
):
    told = tmp_path / "pid"
    script = f"#!/bin/sh\necho half > $2\necho $$ > {told}.new\nmv {told}.new {told}\n"
    program(tmp_path, script + "exec sleep 600\n", monkeypatch)
    out = tmp_path / "out.gguf"
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source), str(out)], stderr=subprocess.DEVNULL
    )
    wait_until(told.exists)

    parent.send_signal(sent)
    parent.wait()

    pid = int(told.read_text())
    wait_until(lambda: is_gone(pid))
    assert not out.exists()
    assert (tmp_path / "out.gguf.partial").exists() == (sent == signal.SIGKILL)


def wait_until(holds: "object", *, seconds: float = 20) -> None:
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_without_a_quantizer_the_hint_is_what_to_type(
    monkeypatch: pytest.MonkeyPatch, no_package: None
):
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ExportError) as raised:
        quantize.check(["q4_k_m"], imatrix=None)

    assert raised.value.exit_code == 5
    assert "neither llama-cpp-python nor llama-quantize is here" in raised.value.what
    assert "uv sync --extra gguf" in raised.value.hint
    assert "pip install llama-cpp-python==0.3.36" in raised.value.hint
    assert "-DGGML_NATIVE=OFF" in raised.value.hint


def test_no_quantizer_is_asked_for_where_nothing_is_quantised(
    monkeypatch: pytest.MonkeyPatch, no_package: None
):
    monkeypatch.setenv("PATH", "")

    quantize.check([], imatrix=None)


@pytest.mark.parametrize("name", NEEDY)
def test_a_type_that_needs_an_imatrix_is_refused_without_one(name: str):
    with pytest.raises(ExportError, match=f"{name} only with an importance matrix"):
        quantize.check([name], imatrix=None)


def test_an_unknown_type_is_refused_with_the_nearest():
    with pytest.raises(ExportError, match="did you mean q4_k_m"):
        quantize.check(["Q4_K_M"], imatrix=None)


def test_a_file_that_exists_is_never_replaced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_package: None
):
    program(tmp_path, "#!/bin/sh\nexit 0\n", monkeypatch)
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")

    with pytest.raises(ExportError, match="exists already"):
        quantize.run(source, out, "q4_k_m")

    assert out.read_bytes() == b"mine"


def test_the_estimate_is_near_the_files_of_a_small_model(source: Path, tmp_path: Path):
    shapes = {key: tensor.shape for key, tensor in gguf_index.read(source).tensors.items()}

    assert quantize.estimate(shapes, "q6_k") == pytest.approx(1196896 - 7744, rel=0.01)
    assert quantize.estimate({"model.norm.weight": (256,)}, "q6_k") == 1024


def test_the_estimate_of_mistral_7b_is_what_llama_cpps_dry_run_says():
    layer = {
        **{f"self_attn.{part}_proj": (4096, 4096) for part in "qo"},
        **{f"self_attn.{part}_proj": (1024, 4096) for part in "kv"},
        **{f"mlp.{part}_proj": (14336, 4096) for part in ("gate", "up")},
        "mlp.down_proj": (4096, 14336),
    }
    shapes = {
        f"model.layers.{n}.{part}.weight": shape for n in range(32) for part, shape in layer.items()
    }
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (32768, 4096))
    weights = sum(rows * columns for rows, columns in shapes.values())

    for name, bits in (("q4_k_m", 4.8257), ("q2_k", 3.0045), ("iq2_xs", 2.429)):
        assert 1 <= quantize.estimate(shapes, name) / (weights * bits / 8) < 1.03


def test_the_head_weighs_more_than_a_layer_in_the_estimate():
    layer = {"lm_head.weight": (8, 256), "model.layers.0.mlp.up_proj.weight": (4096, 4096)}
    head = {"model.layers.0.mlp.up_proj.weight": (8, 256), "lm_head.weight": (4096, 4096)}

    assert quantize.estimate(head, "q2_k") > 2 * quantize.estimate(layer, "q2_k")
    assert np.isclose(quantize.estimate(head, "q6_k"), quantize.estimate(layer, "q6_k"), rtol=0.01)
