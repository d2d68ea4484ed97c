"""The quantising child, `python -m fastsft.export.quantize_child`: one GGUF into another type.

Dies with its parent, and never writes a file but the one that it is told.
"""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SLAB = 256 * 1024**2
"""Bytes of rows held at once; llama.cpp would take 8 GiB.  The result is the same."""

_PR_SET_PDEATHSIG = 1  # Source: prctl(2)
_TEXT = 127  # bytes of a text in llama_model_kv_override, less its end


def _die_with(parent: int) -> None:
    """Have the system kill this process once its parent is gone; it outlives an exec."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the export has ended")


def _quantize(source: Path, out: Path, number: int, threads: int, imatrix: Path | None) -> None:
    import llama_cpp.llama_cpp as llama

    from fastsft.export.llama_child import Log

    log = Log()
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.max_buf_size = number, threads, SLAB
    held = _importance(params, imatrix) if imatrix else None
    code = llama.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    del held  # C read it until here
    if code:
        sys.exit(str(log.refused("llama.cpp does not quantise the file")))


def _importance(params: Any, path: Path) -> tuple[Any, ...]:
    """Hand the matrix over, and note its source in the file as llama-quantize does.

    Returns what must be held while llama.cpp reads it.
    """
    import llama_cpp.llama_cpp as llama

    from fastsft.export import imatrix

    found = imatrix.read(path)
    floats = ctypes.POINTER(ctypes.c_float)
    rows = (llama.llama_model_imatrix_data * (len(found.entries) + 1))()  # the last stays empty
    for row, (name, weights) in zip(rows, found.entries.items(), strict=False):
        row.name, row.data, row.size = name.encode(), weights.ctypes.data_as(floats), weights.size
    facts: dict[str, str | int] = {"file": path.name}
    if found.dataset:
        facts["dataset"] = found.dataset
    facts["entries_count"] = len(found.entries)
    if found.chunks > 0:
        facts["chunks_count"] = found.chunks
    keys = _overrides(facts)
    params.imatrix, params.kv_overrides = rows, keys
    return found, rows, keys


def _overrides(facts: Mapping[str, str | int]) -> Any:
    import llama_cpp.llama_cpp as llama

    keys = (llama.llama_model_kv_override * (len(facts) + 1))()  # the last stays empty
    for key, (name, value) in zip(keys, facts.items(), strict=False):
        key.key = f"quantize.imatrix.{name}".encode()
        if isinstance(value, int):
            key.tag, key.value.val_i64 = llama.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            key.tag = llama.LLAMA_KV_OVERRIDE_TYPE_STR
            text = value.encode()[:_TEXT]
            ctypes.memmove(ctypes.byref(key.value), text + b"\0", len(text) + 1)
    return keys


def main() -> None:
    """Quantise one file, or become the `llama-quantize` that does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--program", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    asked = parser.parse_args()
    _die_with(asked.parent)
    if asked.program is None:
        _quantize(asked.source, asked.out, asked.number, asked.threads, asked.imatrix)
        return
    command = [str(asked.program)]
    if asked.imatrix:
        os.chdir(asked.imatrix.parent)  # it writes the name as given into the file
        command += ["--imatrix", asked.imatrix.name]
    command += [str(asked.source), str(asked.out), str(asked.number), str(asked.threads)]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
