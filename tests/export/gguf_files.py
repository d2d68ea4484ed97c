"""Small GGUF files of random weights, written by the gguf package alone."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

WIDTH = 256  # a K-quant packs 256 weights of one row
HEADS = 4
VOCABULARY = 256 + 3
BOS, EOS = 1, 2
Arrays = dict[str, npt.NDArray[Any]]


def tiny(
    path: Path, *, layers: int = 2, feed: int = 512, seed: int = 0, add: Arrays | None = None
) -> Path:
    """A llama of float16 weights whose vocabulary is the 256 bytes; `add` changes some of them."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer)
    for name, array in _tensors(layers, feed, np.random.default_rng(seed)).items():
        change = (add or {}).get(name)
        writer.add_tensor(name, array if change is None else (array + change).astype(np.float16))
    finish(writer)
    return path


def lora(path: Path, name: str, a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> Path:
    """An adapter of one tensor whose scale is 1: a [r, in], b [out, r]."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(len(a)))
    writer.add_tensor(f"{name}.lora_a", a)
    writer.add_tensor(f"{name}.lora_b", b)
    finish(writer)
    return path


def importance(path: Path, sums: Arrays, *, count: int) -> Path:
    """An importance matrix as llama-imatrix writes it today."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, array in sums.items():
        writer.add_tensor(f"{name}.in_sum2", array[None, :])
        writer.add_tensor(f"{name}.counts", np.full((1, 1), count, np.float32))
    finish(writer)
    return path


def importance_dat(path: Path, sums: Arrays, *, calls: int) -> Path:
    """An importance matrix as llama-imatrix wrote it until 2025."""
    parts = [struct.pack("<i", len(sums))]
    for name, array in sums.items():
        parts += [struct.pack("<i", len(name)), name.encode()]
        parts += [struct.pack("<ii", calls, array.size), array.tobytes()]
    parts += [struct.pack("<ii", 3, len("calibration.txt")), b"calibration.txt"]
    path.write_bytes(b"".join(parts))
    return path


def squares(*, layers: int = 2, feed: int = 512, seed: int = 7) -> Arrays:
    """Made-up sums of squared inputs for every matrix of a `tiny` of these sizes."""
    rng = np.random.default_rng(seed)
    columns = {"ffn_down": feed}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return {
        f"blk.{n}.{part}.weight": (
            100 * rng.random(columns.get(part, WIDTH)).astype(np.float32) + 1
        ).astype(np.float32)
        for n in range(layers)
        for part in parts
    }


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything and close."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    control, unknown, byte = gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN, gguf.TokenType.BYTE
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([unknown, control, control, *([byte] * 256)])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template("{{ messages }}")


def _tensors(
    layers: int, feed: int, rng: np.random.Generator
) -> dict[str, npt.NDArray[np.generic]]:
    def weights(*shape: int) -> npt.NDArray[np.float16]:
        return (rng.standard_normal(shape) / 16).astype(np.float16)

    ones = np.ones(WIDTH, np.float32)
    found: Arrays = {
        "token_embd.weight": weights(VOCABULARY, WIDTH),
        "output_norm.weight": ones,
        "output.weight": weights(VOCABULARY, WIDTH),
    }
    for n in range(layers):
        found |= {f"blk.{n}.{norm}_norm.weight": ones for norm in ("attn", "ffn")}
        for part in ("q", "k", "v", "output"):
            found[f"blk.{n}.attn_{part}.weight"] = weights(WIDTH, WIDTH)
        found[f"blk.{n}.ffn_gate.weight"] = weights(feed, WIDTH)
        found[f"blk.{n}.ffn_up.weight"] = weights(feed, WIDTH)
        found[f"blk.{n}.ffn_down.weight"] = weights(WIDTH, feed)
    return found
