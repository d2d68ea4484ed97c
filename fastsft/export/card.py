"""Writes the model card: what an export is, from what, how to run it.  No rows, no local paths.

Source of the front matter: https://huggingface.co/docs/hub/model-cards.
"""

import json
import re
import shlex
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from fastsft import events, recipe_file
from fastsft.export import general, licenses, public
from fastsft.export.licenses import License
from fastsft.export.record import Kind, Record
from fastsft.export.trained import Trained

NAME = "README.md"
VERIFICATION = "## Verification"
"""The last section's heading: what follows it is written anew by `with_verdict`."""

_WHAT: Mapping[Kind, str] = {
    "merged": "A fine-tuned model, its adapter merged into the base's weights.",
    "merged-4bit": "A fine-tuned model, merged, its linear layers in 4 bits (NF4, bitsandbytes).",
    "gguf": "A fine-tuned model, merged, as GGUF for llama.cpp, Ollama and what is built on them.",
    "gguf-lora": "A LoRA adapter as GGUF, to be loaded beside its base by llama.cpp or Ollama.",
}
_SYNTHETIC = "No model: a synthetic base's random weights, exported to time and test the export."
_RELATION: Mapping[Kind, str] = {
    "merged": "finetune",
    "merged-4bit": "quantized",
    "gguf": "quantized",
    "gguf-lora": "adapter",
}
_PYTHON = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or the repository's name
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
chat = [{"role": "user", "content": "Hello"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids.to(model.device), max_new_tokens=200)[0]))
"""
_PYTHON_RAW = """\
from transformers import pipeline

