"""Exports that were tampered with after they were written, for the parity gate to find."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from fastsft.export import general, gguf, make_gguf, record, vocabulary
from fastsft.export.gate.gguf_file import GgufTensor, open_gguf
from fastsft.export.ggml import FileType
from fastsft.export.make import Order
from fastsft.export.record import Record
from fastsft.export.trained import Trained

LORA = "adapter_model.safetensors"


def write(found: Trained, out: Path, *quants: str) -> Path:
    make_gguf.gguf_files(found, Order(out), quants=quants, imatrix=None)
    return out


def the_gguf(folder: Path) -> Path:
    (path,) = folder.glob("*.gguf")
    return path


def vouch(folder: Path) -> Record:
    """Makes export.json agree with the files as they are: a lie that no hash shows."""
    made = record.read(folder)
    files = {name: record.file_of(folder / name, file.type) for name, file in made.files.items()}
    made = dataclasses.replace(made, files=files)
    record.write(folder, made)
    return made


def rewrite(
    folder: Path,
    found: Trained,
    *,
    base: Path | None = None,
    adapter: Path | None = None,
    file_type: FileType = "q8_0",
    **told: Any,
) -> Record:
    """Writes the folder's one GGUF anew: from another base or adapter, or with a vocabulary
    that says something else."""
    path = the_gguf(folder)
    path.unlink()
    gguf.write(
        base or found.base.folder,
        adapter or found.adapter,
        {file_type: path},
        vocabulary=dataclasses.replace(vocabulary.of(found), **told),
        general=general.fields(found, kind="model"),
    )
    return vouch(folder)


def flip_bit(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def tensors(path: Path) -> Mapping[str, GgufTensor]:
    return open_gguf(path).tensors


def swap(path: Path, one: str, other: str) -> None:
    first, second = tensors(path)[one], tensors(path)[other]
    file = open_gguf(path)
    values = [file.read(tensor, 0, tensor.nbytes) for tensor in (first, second)]
    put(path, first, values[1])
    put(path, second, values[0])


def put(path: Path, tensor: GgufTensor, values: np.ndarray) -> None:
    with path.open("r+b") as file:
        file.seek(tensor.start)
        file.write(values.tobytes())


def scaled_adapter(adapter: Path, out: Path, factor: float) -> Path:
    """The adapter with `factor` times its B, and so of what it adds."""
    out.mkdir()
    for path in adapter.iterdir():
        if path.name != LORA:
            (out / path.name).write_bytes(path.read_bytes())
    values = load_file(adapter / LORA)
    scaled = {n: v * np.float32(factor) if "lora_B" in n else v for n, v in values.items()}
    save_file(scaled, out / LORA)
    return out
