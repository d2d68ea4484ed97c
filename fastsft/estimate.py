"""Bytes that a micro-batch of training needs, from the model's sizes.  Pure arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fastsft.errors import ExportError
from fastsft.recipe import ALL_LINEAR, Recipe
from fastsft.roofline import Time as Time
from fastsft.roofline import micro_batch_time as micro_batch_time
from fastsft.setting import NF4_BYTES, NF4_DOUBLE_BYTES, Engine
from fastsft.setting import Setting as Setting
from fastsft.setting import setting_of as setting_of
from fastsft.shape import Shape
from fastsft.stack import GIB as GIB
from fastsft.stack import REFERENCE as REFERENCE
from fastsft.stack import UNSLOTH as UNSLOTH
from fastsft.stack import Stack as Stack
from fastsft.stack import Widths as Widths
from fastsft.stack import cautious as cautious
from fastsft.stack import stack_of as stack_of
from fastsft.weights import Checkpoint

_ADAM_8BIT: Final = 2 + 2 * 4 / 256
"""Two int8 moments, and a float32 for every 256 of each.  Source: bitsandbytes 0.50."""
_ADAM: Final = 8
"""Two float32 moments."""
_PAGED_FROM: Final = 100_000
"""Fewest values of a tensor whose moments are paged.  Source: bitsandbytes 0.50
`Optimizer8bit.get_state_buffer`."""

FORMULAS: Final = 1
"""Raised with every change of a formula or a constant: runs that an older one predicted correct no
newer one (`history`)."""

_OFFLOAD_TOKENS: Final = 512
_OFFLOAD_BYTES: Final = 2 * 1024**2
"""Least of `data.max_tokens`, and what a hidden state must exceed, for Unsloth to move it to the
host.

Source: unsloth 2026.10 `models/_utils`, unsloth_zoo 2026.10 `gradient_checkpointing`."""


@dataclass(frozen=True)
class Memory:
    """Peak bytes on the device by what they are for.

    On the host: `pinned`, and `host_base`, which is there whatever is trained.  On a CPU the
    device is the host: `runtime` is 0 and `host` has it all.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    hidden_states: int
    kept_layers: int
    working: int
    loss: int
    scratch: int
    runtime: int
    slack: int
    pinned: int
    kept_logits: int = 0
    host_base: int = 0

    @property
    def allocated(self) -> int:
        """What torch has handed out at the peak.

        Of `working` and `loss` only the larger: the logits are gone before a layer's backward.
        """
        held = self.weights + self.adapter + self.gradients + self.optimizer
        batch = self.hidden_states + self.kept_layers + self.kept_logits
        return held + batch + max(self.working, self.loss) + self.scratch

    @property
    def reserved(self) -> int:
        """What torch has taken from the device."""
        return self.allocated + self.slack

    @property
    def process(self) -> int:
        """What the driver shows for the process."""
        return self.reserved + self.runtime

    @property
    def host(self) -> int:
        """RAM that the process needs; files that are only mapped aside."""
        return self.pinned + self.host_base


_IMPORTS: Final = int(0.85 * GIB)
"""Of a process that has imported the training stack, either engine's.

Source: measured on Linux without a GPU: 0.83 GiB with TRL and PEFT, 0.84 with Unsloth."""
_CUDA_HOST: Final = 2 * GIB
"""Allowed for CUDA's libraries and context on the host; not measured."""
_CPU_TRAINING: Final[Mapping[Engine, int]] = {
    "unsloth": int(1.4 * GIB),
    "reference": int(1.1 * GIB),
}
"""Of a process that trains on a CPU, by engine.

Source: measured, the peaks of two tiny runs less what their tensors take by the estimate."""


def memory(
    shape: Shape, setting: Setting, *, stack: Stack | None = None, weight_bytes: int | None = None
) -> Memory:
    """Bytes at the peak of a micro-batch.

    `stack`: that of the setting's engine if None; `weight_bytes`: see `weights_of`, by the shape's
    own arithmetic if None.
    """
    stack = stack or stack_of(setting)
    found = Memory(
        weights=_weights(shape, setting, stack) if weight_bytes is None else weight_bytes,
        **_trained(shape, setting, stack),
        hidden_states=_hidden(shape, setting, stack),
        kept_layers=int(_kept_layers(shape, setting) * _saved(shape, setting, stack)),
        working=_working(shape, setting, stack),
        loss=_loss(shape, setting, stack),
        scratch=_scratch(shape, setting),
        runtime=stack.runtime_bytes,
        slack=0,
        pinned=_pinned(shape, setting),
        kept_logits=int(stack.kept_logit_bytes * shape.vocab * setting.slots),
    )
    found = replace(found, slack=int(stack.slack * found.allocated))
    if setting.device == "cpu":
        host = _CPU_TRAINING[setting.engine] + found.reserved
        return replace(found, runtime=0, host_base=host)
    return replace(found, host_base=_IMPORTS + _CUDA_HOST)


