"""Writes bases of a real model's shape with random weights, to measure on.  No torch, no model."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastsft import shapes, synthetic_nf4
from fastsft.data.arrays import Index, TokenRows
from fastsft.demo import tiny
from fastsft.demo.markup import Family
from fastsft.errors import DataError
from fastsft.hardware import gib
from fastsft.shapes import Shape
from fastsft.synthetic_nf4 import Codes, Piece, stretches
from fastsft.weights import INDEX, SINGLE, Floats, header

MARK: Final = "fastsft_synthetic"
"""The key of config.json by which such a base is known, wherever it lies."""
SHARD_BYTES: Final = 4 * 2**30
DEVIATION: Final = 0.02
"""Of the weights.  Source: `initializer_range` of all three families."""
BLOCK: Final = 64 * 262_147
"""Random values drawn, 32 MiB.  64 times a prime above every vocabulary: rows of a matrix differ,
however often the block is written, and each of NF4's blocks is whole."""

_FAMILIES: Final[Mapping[str, Family]] = {
    "qwen2": "qwen2.5",
    "llama": "llama",
    "mistral": "mistral",
}
_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_BESIDE: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
_FORMAT: Final = 1  # counts the ways in which weights were made
_ONE: Final = 0x3F80  # 1.0 as bfloat16
_CARD: Final = """\
# No model: random weights of {name}'s shape

fastsft wrote this folder to measure speed and memory without a download.  The weights are random
({held}), the tokenizer is the tiny demo's, and nothing that is trained on them is of any use.
Its config.json says `"{mark}": true`, and `fastsft export` refuses what was trained on it.
"""

Progress = Callable[[int, int], None]


def is_synthetic(config: Mapping[str, object]) -> bool:
    """Whether a base's config.json says that its weights are random."""
    return config.get(MARK) is True


def folder_for(
    shape: Shape,
    *,
    nf4: bool = False,
    double_quant: bool = True,
    progress: Progress | None = None,
) -> Path:
    """The folder of this shape with random weights, written to the cache on first use.

    `$XDG_CACHE_HOME/fastsft/synthetic`; nothing removes it but you.  See `write`.
    """
    plan = _Plan(shape, nf4, double_quant)
    kind = ("nf4" if double_quant else "nf4-single") if nf4 else "bf16"
    folder = _cache() / f"synthetic-{shape.name}-{kind}-{_fingerprint(plan)}"
    if not folder.exists():
        write(shape, folder, nf4=nf4, double_quant=double_quant, progress=progress)
    return folder


