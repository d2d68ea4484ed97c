"""What llama.cpp must know of a model beside its weights, from config.json.  No files, no values.

Whatever llama.cpp would compute differently from transformers is refused or noted here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from gguf import MODEL_ARCH, GGUFWriter, TensorNameMap, get_tensor_name_map

from fastsft.errors import ExportError
from fastsft.export import rope
from fastsft.export.plan import EMBEDDING, HEAD
from fastsft.export.rope import Rope

Name = Literal["qwen2", "llama"]

# transformers' model_type -> llama.cpp's architecture, and the class whose maths it is.
_KNOWN: Mapping[str, tuple[Name, str]] = {
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("llama", "MistralForCausalLM"),
}
_ARCHITECTURES = {"qwen2": MODEL_ARCH.QWEN2, "llama": MODEL_ARCH.LLAMA}
# transformers 5.17's defaults, where a config may leave them out.
_DEFAULT_WINDOW = {"mistral": 4096}
# Settings that llama.cpp has no keys for in these architectures.
_MUST_BE: Mapping[str, object] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "is_causal": True,
}
_RECOMPUTED = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class Architecture:
    """A model's shape in llama.cpp's terms."""

    name: Name
    layers: int
    context: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rms_eps: float
    rope: Rope
    notes: tuple[str, ...]

    def add_to(self, writer: GGUFWriter) -> None:
        """Writes the architecture's keys, all but the vocabulary's."""
        writer.add_block_count(self.layers)
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(self.rms_eps)
        writer.add_vocab_size(self.vocabulary)
        writer.add_key_length(self.head_dim)
        writer.add_value_length(self.head_dim)
        writer.add_rope_dimension_count(self.head_dim)
        self.rope.add_to(writer)

    def gguf_name(self, name: str) -> str:
        """llama.cpp's name of a tensor."""
        found: str | None = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name  # every name of `shapes` has one
        return found

    def head_rows(self, name: str) -> int:
        """Rows of one head where llama.cpp wants its halves interleaved; 0 elsewhere.

        transformers rotates value i with i + head_dim/2, llama.cpp's `llama` 2i with 2i + 1.
        """
        turned = name.endswith(("q_proj.weight", "k_proj.weight"))
        return self.head_dim if turned and self.name == "llama" else 0

    def shapes(self, *, tied: bool) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model and its shape, by transformers' names."""
        ends = {EMBEDDING: (self.vocabulary, self.hidden), "model.norm.weight": (self.hidden,)}
        head = {} if tied else {HEAD: (self.vocabulary, self.hidden)}
        found: dict[str, tuple[int, ...]] = {**ends, **head}
        for layer in range(self.layers):
            found |= {f"model.layers.{layer}.{k}": shape for k, shape in self._layer.items()}
        return found

    @cached_property
    def _names(self) -> TensorNameMap:
        return get_tensor_name_map(_ARCHITECTURES[self.name], self.layers)

    @cached_property
    def _layer(self) -> dict[str, tuple[int, ...]]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biases = {"q_proj": (q,), "k_proj": (kv,), "v_proj": (kv,)} if self.name == "qwen2" else {}
        return {
            "input_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (q, self.hidden),
            "self_attn.k_proj.weight": (kv, self.hidden),
            "self_attn.v_proj.weight": (kv, self.hidden),
            **{f"self_attn.{key}.bias": shape for key, shape in biases.items()},
            "self_attn.o_proj.weight": (self.hidden, q),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.feed_forward, self.hidden),
            "mlp.up_proj.weight": (self.feed_forward, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.feed_forward),
        }


def read(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a `config.json` describes.

    Raises: ExportError for one that llama.cpp does not compute as transformers does.
    """
    model_type = config.get("model_type")
    name, model_class = _known(config)
    for key, value in _MUST_BE.items():
        if config.get(key, value) != value:
            raise _refused(f"{key} is {config[key]!r}: llama.cpp has no key for it in {name}")
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    head_dim = _count(config, "head_dim", hidden // heads)
    kv_heads = _count(config, "num_key_value_heads", heads)
    if head_dim % 2 or heads % kv_heads or (name == "qwen2" and heads * head_dim != hidden):
        raise _refused(
            f"{heads} heads of {head_dim} ({kv_heads} of keys) do not fit {model_class} in"
            f" llama.cpp, hidden_size {hidden}"
        )
    return Architecture(
        name=name,
        layers=_count(config, "num_hidden_layers"),
        context=_count(config, "max_position_embeddings"),
        hidden=hidden,
        feed_forward=_count(config, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=_count(config, "vocab_size"),
        rms_eps=_eps(config),
        rope=rope.read(config, head_dim, has_factors=name == "llama"),
        notes=tuple(_window_note(config, _DEFAULT_WINDOW.get(str(model_type)))),
    )


def check_tensors(
    architecture: Architecture, found: Mapping[str, tuple[int, ...]], *, tied: bool
) -> None:
    """Raises ExportError unless these are all of the model's tensors, of its shapes, no others."""
    wanted = architecture.shapes(tied=tied)
    for name, shape in found.items():
        if name not in wanted:
            raise _refused(f"{name} is no tensor of {architecture.name} in llama.cpp", "weights")
        if wanted[name] != shape:
            raise _refused(f"{name} is {[*shape]}, config.json means {[*wanted[name]]}", "weights")
    for name in wanted:
        if name not in found:
            raise _refused(f"{name} is missing", "weights")


def is_recomputed(name: str) -> bool:
    """Whether a tensor holds what both transformers and llama.cpp compute for themselves."""
    return name.endswith(_RECOMPUTED)


def _known(config: Mapping[str, Any]) -> tuple[Name, str]:
    model_type = config.get("model_type")
    known = _KNOWN.get(model_type) if isinstance(model_type, str) else None
    if known is None:
        raise _refused(
            f"model_type {model_type!r} is none of {', '.join(_KNOWN)}, which this writer knows"
        )
    classes = config.get("architectures") or [known[1]]
    if classes != [known[1]]:
        raise _refused(f"architectures is {classes!r}, not {known[1]}")
    return known


def _window_note(config: Mapping[str, Any], default: int | None) -> Iterable[str]:
    """llama.cpp reads no sliding window for these architectures: it attends to everything."""
    window = config.get("sliding_window", default)
    if config.get("use_sliding_window", True) is False or not window:
        return
    if "use_sliding_window" not in config and config.get("model_type") != "mistral":
        return  # only Mistral has one unasked
    if window < _count(config, "max_position_embeddings"):
        yield (
            f"the model attends to its last {window} tokens, llama.cpp to all: they agree up to"
            f" {window} tokens and may differ beyond"
        )


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or not 0 < value < 2**31:
        raise _refused(f"{key} is {value!r}, not a count")
    return value


def _eps(config: Mapping[str, Any]) -> float:
    value = config.get("rms_norm_eps", 1e-6)  # transformers 5.17's default in all three
    if not isinstance(value, float) or not 0 < value < 1:
        raise _refused(f"rms_norm_eps is {value!r}")
    return value


def _refused(what: str, where: str = "config.json") -> ExportError:
    return ExportError(
        what, where=where, hint="export with --to merged, which transformers and vLLM load"
    )