def _weights(shape: Shape, setting: Setting, stack: Stack) -> int:
    if setting.parameters == "all":
        return 4 * shape.params
    rest = shape.params - shape.linear_params
    if setting.quantization == "none":
        return setting.dtype_bytes * shape.params
    each = NF4_DOUBLE_BYTES if setting.double_quant else NF4_BYTES
    kept = max(stack.kept_bytes, setting.dtype_bytes)
    return int(each * shape.linear_params + kept * rest)


def _trained(shape: Shape, setting: Setting, stack: Stack) -> dict[str, int]:
    """Bytes of adapter, gradients and optimizer."""
    sizes = _trained_tensors(shape, setting)
    count = sum(size * times for size, times in sizes)
    is_lora = setting.parameters == "lora"
    return {
        "adapter": int(stack.adapter_bytes * count) if is_lora else 0,
        "gradients": int((stack.gradient_bytes if is_lora else 4) * count),
        "optimizer": _moments(shape, setting, [n for n in sizes if not _is_paged(n[0], setting)]),
    }


def _trained_tensors(shape: Shape, setting: Setting) -> list[tuple[int, int]]:
    """Weights of a tensor that is trained, and how many are like it; norms and biases count as
    one each."""
    if setting.parameters == "all":
        linears = [(a * b, shape.layers) for a, b in shape.linears().values()]
        heads = (shape.head_params, 1 if shape.tied else 2)
        return [*linears, heads, (shape.norm_params, 1), (shape.bias_params, 1)]
    linears_of = shape.linears()
    widths = [width for target in setting.targets for width in linears_of[target]]
    return [(setting.rank * width, shape.layers) for width in widths]


def _is_paged(count: int, setting: Setting) -> bool:
    """Whether the moments of a tensor may live on the host; torch does not count those."""
    return setting.optimizer == "paged_adamw_8bit" and count >= _PAGED_FROM


def _moments(shape: Shape, setting: Setting, sizes: Sequence[tuple[int, int]]) -> int:
    """Bytes of Adam's moments; embeddings keep float32 ones, as transformers' Trainer asks."""
    if setting.optimizer == "adamw":
        return _ADAM * sum(size * times for size, times in sizes)
    return int(sum((_ADAM if n == shape.head_params else _ADAM_8BIT) * n * k for n, k in sizes))


def _kept_layers(shape: Shape, setting: Setting) -> int:
    return shape.layers - setting.recomputed_layers(shape)


def _saved(shape: Shape, setting: Setting, stack: Stack) -> float:
    """Bytes that one layer saves for its backward."""
    layer = stack.saved.of(shape) * setting.dtype_bytes * setting.slots
    is_fused = setting.engine == "unsloth" and not setting.is_dora
    return layer + _dropped(shape, setting, is_replayed=is_fused)


def _dropped(shape: Shape, setting: Setting, *, is_replayed: bool = False) -> int:
    """Bytes that dropout adds to a layer: for each that is adapted a mask, a byte a value, and its
    input once more; where the input `is_replayed` from the mask only that.

    Source: torch `native_dropout`; PEFT drops for each adapted layer anew, and the product with A
    saves the result; unsloth 2026.10 `kernels/fast_lora` saves the mask alone (facts).
    """
    if not setting.has_dropout:
        return 0
    width = sum(shape.linears()[target][0] for target in setting.targets)
    return (1 if is_replayed else setting.dtype_bytes + 1) * width * setting.slots


def _hidden_bytes(shape: Shape, setting: Setting) -> int:
    """The inputs of the recomputed layers."""
    layers = setting.recomputed_layers(shape)
    return layers * shape.hidden * setting.slots * setting.dtype_bytes


def _is_offloaded(shape: Shape, setting: Setting) -> bool:
    state = shape.hidden * setting.slots * setting.dtype_bytes
    longest = setting.length if setting.max_tokens is None else setting.max_tokens
    is_long = longest >= _OFFLOAD_TOKENS and state > _OFFLOAD_BYTES
    return setting.checkpointing == "unsloth" and is_long