print(pipeline("text-generation", model=".")("Once", max_new_tokens=200))
"""
_BLOCK = re.compile(r"[`<>|\\\[\]*_#!&$~]")

Use = tuple[str, str, str]


def text(trained: Trained, record: Record, *, verdict: Mapping[str, Any] | None = None) -> str:
    """The card of an export; `verdict` is what verify.json holds, where it was checked."""
    base_license = licenses.of(trained.base.folder)
    template = _environment().from_string(
        resources.files(__package__).joinpath("card.md.jinja").read_text("utf-8")
    )
    return template.render(
        front_matter=_front_matter(trained, record, base_license),
        name=_plain(general.model_name(trained)),
        what=_SYNTHETIC if record.is_synthetic else _WHAT[record.kind],
        base=_code(public.place(record.base)),
        commit=_code(trained.base.commit or "") if trained.base.commit else "",
        license=_plain(base_license.told) if base_license else "not known; look it up there",
        method=_method(trained),
        merged_onto=_merged_onto(trained, record),
        files=sorted(record.files.items()),
        uses=_uses(trained, record),
        numbers=_numbers(trained),
        recipe=recipe_file.dump(public.recipe(trained.recipe)),
        hashes=_hashes(trained, record),
        versions=", ".join(f"{name} {version}" for name, version in record.versions.items()),
        verification=_verification(verdict),
    )


def with_verdict(card: str, verdict: Mapping[str, Any]) -> str:
    """The card with what the gate found; `verdict` is what verify.json holds."""
    before, heading, _ = card.rpartition(f"\n{VERIFICATION}\n")
    return f"{before if heading else card}\n{_verification(verdict)}\n"


def _front_matter(trained: Trained, record: Record, found: License | None) -> str:
    """YAML; strings are JSON, which YAML reads and in which nothing can end the block."""
    is_gguf = record.kind.startswith("gguf")
    fields: dict[str, Any] = {}
    if general.is_repository(trained):
        fields["base_model"] = trained.recipe.model.base
        fields["base_model_relation"] = _RELATION[record.kind]
    if found:
        fields |= found.fields
    fields["library_name"] = "gguf" if is_gguf else "transformers"
    fields["pipeline_tag"] = "text-generation"
    fields["tags"] = _tags(trained, record.kind)
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items())


def _tags(trained: Trained, kind: Kind) -> list[str]:
    tags = ["fastsft", trained.recipe.method]
    if not trained.is_whole:
        tags.append("qlora" if trained.is_nf4 else "lora")
    if trained.recipe.method == "sft":
        tags.append("conversational")
    if trained.base.is_synthetic:
        tags.append("synthetic-weights")
    return tags + {"merged": [], "merged-4bit": ["bitsandbytes"]}.get(kind, ["gguf", "llama-cpp"])


def _method(trained: Trained) -> str:
    of = "supervised fine-tuning" if trained.recipe.method == "sft" else "continued pretraining"
    if trained.is_whole:
        return f"{of}, every weight"
    lora = trained.recipe.lora
    how = "QLoRA (base in NF4)" if trained.is_nf4 else "LoRA"
    return f"{of}, {how}, rank {lora.rank}, alpha {lora.alpha:g}"


def _merged_onto(trained: Trained, record: Record) -> str:
    if record.kind == "gguf-lora" or trained.is_whole or not trained.is_nf4:
        return ""
    if record.merge_base == "dequantised":
        return "the base as training saw it (NF4, dequantised)"
    return "the base's own 16-bit weights, where training saw them in NF4"


def _uses(trained: Trained, record: Record) -> list[Use]:
    first = shlex.quote(_one_line(next(iter(sorted(record.files)), "model")))
    context = trained.recipe.data.max_tokens
    if record.kind == "gguf":
        return [
            ("llama.cpp", "sh", f"llama-server -m {first} -c {context} --jinja"),
            ("Ollama, in this folder", "sh", "ollama create NAME -f Modelfile\nollama run NAME"),
        ]
    if record.kind == "gguf-lora":
        served = f"llama-server -m BASE.gguf --lora {first} -c {context} --jinja"
        return [("llama.cpp, with the base as GGUF", "sh", served)]
    is_chat = trained.recipe.method == "sft"
    return [
        ("transformers", "python", _PYTHON if is_chat else _PYTHON_RAW),
        ("vLLM", "sh", f"vllm serve . --max-model-len {context}"),
    ]


def _numbers(trained: Trained) -> list[tuple[str, str]]:
    """What training measured: counts and losses, each where it is known."""
    rows = trained.run.manifest().get("rows", {})
    heard = [event for event, _ in events.read(trained.run.events_path)]
    steps = [event for event in heard if isinstance(event, events.Step)]
    evaluated = [event for event in heard if isinstance(event, events.Evaluated)]
    numbers = [
        ("rows trained", str(rows.get("trained", "n/a"))),
        ("rows held out", str(rows.get("held_out", "n/a"))),
    ]
    if steps:
        last = steps[-1]
        numbers.append(("optimizer steps", f"{last.step} of {last.total_steps}"))
        numbers.append(("training loss at the last step", f"{last.loss:.4f}"))
    if evaluated:
        last_loss, best = evaluated[-1], min(evaluated, key=lambda event: event.loss)
        numbers.append(("held-out loss", f"{last_loss.loss:.4f} at step {last_loss.step}"))
        numbers.append(("lowest held-out loss", f"{best.loss:.4f} at step {best.step}"))
    return numbers


def _hashes(trained: Trained, record: Record) -> list[tuple[str, str]]:
    """Hashes only: the manifest's keys are paths of this machine."""
    identity = trained.run.manifest().get("identity", {})
    data = identity.get("data", {})
    found = [(f"data file {n}", sha) for n, sha in enumerate(sorted(data.values()), start=1)]
    found.append(("token ids and labels", str(identity.get("tokens", "n/a"))))
    found.append(("recipe", str(identity.get("recipe", "n/a"))))
    found.append(("base", record.base_fingerprint))
    found.append(("adapter", record.adapter_sha256))
    return found


def _verification(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return f"{VERIFICATION}\n\nNot checked yet."
    counts: dict[str, int] = {}
    for check in verdict.get("checks", []):
        counts[str(check["result"])] = counts.get(str(check["result"]), 0) + 1
    told = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
    lines = [
        VERIFICATION,
        "",
        f"Compared with the adapter on its base, before it was published: "
        f"**{_plain(str(verdict.get('result', 'n/a')))}** ({told}).",
        "",
        "| check | file | result | measured | threshold |",
        "|---|---|---|---|---|",
    ]
    keys = ("name", "file", "result", "measured", "threshold")
    for check in verdict.get("checks", []):
        lines.append("| " + " | ".join(_plain(str(check.get(key, ""))) for key in keys) + " |")
    return "\n".join(lines)


def _environment() -> Environment:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"code": _code, "fenced": _fenced}
    return environment


def _plain(value: str) -> str:
    """One line of text in which Markdown and HTML mean nothing."""
    return _BLOCK.sub(lambda found: "\\" + found[0], _one_line(value))


def _code(value: str) -> str:
    """One line as a code span; a backtick would end it, a bar the table's cell."""
    return "`" + _one_line(value).replace("`", "'").replace("|", "¦") + "`" if value else ""


def _one_line(value: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in value).split())


def _fenced(value: str, language: str) -> str:
    """A code block whose fence no line of it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", value)), default=0))
    return f"{fence}{language}\n{value.rstrip()}\n{fence}"
