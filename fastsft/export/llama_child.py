"""The llama.cpp child, `python -m fastsft.export.llama_child`: answers about one GGUF file.

One JSON request a line on stdin, one JSON answer a line on stdout: its `do` is a public method of
`Model`, the rest the arguments; what llama.cpp refuses is answered by `{"error": …}`.  CPU only;
ends with its stdin; never writes a file but the one that a request for logits names.
"""

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt

BATCH = 128
"""Tokens decoded at a time: their logits are held at once, 78 MB over Qwen2.5's 152 000 tokens."""

WARN, ERROR, CONTINUED = 3, 4, 5
"""Levels of llama.cpp's log.  Source: `enum ggml_log_level` in ggml.h."""

Rows = npt.NDArray[np.float32]


class Refused(Exception):
    """Something that llama.cpp did not do, in its own words where it has any."""


class Log:
    """llama.cpp's log: warnings and errors to stderr, the first error kept for the answer."""

    def __init__(self) -> None:
        self.level = 0
        self.error = ""
        self.callback: Any = llama.llama_log_callback(self._take)  # held: C keeps only a pointer
        llama.llama_log_set(self.callback, ctypes.c_void_p(0))

    def refused(self, what: str) -> Refused:
        """An error with the first that llama.cpp logged since the last one."""
        told, self.error = self.error, ""
        return Refused(f"{what}: {told}" if told else what)

    def _take(self, level: int, text: bytes, _: object) -> None:
        self.level = self.level if level == CONTINUED else level
        told = text.decode("utf-8", errors="replace")
        if self.level >= WARN:
            sys.stderr.write(told)
            sys.stderr.flush()
        if self.level == ERROR and not self.error:
            self.error = told.strip()