def _hidden(shape: Shape, setting: Setting, stack: Stack) -> int:
    if _is_offloaded(shape, setting):
        return 0
    return int(stack.hidden_scale * _hidden_bytes(shape, setting))


def _pinned(shape: Shape, setting: Setting) -> int:
    """Offloaded hidden states and paged moments."""
    hidden = _hidden_bytes(shape, setting) if _is_offloaded(shape, setting) else 0
    paged = [n for n in _trained_tensors(shape, setting) if _is_paged(n[0], setting)]
    return hidden + _moments(shape, setting, paged)


def _working(shape: Shape, setting: Setting, stack: Stack) -> int:
    """One layer's recompute and backward."""
    layer = stack.working.of(shape) * setting.dtype_bytes * setting.slots
    eager = 9 * setting.dtype_bytes * shape.heads * setting.rows * setting.length**2
    return int(layer + _dropped(shape, setting) + (eager if setting.is_eager else 0))


def _loss(shape: Shape, setting: Setting, stack: Stack) -> int:
    """Logits that are there at once."""
    rows, vocab = setting.slots, shape.vocab
    if stack.chunks == "unsloth":
        rows = min(rows, _unsloth_rows(shape, setting.slots))
    if stack.chunks == "trl":
        rows, vocab = min(rows, _TRL_ROWS), min(vocab, _TRL_VOCAB)
    return int(stack.logit_bytes * vocab * rows)


_TRL_ROWS: Final = 4096
_TRL_VOCAB: Final = 32768
"""Tile of logits that TRL's fused head computes at once.

Source: trl 1.15 `kernels/chunked_logprob.TOKEN_CHUNK_SIZE`,
`trainer/utils._CHUNKED_LOGPROB_CHUNK_SIZE`."""


def _unsloth_rows(shape: Shape, slots: int) -> int:
    """Rows of logits that Unsloth's loss computes at once: a power of two, 512 to 4,096.

    On cards up to 24.5 GiB it tiles the vocabulary too and takes at most some 300 MB, as much as
    this for the vocabularies here; it never takes more than 2 GiB.
    Source: unsloth_zoo 2026.10 `fused_losses/fused_linear` (facts: defaults of its settings).
    """
    least = max(512, _power_below(512 * 151936 / shape.vocab))
    rows = max(least, _power_below(slots * shape.hidden / shape.vocab))
    return min(rows, 4096, 2 * GIB // (4 * shape.vocab))


def _power_below(value: float) -> int:
    return 1 << max(int(value).bit_length() - 1, 0)


def _scratch(shape: Shape, setting: Setting) -> int:
    """Weights in compute precision beside the stored ones.

    Of a 4-bit base the largest, once forward and once backward.  Weights that are trained in
    float32 are cast by autocast, which keeps every copy until the forward's end.
    """
    if setting.parameters == "all":
        is_cast = setting.dtype_bytes < 4
        return setting.dtype_bytes * (shape.linear_params + shape.head_params) * is_cast
    if setting.quantization == "none":
        return 0
    return 2 * setting.dtype_bytes * shape.hidden * max(shape.mlp, shape.q)


def weights_of(folder: Path, setting: Setting) -> int:
    """Bytes that the base in `folder` takes once loaded, from its safetensors headers.

    Raises: ExportError where the folder's weights cannot be read.
    """
    total = 0.0
    each = NF4_DOUBLE_BYTES if setting.double_quant else NF4_BYTES
    for tensor in Checkpoint.open(folder).tensors.values():
        is_linear = _is_one_of(tensor.name, ALL_LINEAR)
        if setting.parameters == "all":
            total += 4 * tensor.count
        elif setting.quantization == "nf4" and is_linear:
            total += each * tensor.count
        else:
            total += setting.dtype_bytes * tensor.count
    return int(total)


def stored_weights(folder: Path, recipe: Recipe) -> dict[str, int]:
    """`weights_of` by quantization, of those that the base can be held in; empty where its weights
    are not here, or not stored in 16 or 32 bits."""
    setting = setting_of(recipe, length=1, rows=1)
    try:
        return {
            "nf4": weights_of(folder, replace(setting, quantization="nf4")),
            "none": weights_of(folder, replace(setting, quantization="none")),
        }
    except ExportError:
        return {}


def _is_one_of(name: str, linears: Sequence[str]) -> bool:
    parts = name.split(".")
    return parts[-1] == "weight" and len(parts) > 1 and parts[-2] in linears
