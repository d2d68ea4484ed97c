"""Asks llama.cpp about a GGUF, in a child process.  Never loads llama.cpp itself, nor a GPU."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsft.child import Child, started
from fastsft.errors import ExportError

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
INSTALL = (
    "in a checkout: uv sync --extra gguf; elsewhere: "
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON '
    '-DGGML_F16C=ON -DGGML_BMI2=ON -DLLAVA_BUILD=OFF" '
    f"pip install {PACKAGE}=={VERSION}; either needs a C++ compiler and some minutes"
)
"""What to type to get llama-cpp-python.  Built for this very machine it crashes where it has AMX
(ggml-org/llama.cpp#20824), so it is built for any x86-64 with AVX2."""

SETTINGS = {"GGML_NO_BACKTRACE": "1"}
"""Environment of a child with llama.cpp: a crash says its assertion last, not a stack."""

_DAMAGED = (
    "the file may be damaged or too large for the memory: export it again, or reinstall "
    "llama-cpp-python if every file does this"
)


@dataclass(frozen=True)
class Description:
    """What llama.cpp makes of a GGUF's vocabulary; None where the file has no such token."""

    architecture: str
    n_vocab: int
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    pad_id: int | None
    add_bos: bool
    add_eos: bool
    eog_ids: tuple[int, ...]
    chat_template: str | None


@dataclass(frozen=True)
class LlamaModel:
    """A child process that holds one GGUF.

    Every method raises ExportError with llama.cpp's own words when it refuses or crashes.
    """

    child: Child
    _numbers: "count[int]" = field(default_factory=count)

    def describe(self) -> Description:
        """The vocabulary's special ids, as llama.cpp has them after loading."""
        found = self._ask("describe")
        return Description(**{**found, "eog_ids": tuple(found["eog_ids"])})

    def tokenize(
        self, texts: Sequence[str], *, add_special: bool, parse_special: bool = True
    ) -> list[list[int]]:
        """The ids of each text; `add_special` puts BOS in front where the file says so."""
        found: list[list[int]] = self._ask(
            "tokenize", texts=list(texts), add_special=add_special, parse_special=parse_special
        )
        return found

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes that each token stands for, which may be part of a character."""
        return [bytes.fromhex(piece) for piece in self._ask("pieces", ids=list(ids))]

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token of one sequence, [T, V]; no BOS is added."""
        out = self.child.scratch / f"logits-{next(self._numbers)}.f32"
        try:
            self._ask("logits", ids=list(ids), out=str(out))
            return np.fromfile(out, dtype=np.float32).reshape(len(ids), -1)
        finally:
            out.unlink(missing_ok=True)

    def greedy(self, ids: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """The likeliest continuation of one sequence, up to and with the first stop token."""
        found: list[int] = self._ask(
            "greedy", ids=list(ids), max_tokens=max_tokens, stop_ids=list(stop_ids)
        )
        return found

    def _ask(self, do: str, **arguments: Any) -> Any:
        return self.child.ask({"do": do, **arguments})["answer"]


def installed() -> str | None:
    """The version of llama-cpp-python, which stays unloaded; None where there is none."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextmanager
def opened(
    model: Path, *, lora: Path | None = None, context: int = 1024, vocab_only: bool = False
) -> Iterator[LlamaModel]:
    """A GGUF in llama.cpp, beside a LoRA GGUF where given; gone when the block ends.

    `context` is the most tokens of one sequence.  The cache is float32 and nothing runs on a GPU.
    Raises: ExportError where llama-cpp-python is missing or does not load the file.
    """
    require(model, *([lora] if lora else []))
    arguments = [str(model), *(["--lora", str(lora)] if lora else [])]
    arguments += [] if vocab_only else ["--context", str(context)]
    with started(
        "fastsft.export.llama_child",
        arguments,
        name=model.name,
        who="llama.cpp",
        hint=_DAMAGED,
        settings=SETTINGS,
    ) as child:
        child.read()
        yield LlamaModel(child)


def require(*files: Path) -> None:
    """Raises: ExportError where llama-cpp-python, or a file, is missing."""
    if installed() is None:
        raise ExportError(f"{PACKAGE} is not installed", where="llama.cpp", hint=INSTALL)
    for path in files:
        if not path.is_file():
            raise ExportError("no such file", where=str(path), hint="name a GGUF file")
