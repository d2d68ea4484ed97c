"""Writes torch tensors by name into safetensors files of a bounded size, and their index."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from fastsft.export import sidecars
from fastsft.export.staging import write_file
from fastsft.weights import INDEX, SINGLE, Dtype

SHARD_BYTES = 2**30
"""A file is written when so much is at hand; memory holds about as much."""

TORCH: dict[Dtype, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
Entries = dict[str, torch.Tensor]

_CODES = {**{kind: name for name, kind in TORCH.items()}, torch.uint8: "U8"}


class Writer:
    """Collects tensors and writes them into files of about `SHARD_BYTES`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nbytes = 0
        self._shards: list[list[str]] = []
        self._held: Entries = {}

    def add(self, entries: Entries) -> None:
        """Takes some tensors; those held so far are written when there are enough."""
        fresh = sum(part.nbytes for part in entries.values())
        if self._held and sum(part.nbytes for part in self._held.values()) + fresh > SHARD_BYTES:
            self._write()
        self._held |= entries

    def finish(self) -> None:
        """Writes what is held, names the files by their number, and writes their index."""
        self._write()
        if len(self._shards) == 1:
            _part(self.folder, 1).rename(self.folder / SINGLE)
            return
        many = len(self._shards)
        where: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            name = f"model-{number:05}-of-{many:05}.safetensors"
            _part(self.folder, number).rename(self.folder / name)
            where |= dict.fromkeys(names, name)
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": where}
        write_file(self.folder / INDEX, sidecars.as_json(index))

    def _write(self) -> None:
        # Wider types first, so that each tensor starts on its own boundary.
        order = sorted(self._held.items(), key=lambda entry: -entry[1].element_size())
        self._shards.append([name for name, _ in order])
        with _part(self.folder, len(self._shards)).open("xb") as file:
            file.write(_header(order))
            for _, part in order:
                file.write(part.contiguous().flatten().view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        self.nbytes += sum(part.nbytes for _, part in order)
        self._held = {}


def _part(folder: Path, number: int) -> Path:
    return folder / f".part-{number}"


def _header(tensors: list[tuple[str, torch.Tensor]]) -> bytes:
    """Source: https://github.com/huggingface/safetensors#format"""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, part in tensors:
        end = at + part.nbytes
        entries[name] = {
            "dtype": _CODES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    return len(text).to_bytes(8, "little") + text
