"""The sampling child, `python -m fastsft.evaluate.generate`: prompts in, text out, over JSON lines.

Stock transformers and PEFT; never Unsloth.  One request a line on stdin:
`{"prompt": text, "max_tokens": n, "temperature": t}`, answered by `{"piece": text}` lines and a
`{"done": true}`; or `{"prompts": [...], "max_tokens": n, "pad_token": p}`, answered greedily by one
`{"answers": [...]}`.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

BATCH = 32


class Sampler:
    """A model that answers prompts, already rendered, as token ids of its own tokenizer."""

    def __init__(self, base: Path, adapter: Path | None, *, nf4: bool, stop_ids: Sequence[int]):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        is_cuda = torch.cuda.is_available()
        dtype = torch.bfloat16 if is_cuda else torch.float32
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        self.torch = torch
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=dtype,
            quantization_config=quantization if nf4 else None,
            device_map={"": 0 if is_cuda else "cpu"},
            local_files_only=True,
            use_safetensors=True,
        )
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, str(adapter))
        self.model.eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self.tokenizer.padding_side = "left"
        self.stop_ids = list(stop_ids)

    def answers(self, prompts: Sequence[str], *, max_tokens: int, pad_token: str) -> list[str]:
        """The greedy continuation of each prompt, up to its stop token."""
        self.tokenizer.pad_token = pad_token
        found: list[str] = []
        for at in range(0, len(prompts), BATCH):
            batch = self._encode(list(prompts[at : at + BATCH]))
            ids = self._generate(batch, max_tokens=max_tokens, temperature=0.0)
            fresh = ids[:, batch["input_ids"].shape[1] :]  # [B, new]
            found += self.tokenizer.batch_decode(fresh, skip_special_tokens=True)
        return found

    def stream(self, prompt: str, *, max_tokens: int, temperature: float, out: TextIO) -> None:
        """Write the continuation piece by piece."""
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        arguments = {"max_tokens": max_tokens, "temperature": temperature, "streamer": streamer}
        batch = self._encode([prompt])
        thread = threading.Thread(target=self._generate, args=(batch,), kwargs=arguments)
        thread.start()
        for piece in streamer:
            _write(out, {"piece": piece})
        thread.join()
        _write(out, {"done": True})

    def _encode(self, prompts: list[str]) -> Any:
        batch = self.tokenizer(
            prompts, return_tensors="pt", padding=len(prompts) > 1, add_special_tokens=False
        )
        return batch.to(self.model.device)

    def _generate(
        self, batch: Any, *, max_tokens: int, temperature: float, streamer: Any = None
    ) -> Any:
        sampling = {"temperature": temperature, "top_k": 0} if temperature else {}
        with self.torch.inference_mode():
            return self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_tokens,
                do_sample=temperature > 0,
                eos_token_id=self.stop_ids,
                pad_token_id=self.tokenizer.pad_token_id or self.stop_ids[0],
                streamer=streamer,
                **sampling,
            )


def _write(out: TextIO, record: dict[str, Any]) -> None:
    out.write(json.dumps(record, ensure_ascii=False) + "\n")
    out.flush()


def main() -> None:
    """Answer requests until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--stop", type=int, action="append", required=True)
    asked = parser.parse_args()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    sampler = Sampler(asked.base, asked.adapter, nf4=asked.nf4, stop_ids=asked.stop)
    _write(out, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        if "prompts" in request:
            prompts = request.pop("prompts")
            _write(out, {"answers": sampler.answers(prompts, **request)})
        else:
            sampler.stream(**request, out=out)


if __name__ == "__main__":
    main()
