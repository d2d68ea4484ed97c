"""Measures the training process: phases, steps, work, peaks of memory.  Changes nothing.

Time is the host's clock (`time.perf_counter`), read after one `torch.cuda.synchronize` at the end
of each step: a step is then all that a user waits for, reading the data and launching kernels
included, which CUDA events would leave out.  Only the matmul is timed by CUDA events.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastsft import events, flops, meter, shapes
from fastsft.engine import probes
from fastsft.engine.settings import Resolved
from fastsft.errors import FastsftError
from fastsft.meter import Lap, Tokens
from fastsft.recipe import Recipe
from fastsft.shapes import Shape


@dataclass(frozen=True)
class Work:
    """What training costs on this model with these settings, in FLOP, matmuls only.

    `rank` is None where every weight is trained, not an adapter on `targets`.  `skips_untrained`:
    the head multiplies only the positions that the loss sees; `is_stock`: the stock stack's way of
    recomputing and of the first layer, see `flops.as_stock`.
    """

    shape: Shape
    rank: int | None
    targets: tuple[str, ...]
    recomputed_layers: int
    skips_untrained: bool
    is_stock: bool

    def model(self, tokens: Tokens) -> float:
        """What the mathematics needs: real tokens, logits of trained ones, nothing twice."""
        return self._of(tokens.real, tokens.trained, tokens.pairs, recomputed=0).model

    def hardware(self, tokens: Tokens) -> float:
        """What the device computes: padding, the head's rows as the engine has them, recomputation.

        Attention is counted causal, so a kernel that computes masked pairs too does more.
        """
        rows = tokens.trained if self.skips_untrained else tokens.slots
        recomputed = self.recomputed_layers
        found = self._of(tokens.slots, rows, tokens.computed_pairs, recomputed=recomputed)
        if self.is_stock and self.rank is not None:
            found = flops.as_stock(
                found,
                self.shape,
                rank=self.rank,
                targets=self.targets,
                tokens=tokens.slots,
                pairs=tokens.computed_pairs,
                recomputed_layers=recomputed,
            )
        return found.hardware

    def _of(self, tokens: int, rows: int, pairs: int, *, recomputed: int) -> flops.Flops:
        return flops.of_work(
            self.shape,
            lora_params=self.shape.lora_params(self.rank or 0, self.targets),
            tokens=tokens,
            head_rows=rows,
            pairs=pairs,
            recomputed_layers=recomputed,
            trains_base=self.rank is None,
        )


def work(recipe: Recipe, resolved: Resolved, folder: Path) -> Work | None:
    """The work of a recipe on the base in `folder`; None for a shape that is not known.

    The head: Unsloth 2026.10.9 multiplies the rows with a label only, on CUDA and on a CPU; so does
    TRL 1.15's fused head, which the reference engine has on CUDA.  On a CPU the reference's model
    makes logits of every slot.
    Source: unsloth_zoo `fused_losses`, trl `trainer.utils.add_fused_lm_head`; the shapes of both
    engines' head products, seen on a CPU in tests/engine/test_metering.py.
    """
    try:
        shape = shapes.of(json.loads((folder / "config.json").read_text("utf-8")))
    except (FastsftError, OSError, ValueError, KeyError):
        return None
    is_recomputed = resolved.gradient_checkpointing != "none"
    kept = recipe.train.checkpoint_skip_layers
    return Work(
        shape=shape,
        rank=recipe.lora.rank if recipe.train.parameters == "lora" else None,
        targets=tuple(recipe.lora.targets),
        recomputed_layers=max(shape.layers - kept, 0) if is_recomputed else 0,
        skips_untrained=recipe.engine == "unsloth" or resolved.device.kind == "cuda",
        is_stock=recipe.engine == "reference",
    )


class Meter:
    """The clocks, counts and peaks of one process, from the end of its imports on.

    Phases follow one another: load, preflight, first_step, steady.  What is done `apart` (matmul,
    eval, save) is timed by itself and belongs to no other.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.created = self._mark = clock()
        self.phases_s: dict[str, float] = {}
        self.vram: dict[str, dict[str, int]] = {}
        self.matmul_flops_per_s: float | None = None
        self.work: Work | None = None
        self.first: Lap | None = None
        self.rest: Lap | None = None
        self._phase = "load"
        self._apart_s = self._ours_s = 0.0

    def imported_since(self, began: float) -> None:
        """Tell when the process began; until this meter was made it imported."""
        self.phases_s["import"] = max(self.created - began, 0.0)

    def enter(self, phase: str) -> None:
        """End the phase in hand, and begin the next."""
        self._spend(self._phase, self._split())
        self._end_peaks(phase)

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Time what is done in here as `name`, in no phase or step."""
        began = self._clock()
        try:
            yield
        finally:
            spent = self._clock() - began
            self._apart_s += spent
            self._spend(name, spent)

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Count what is done in here as fastsft's own cost, which the step's time includes.

        The device's work that is still under way is waited for first: it is not ours.
        """
        probes.synchronize()
        began = self._clock()
        try:
            yield
        finally:
            self._ours_s += self._clock() - began

    def lap(self, tokens: Tokens) -> Lap:
        """The step that ends now; the next one begins."""
        done = Lap(tokens, self._split(), self._ours_s)
        self._ours_s = 0.0
        if self.first is None:
            self.first = done
            self._spend("first_step", done.seconds)
            self._end_peaks("steady")
        else:
            self.rest = done if self.rest is None else self.rest + done
        self._spend("train", done.seconds)
        return done

    def vram_peak(self) -> int | None:
        """Most bytes that torch reserved on the GPU in this process so far; None on a CPU."""
        return meter.whole([*self.vram.values(), probes.vram_peaks()]).get("reserved")

    def measured(self, order_hash: str, adapter_norm: float | None) -> events.Measured:
        """All of it, as the event that ends the process's part of the run."""
        if self.first is not None:
            self._end_peaks(self._phase)
        rates, flops_per_s = meter.rates(self.rest), self._flops_per_s()
        laps = [lap for lap in (self.first, self.rest) if lap is not None]
        return events.Measured(
            order_hash=order_hash,
            phases_s=dict(self.phases_s),
            vram=dict(self.vram),
            pinned_bytes=probes.pinned_peak(),
            matmul_flops_per_s=self.matmul_flops_per_s,
            model_flops_per_s=flops_per_s and flops_per_s[0],
            hardware_flops_per_s=flops_per_s and flops_per_s[1],
            trained_tokens_per_s=rates.trained if rates is not None else None,
            real_tokens_per_s=rates.real if rates is not None else None,
            slots_per_s=rates.slots if rates is not None else None,
            adapter_norm=adapter_norm,
            overhead_share=meter.share(
                sum(lap.overhead_s for lap in laps), sum(lap.seconds for lap in laps)
            ),
        )

    def _flops_per_s(self) -> tuple[float, float] | None:
        """Of the steps after the first: the model's, and the hardware's."""
        if self.work is None or self.rest is None or self.rest.seconds <= 0:
            return None
        tokens, seconds = self.rest.tokens, self.rest.seconds
        return self.work.model(tokens) / seconds, self.work.hardware(tokens) / seconds

    def _split(self) -> float:
        """Seconds since the last split, without what was done apart; a new one begins."""
        now = self._clock()
        spent, self._mark, self._apart_s = now - self._mark - self._apart_s, now, 0.0
        return spent

    def _spend(self, name: str, seconds: float) -> None:
        self.phases_s[name] = self.phases_s.get(name, 0.0) + seconds

    def _end_peaks(self, phase: str) -> None:
        """Note the peaks of the phase in hand, and begin `phase` at what is in use now."""
        if peaks := probes.vram_peaks():
            self.vram[self._phase] = meter.whole([self.vram.get(self._phase, {}), peaks])
            probes.reset_vram_peaks()
        self._phase = phase