def write(
    shape: Shape,
    folder: Path,
    *,
    nf4: bool = False,
    double_quant: bool = True,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Writes a base of this shape, whole or not at all; a folder that is there is left as it is.

    Weights are normal with deviation 0.02 in bfloat16, norms one, biases zero: a forward pass is
    finite, its loss is near the logarithm of the vocabulary, and gradients are not zero.
    They are not independent: every matrix is a stretch of one block of 17 million values, begun at
    a place that follows from its name and gone round as often as it takes, for drawing 7 billion
    would take minutes.  No speed and no memory depends on that.

    With `nf4` the linear layers are stored in 4 bits as transformers and bitsandbytes do: the same
    weights as the plain folder's once it is loaded in 4 bits.  `progress` hears bytes and all of
    them.  Memory holds the block and a tensor's absmax, not a tensor.

    Raises: DataError when the disk has no room for it, or the shape is none that NF4 divides.
    """
    if not folder.exists():
        with _alone(folder) as draft:
            if draft is not None:
                _fill(draft, _Plan(shape, nf4, double_quant), shard_bytes, progress)
    return folder


def token_rows(vocab_limit: int, *, rows: int, length: int, seed: int = 0) -> TokenRows:
    """Rows of exactly `length` random ids below `vocab_limit`; each row's second half is trained.

    For measuring: no padding, no early end, every micro-batch the same size.
    """
    ids = np.random.default_rng(seed).integers(0, vocab_limit, rows * length, dtype=np.int32)
    trained = np.tile(np.arange(length) >= length // 2, rows)
    lengths = np.full(rows, length, np.int64)
    index = Index.of(lengths, np.arange(rows), lengths - length // 2)
    return TokenRows(ids, trained, index)


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fastsft" / "synthetic"


def _fingerprint(plan: "_Plan") -> str:
    """Of all that such a folder holds but its weights, whose making `_FORMAT` numbers."""
    digest = sha256(json.dumps([_FORMAT, plan.config()]).encode())
    for name in _BESIDE:
        digest.update((plan.source / name).read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def _alone(folder: Path) -> Iterator[Path | None]:
    """A folder that becomes `folder`, held by a lock; None where another process was faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".tmp-{folder.name}"
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield None
            return
        shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
        draft.mkdir()
        try:
            yield draft
            draft.replace(folder)
        except OSError as error:
            hint = "free space there, or set XDG_CACHE_HOME to another disk"
            raise DataError(str(error.strerror), where=str(folder), hint=hint) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the model; `is_linear` says that 4 bits can hold it."""

    name: str
    shape: tuple[int, ...]
    is_linear: bool = False

    @property
    def count(self) -> int:
        return int(np.prod(self.shape))

    @property
    def offset(self) -> int:
        """Where in the block it begins: a multiple of 64 that its name decides."""
        key = int.from_bytes(sha256(self.name.encode()).digest()[:8], "little")
        return key % (BLOCK // 64) * 64


@dataclass(frozen=True)
class _Plan:
    """How each tensor is stored."""

    of: Shape
    nf4: bool
    double_quant: bool

    @property
    def source(self) -> Path:
        """The tiny base of the family, which lends its tokenizer."""
        return tiny.folder(_FAMILIES[self.of.model_type])

    def config(self) -> dict[str, object]:
        """The config.json: the real model's, with the tokenizer's ids."""
        small = json.loads((self.source / "config.json").read_text("utf-8"))
        config = {
            **shapes.config_of(self.of),
            **{key: small.get(key) for key in _TOKENS},
            "attention_dropout": 0.0,
            "use_cache": True,
            MARK: True,
        }
        if self.nf4:
            stored = synthetic_nf4.settings(double_quant=self.double_quant)
            config["quantization_config"] = stored
        return config

    def pieces(self, tensor: _Tensor) -> list[Piece]:
        """What a file holds of a tensor."""
        if self.nf4 and tensor.is_linear:
            return synthetic_nf4.pieces(tensor.name, tensor.shape, double_quant=self.double_quant)
        return [(tensor.name, "BF16", tensor.shape)]

    def nbytes(self, tensor: _Tensor) -> int:
        """Bytes that a tensor takes in a file."""
        widths = {"BF16": 2, "F32": 4, "U8": 1}
        return sum(widths[dtype] * int(np.prod(shape)) for _, dtype, shape in self.pieces(tensor))

    def parts(self, tensor: _Tensor) -> Iterator[NDArray[np.generic]]:
        """The values of `pieces`, in pieces of at most the block's size."""
        if tensor.name.endswith("bias"):
            yield np.zeros(tensor.count, np.uint16)
        elif tensor.name.endswith("norm.weight"):
            yield np.full(tensor.count, _ONE, np.uint16)
        elif self.nf4 and tensor.is_linear:
            parts = _codes().parts(tensor.offset, tensor.shape, double_quant=self.double_quant)
            yield from parts
        else:
            yield from stretches(_bits(), tensor.offset, tensor.count)


@cache
def _bits() -> NDArray[np.uint16]:
    """The block's values as bfloat16."""
    values = np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    values *= np.float32(DEVIATION)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@cache
def _codes() -> Codes:
    wide: Floats = (_bits().astype(np.uint32) << 16).view(np.float32)
    return Codes.of(wide)


def _fill(draft: Path, plan: _Plan, shard_bytes: int, progress: Progress | None) -> None:
    tensors = list(_tensors(plan.of))
    _require_whole_blocks(tensors, plan)
    total = sum(map(plan.nbytes, tensors))
    _require_space(draft.parent, total)
    _write_beside(draft, plan)
    shards = _shards(tensors, plan, shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    done = 0
    for name, shard in zip(names, shards, strict=True):
        for written in _write_shard(draft / name, shard, plan):
            done += written
            if progress:
                progress(done, total)
    if len(shards) > 1:
        where = {
            piece: name
            for name, shard in zip(names, shards, strict=True)
            for tensor in shard
            for piece, _, _ in plan.pieces(tensor)
        }
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (draft / INDEX).write_text(json.dumps(index), "utf-8")


def _write_shard(path: Path, tensors: Sequence[_Tensor], plan: _Plan) -> Iterator[int]:
    """Writes a file; the bytes of each tensor as they are written."""
    with path.open("xb") as file:
        file.write(header(piece for tensor in tensors for piece in plan.pieces(tensor)))
        for tensor in tensors:
            for part in plan.parts(tensor):
                file.write(np.ascontiguousarray(part).data)
            yield plan.nbytes(tensor)
        file.flush()
        os.fsync(file.fileno())


def _shards(tensors: Sequence[_Tensor], plan: _Plan, most: int) -> list[list[_Tensor]]:
    """The tensors of each file; a tensor larger than `most` has one to itself."""
    found: list[list[_Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        size = plan.nbytes(tensor)
        if found[-1] and held + size > most:
            found.append([])
            held = 0
        found[-1].append(tensor)
        held += size
    return found


def _tensors(shape: Shape) -> Iterator[_Tensor]:
    """Every tensor of the model by the name that transformers gives it."""
    yield _Tensor("model.embed_tokens.weight", (shape.vocab, shape.hidden))
    biased = {"q_proj", "k_proj", "v_proj"} if shape.qkv_bias else set()
    biased |= {"o_proj"} if shape.o_bias else set()
    biased |= {"gate_proj", "up_proj", "down_proj"} if shape.mlp_bias else set()
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        yield _Tensor(f"{at}input_layernorm.weight", (shape.hidden,))
        yield _Tensor(f"{at}post_attention_layernorm.weight", (shape.hidden,))
        for name, (width, out) in shape.linears().items():
            room = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            yield _Tensor(f"{at}{room}.{name}.weight", (out, width), is_linear=True)
            if name in biased:
                yield _Tensor(f"{at}{room}.{name}.bias", (out,))
    yield _Tensor("model.norm.weight", (shape.hidden,))
    if not shape.tied:
        yield _Tensor("lm_head.weight", (shape.vocab, shape.hidden))


def _write_beside(draft: Path, plan: _Plan) -> None:
    """Config, tokenizer and card."""
    (draft / "config.json").write_text(json.dumps(plan.config(), indent=2) + "\n", "utf-8")
    for name in _BESIDE:
        shutil.copyfile(plan.source / name, draft / name)
    held = "linear layers in NF4, the rest in bfloat16" if plan.nf4 else "bfloat16"
    card = _CARD.format(name=plan.of.name, held=held, mark=MARK)
    (draft / "README.md").write_text(card, "utf-8")


def _require_whole_blocks(tensors: Sequence[_Tensor], plan: _Plan) -> None:
    for tensor in tensors:
        if plan.nf4 and tensor.is_linear and tensor.count % (64 * 4):
            raise DataError(
                f"{tensor.name} has {tensor.count} weights, which NF4 does not divide evenly",
                where=plan.of.name,
                hint="use a shape whose widths are multiples of 16",
            )


def _require_space(folder: Path, nbytes: int) -> None:
    needed, free = nbytes + nbytes // 100, shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"needs {gib(needed)} in {folder}/, {gib(free)} free",
            where="synthetic base",
            hint=f"free {gib(needed - free)}, or set XDG_CACHE_HOME to another disk",
        )
