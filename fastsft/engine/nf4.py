"""The NF4 child, `python -m fastsft.engine.nf4`: a model folder's weights through bitsandbytes.

`dequantise SOURCE OUT` writes them as 4-bit training sees them, `quantise SOURCE OUT` in 4 bits.
Tensor by tensor, on the GPU where there is one, as training did.  On stdout it writes
`{"done": bytes, "total": bytes}` as it goes, then `{"report": {...}}` or `{"error": {...}}`.
It writes weights and config.json; the other files are the caller's.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from fastsft.engine.tensor_files import TORCH, Entries, Writer
from fastsft.errors import ExportError
from fastsft.export import sidecars
from fastsft.export.staging import disk_errors, write_file
from fastsft.scoring import is_linear
from fastsft.weights import Checkpoint, Reader, Tensor


@dataclass
class Sums:
    """Squares over everything that was quantised: of the weights, and of what NF4 did to them."""

    tensors: int = 0
    weights: float = 0.0
    errors: float = 0.0

    def add(self, weights: torch.Tensor, seen: torch.Tensor) -> None:
        """One tensor, and what its 4-bit codes stand for."""
        self.tensors += 1
        self.weights += float(torch.linalg.vector_norm(weights, dtype=torch.float32)) ** 2
        self.errors += float(torch.linalg.vector_norm(weights - seen, dtype=torch.float32)) ** 2

    @property
    def relative_error(self) -> float:
        """Root mean square of the change over that of the weights."""
        return math.sqrt(self.errors / self.weights) if self.weights else 0.0


@dataclass(frozen=True)
class Nf4:
    """Quantises and dequantises as bitsandbytes does when a model is loaded in 4 bits."""

    double_quant: bool
    device: str
    sums: Sums

    def seen(self, name: str, weights: torch.Tensor) -> Entries:
        """The weights that training multiplies with, in the type of `weights`."""
        from bitsandbytes import functional

        there = weights.to(self.device)
        seen: torch.Tensor = functional.dequantize_4bit(*self._quantised(there))
        self.sums.add(there, seen)
        return {name: seen.cpu()}

    def stored(self, name: str, weights: torch.Tensor) -> Entries:
        """The packed codes and all that is needed to read them, as transformers stores them."""
        from bitsandbytes import functional

        there = weights.to(self.device)
        codes, state = self._quantised(there)
        self.sums.add(there, functional.dequantize_4bit(codes, state))
        packed: Entries = state.as_dict(packed=True)
        return {name: codes.cpu()} | {f"{name}.{key}": part.cpu() for key, part in packed.items()}

    def _quantised(self, weights: torch.Tensor) -> tuple[torch.Tensor, Any]:
        from bitsandbytes import functional

        found: tuple[torch.Tensor, Any] = functional.quantize_4bit(
            weights, compress_statistics=self.double_quant, quant_type="nf4"
        )
        return found


def _weights(tensor: Tensor, reader: Reader) -> torch.Tensor:
    raw = torch.empty(tensor.nbytes, dtype=torch.uint8)
    reader.read_into(tensor, 0, raw.numpy())
    return raw.view(TORCH[tensor.dtype]).reshape(tensor.shape)


def convert(
    source: Path, out: Path, *, nf4: Nf4, dtype: torch.dtype | None, is_stored: bool, tell: Any
) -> int:
    """Writes the weights of `source` into `out`; the bytes written.

    `dtype` is what the linear weights are held in before they are quantised; None: as stored.
    """
    checkpoint, writer = Checkpoint.open(source), Writer(out)
    through = nf4.stored if is_stored else nf4.seen
    total, done = sum(tensor.nbytes for tensor in checkpoint.tensors.values()), 0
    with Reader() as reader:
        for name, tensor in checkpoint.tensors.items():
            weights = _weights(tensor, reader)
            if is_linear(tensor):
                writer.add(through(name, weights.to(dtype or weights.dtype)))
            else:
                writer.add({name: weights})
            done += tensor.nbytes
            tell({"done": done, "total": total})
    writer.finish()
    return writer.nbytes


def settings(double_quant: bool, compute: str) -> dict[str, Any]:
    """The `quantization_config` of a folder in 4 bits, every key as transformers 5.17 writes it.

    By hand: to import transformers for it would double the time that a small model takes.
    """
    return {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": compute,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


def run(asked: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> None:
    """Does what the command line says."""
    began, is_stored = time.monotonic(), asked.verb == "quantise"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nf4 = Nf4(asked.double_quant, device, Sums())
    dtype = getattr(torch, asked.dtype) if asked.dtype else None
    config = sidecars.config(asked.source)
    if is_stored:
        config["quantization_config"] = settings(asked.double_quant, asked.compute)
    with disk_errors(asked.out), torch.inference_mode():
        write_file(asked.out / sidecars.CONFIG, sidecars.as_json(config))
        nbytes = convert(
            asked.source, asked.out, nf4=nf4, dtype=dtype, is_stored=is_stored, tell=tell
        )
    report = {
        "tensors": len(Checkpoint.open(asked.source).tensors),
        "quantised_tensors": nf4.sums.tensors,
        "bytes_written": nbytes,
        "relative_error": nf4.sums.relative_error,
        "seconds": time.monotonic() - began,
    }
    tell({"report": report})


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("dequantise", "quantise"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--double-quant", action="store_true")
    parser.add_argument("--dtype")
    parser.add_argument("--compute")
    return parser.parse_args()


def main() -> None:
    """One job; an ExportError goes to the parent as it is."""
    out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an answer

    def tell(record: dict[str, Any]) -> None:
        print(json.dumps(record), file=out, flush=True)

    try:
        run(_parsed(), tell)
    except ExportError as error:
        tell({"error": {"what": error.what, "where": error.where, "hint": error.hint}})


if __name__ == "__main__":
    main()
