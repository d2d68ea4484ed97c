"""Sizes of a dense decoder, and the parameters that follow from them.  No files, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fastsft.errors import DataError

TYPES: Final = ("qwen2", "llama", "mistral")


@dataclass(frozen=True)
class Shape:
    """Sizes of a dense decoder (Qwen2, Llama, Mistral).

    `heads * head_dim` need not be `hidden` (Mistral Nemo).  `qkv_bias`: Qwen2's, of q, k and v;
    `o_bias` and `mlp_bias` are Llama's `attention_bias` and `mlp_bias`, which no release has.
    """

    name: str
    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    tied: bool
    qkv_bias: bool
    o_bias: bool = False
    mlp_bias: bool = False
    source: str = ""

    @property
    def q(self) -> int:
        """Width of the queries."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each of a block's seven linear layers, in the order they are computed."""
        h, q, kv, m = self.hidden, self.q, self.kv, self.mlp
        return {
            "q_proj": (h, q),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
            "gate_proj": (h, m),
            "up_proj": (h, m),
            "down_proj": (m, h),
        }

    @property
    def layer_params(self) -> int:
        """Weights of one block's linear layers."""
        return sum(a * b for a, b in self.linears().values())

    @property
    def linear_params(self) -> int:
        """Weights of all blocks' linear layers: what NF4 quantises."""
        return self.layers * self.layer_params

    @property
    def head_params(self) -> int:
        """Weights of the head, multiplied for every logit, tied or not."""
        return self.vocab * self.hidden

    @property
    def embedding_params(self) -> int:
        """Weights of the embeddings and the head together: one matrix where they are tied."""
        return self.head_params * (1 if self.tied else 2)

    @property
    def norm_params(self) -> int:
        return (2 * self.layers + 1) * self.hidden

    @property
    def bias_params(self) -> int:
        qkv = (self.q + 2 * self.kv) * self.qkv_bias
        rest = self.hidden * self.o_bias + (2 * self.mlp + self.hidden) * self.mlp_bias
        return self.layers * (qkv + rest)

    @property
    def params(self) -> int:
        """All of them: the total that the model's page gives."""
        return self.linear_params + self.embedding_params + self.norm_params + self.bias_params

    def lora_params(self, rank: int, targets: Sequence[str]) -> int:
        """Weights of an adapter on these layers of every block."""
        widths = self.linears()
        return rank * self.layers * sum(sum(widths[target]) for target in targets)


def read(config: Mapping[str, object], *, name: str = "") -> Shape:
    """The shape that a model's `config.json` tells, named after its `model_type` unless told.

    Raises: DataError for another architecture, or a size that is missing or no count.
    Source: transformers 5.17 `configuration_qwen2`, `_llama`, `_mistral`: none ties the embeddings
    unless told; `head_dim` null or absent is hidden / heads; `num_key_value_heads` null is `heads`,
    and absent so only for Llama.
    """
    kind = config.get("model_type")
    if kind not in TYPES:
        raise _wrong(f"model_type {kind!r} is not one of {', '.join(TYPES)}")
    heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    has_bias = _flag(config, "attention_bias") and kind == "llama"
    return Shape(
        name=name or str(kind),
        model_type=str(kind),
        layers=_count(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_dim=_head_dim(config, hidden, heads),
        mlp=_count(config, "intermediate_size"),
        vocab=_count(config, "vocab_size"),
        tied=_flag(config, "tie_word_embeddings"),
        qkv_bias=has_bias or kind == "qwen2",
        o_bias=has_bias,
        mlp_bias=_flag(config, "mlp_bias") and kind == "llama",
    )


def _kv_heads(config: Mapping[str, object], heads: int) -> int:
    key = "num_key_value_heads"
    if config.get(key) is None and (key in config or config["model_type"] == "llama"):
        return heads
    return _count(config, key)


def _head_dim(config: Mapping[str, object], hidden: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return _count(config, "head_dim")
    return hidden // heads


def _count(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(f"{key} is missing" if value is None else f"{key} is {value!r}, not a count")
    return value


def _flag(config: Mapping[str, object], key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise _wrong(f"{key} is {value!r}, neither true nor false")
    return value


def _wrong(what: str) -> DataError:
    return DataError(
        what,
        where="config.json",
        hint="pass a Qwen2.5, Llama or Mistral text model as its makers published it",
    )