class Model:
    """One GGUF file, held as llama.cpp reads it; its weights only where there is a context."""

    def __init__(self, path: Path, log: Log, *, vocab_only: bool):
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        params.vocab_only = vocab_only
        # Without: quantised models crash on processors with AMX (ggml-org/llama.cpp#20824).
        params.use_extra_bufts = False
        self.log = log
        self.handle: Any = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise log.refused("llama.cpp does not load the file")
        self.vocab: Any = llama.llama_model_get_vocab(self.handle)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self.vocab)
        self.context: Any = None
        self.n_context = 0

    def open_context(self, n_context: int, lora: Path | None) -> None:
        """Make room for a sequence; the cache is float32, so that only weights are rounded."""
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_context, BATCH, BATCH
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        params.type_k = params.type_v = llama.GGML_TYPE_F32
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.offload_kqv = params.op_offload = False
        self.context = llama.llama_init_from_model(self.handle, params)
        if not self.context:
            raise self.log.refused("llama.cpp opens no context")
        self.n_context = n_context
        self.batch: Any = llama.llama_batch_init(BATCH, 0, 1)
        if lora is not None:
            self._add_lora(lora)

    def _add_lora(self, path: Path) -> None:
        adapter = llama.llama_adapter_lora_init(self.handle, os.fsencode(path))
        if not adapter:
            raise self.log.refused("llama.cpp does not load the adapter")
        adapters = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
        if llama.llama_set_adapters_lora(self.context, adapters, 1, (ctypes.c_float * 1)(1.0)):
            raise self.log.refused("llama.cpp does not set the adapter")

    def describe(self) -> dict[str, Any]:
        """What the file says of its vocabulary; an id that it has not is None."""
        template = llama.llama_model_chat_template(self.handle, None)
        ids = range(self.n_vocab)
        return {
            "architecture": self._metadata(b"general.architecture"),
            "n_vocab": self.n_vocab,
            "bos_id": _known(llama.llama_vocab_bos(self.vocab)),
            "eos_id": _known(llama.llama_vocab_eos(self.vocab)),
            "eot_id": _known(llama.llama_vocab_eot(self.vocab)),
            "pad_id": _known(llama.llama_vocab_pad(self.vocab)),
            "add_bos": bool(llama.llama_vocab_get_add_bos(self.vocab)),
            "add_eos": bool(llama.llama_vocab_get_add_eos(self.vocab)),
            "eog_ids": [n for n in ids if llama.llama_vocab_is_eog(self.vocab, n)],
            "chat_template": template.decode() if template else None,
        }

    def _metadata(self, key: bytes) -> str:
        room = ctypes.create_string_buffer(1024)
        if llama.llama_model_meta_val_str(self.handle, key, room, len(room)) < 0:
            raise self.log.refused(f"the file has no {key.decode()}")
        return room.value.decode()

    def tokenize(
        self, texts: Sequence[str], *, add_special: bool, parse_special: bool
    ) -> list[list[int]]:
        """The ids of each text."""
        return [self._ids(text.encode(), add_special, parse_special) for text in texts]

    def _ids(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        room = (llama.llama_token * (len(text) + 8))()  # no token is shorter than a byte
        found = llama.llama_tokenize(
            self.vocab, text, len(text), room, len(room), add_special, parse_special
        )
        if found < 0:
            raise self.log.refused(f"llama.cpp does not tokenize a text of {len(text)} bytes")
        return list(room[:found])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The bytes of each token in hexadecimal, control tokens by their text."""
        return [self._piece(number).hex() for number in ids]

    def _piece(self, number: int) -> bytes:
        if not 0 <= number < self.n_vocab:
            raise Refused(f"token {number} is not among the vocabulary's {self.n_vocab}")
        room = ctypes.create_string_buffer(256)
        size = llama.llama_token_to_piece(self.vocab, number, room, len(room), 0, True)
        if size < 0:
            room = ctypes.create_string_buffer(-size)
            size = llama.llama_token_to_piece(self.vocab, number, room, len(room), 0, True)
        return room.raw[:size]

    def logits(self, ids: Sequence[int], *, out: str) -> None:
        """Write the logits after each token, float32 [T, V], into a file."""
        with Path(out).open("xb") as opened:
            for rows in self._decoded(ids, at=0, every=True):
                opened.write(rows.tobytes())

    def greedy(self, ids: Sequence[int], *, max_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """The likeliest continuation, up to and with the first stop token."""
        found: list[int] = []
        fresh, at = list(ids), 0
        while len(found) < max_tokens and not (found and found[-1] in stop_ids):
            *_, last = self._decoded(fresh, at=at, every=False)  # [1, V]
            at += len(fresh)
            fresh = [int(last[-1].argmax())]
            found += fresh
        return found

    def _decoded(self, ids: Sequence[int], *, at: int, every: bool) -> Iterator[Rows]:
        """Decode ids from a position on; logits [n, V] of every token, or of each batch's last.

        The rows are llama.cpp's own memory, overwritten by the next batch.
        """
        self._require_room(ids, at)
        if at == 0:
            llama.llama_memory_clear(llama.llama_get_memory(self.context), False)
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            self._fill(part, at + start, every)
            if llama.llama_decode(self.context, self.batch):
                raise self.log.refused("llama.cpp does not decode the tokens")
            rows = len(part) if every else 1
            logits = llama.llama_get_logits(self.context)
            yield np.ctypeslib.as_array(logits, shape=(rows, self.n_vocab))

    def _require_room(self, ids: Sequence[int], at: int) -> None:
        if self.context is None:
            raise Refused("the file was opened for its vocabulary only")
        if not ids:
            raise Refused("there is no token to decode")
        if at + len(ids) > self.n_context:
            raise Refused(f"{at + len(ids)} tokens do not fit a context of {self.n_context}")
        if strange := [number for number in ids if not 0 <= number < self.n_vocab]:
            raise Refused(f"token {strange[0]} is not among the vocabulary's {self.n_vocab}")

    def _fill(self, ids: Sequence[int], at: int, every: bool) -> None:
        self.batch.n_tokens = len(ids)
        for n, number in enumerate(ids):
            self.batch.token[n] = number
            self.batch.pos[n] = at + n
            self.batch.n_seq_id[n] = 1
            self.batch.seq_id[n][0] = 0
            self.batch.logits[n] = every or n == len(ids) - 1


def _known(number: int) -> int | None:
    return None if number == llama.LLAMA_TOKEN_NULL else number


def _write(out: TextIO, record: dict[str, Any]) -> None:
    out.write(json.dumps(record) + "\n")
    out.flush()


def _refusal(error: Exception, path: Path) -> dict[str, Any]:
    """What `fastsft.child` raises as an ExportError."""
    hint = "if the file was changed or cut since it was written, export it again"
    return {"error": {"what": str(error), "where": path.name, "hint": hint}}


def _serve(model: Model, path: Path, out: TextIO) -> None:
    methods: dict[str, Callable[..., Any]] = {
        "describe": model.describe,
        "tokenize": model.tokenize,
        "pieces": model.pieces,
        "logits": model.logits,
        "greedy": model.greedy,
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _write(out, {"answer": methods[request.pop("do")](**request)})
        except (Refused, OSError, UnicodeError) as error:
            _write(out, _refusal(error, path))


def main() -> None:
    """Answer requests until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--context", type=int, default=0)
    asked = parser.parse_args()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    llama.llama_backend_init()
    try:
        model = Model(asked.model, Log(), vocab_only=not asked.context)
        if asked.context:
            model.open_context(asked.context, asked.lora)
    except Refused as error:
        _write(out, _refusal(error, asked.model))
        return
    _write(out, {"answer": None})
    _serve(model, asked.model, out)


if __name__ == "__main__":
    main()
