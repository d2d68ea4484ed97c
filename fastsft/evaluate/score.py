"""The scoring child, `python -m fastsft.evaluate.score`: token ids in, numbers out, as JSON lines.

Stock transformers, PEFT and bitsandbytes; never Unsloth, and no code from the model's folder.
One request a line on stdin, one answer a line.  `{"open": {"model": folder, "adapter": folder or
null, "double_quant": null for no NF4, "dtype": name, "device": name}, "as": n}` -> `{"device":
name}`; `{"close": n}` -> `{}`.  Of an open model, with `"model": n` beside:
`{"logits": [id], "path": file}` -> `{"shape": [T, V]}`, float32 values in the file;
`{"greedy": [id], "max_tokens": n, "stop_ids": [id]}` -> `{"ids": [id]}`;
`{"loss": [[[id], [label]]]}` -> `{"sum": nats, "tokens": n}`.
"""

import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

UNTRAINED = -100


class Scorer:
    """A model that says what it thinks of token ids; it reads no text."""

    def __init__(
        self, model: str, *, adapter: str | None, double_quant: bool | None, dtype: str, device: str
    ):
        from transformers import AutoModelForCausalLM

        nf4 = {} if double_quant is None else {"quantization_config": _nf4(double_quant, dtype)}
        self.device = torch.device(device)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            device_map={"": device},
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **nf4,
        )
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, adapter)
        self.model.eval()
        _as_in_training(self.model)

    @property
    def name(self) -> str:
        """The GPU's name, or `CPU`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        with torch.inference_mode():
            if "logits" in request:
                return self._logits(request["logits"], Path(request["path"]))
            if "greedy" in request:
                prompt = request.pop("greedy")
                return {"ids": self._greedy(prompt, **request)}
            sums = [self._row(ids, labels) for ids, labels in request["loss"]]
            return {"sum": sum(s for s, _ in sums), "tokens": sum(n for _, n in sums)}

    def _logits(self, ids: list[int], path: Path) -> dict[str, Any]:
        said = self.model(input_ids=self._batch(ids), use_cache=False).logits[0]  # [T, V]
        said.float().cpu().numpy().tofile(path)
        return {"shape": list(said.shape)}

    def _greedy(self, ids: list[int], *, max_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """Argmax by hand: `generate` would apply the penalties of generation_config.json."""
        found: list[int] = []
        batch, past = self._batch(ids), None
        while len(found) < max_tokens and not (found and found[-1] in stop_ids):
            out = self.model(
                input_ids=batch, past_key_values=past, use_cache=True, logits_to_keep=1
            )
            found.append(int(out.logits[0, -1].float().argmax()))
            batch, past = self._batch(found[-1:]), out.past_key_values
        return found

    def _row(self, ids: list[int], labels: list[int]) -> tuple[float, int]:
        """Summed cross entropy and count of a row's trained tokens; logits of those alone."""
        targets = torch.tensor(labels, device=self.device)[1:]  # [T - 1]
        places = (targets != UNTRAINED).nonzero()[:, 0]  # [N]
        if not len(places):
            return 0.0, 0
        said = self.model(
            input_ids=self._batch(ids), use_cache=False, logits_to_keep=places
        ).logits[0]  # [N, V]
        each = functional.cross_entropy(said.float(), targets[places], reduction="none")
        return float(each.double().sum()), len(places)

    def _batch(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.device)  # [1, T]


def _nf4(double_quant: bool, dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def _as_in_training(model: Any) -> None:
    """Let 4-bit layers compute as they do in training.

    Out of training, bitsandbytes 0.50 multiplies in bfloat16 on CPUs that have AVX512-BF16.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def answer(request: dict[str, Any], models: dict[int, Scorer]) -> dict[str, Any]:
    """The answer to one request; opening and closing change `models`."""
    if "open" in request:
        opened = models[request["as"]] = Scorer(**request["open"])
        return {"device": opened.name}
    if "close" in request:
        del models[request["close"]]
        gc.collect()
        torch.cuda.empty_cache()
        return {}
    return models[request.pop("model")].answer(request)


def main() -> None:
    """Answer requests until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    models: dict[int, Scorer] = {}
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), models)), file=out, flush=True)


if __name__ == "__main__":
    main()
