"""The `general.*` fields of a GGUF: what the model is called and what it was made from.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "General metadata".
"""

import re

from fastsft.export.trained import Trained

Value = str | int | list[str]

_MISREAD = re.compile("(?<=phi)-?(?=3)|(?<=modern)-(?=bert)")
"""Names by which llama.cpp takes special tokens for another model's.
Source: llama.cpp src/llama-vocab.cpp, `_contains_any(model_name, ...)`."""

_RUN = re.compile(r"\d{8}-\d{6}-(?P<name>.+)-[0-9a-f]{4}")


def model_name(trained: Trained) -> str:
    """The run's name without its time and number, such as `qwen2.5-7b`; it names the files."""
    folder = trained.run.folder.name
    found = _RUN.fullmatch(folder)
    return found["name"] if found else re.sub(r"[^a-zA-Z0-9._-]+", "-", folder).strip("-.") or "run"


def fields(trained: Trained, *, kind: str) -> dict[str, Value]:
    """The fields, in the order in which they are written; `kind` is `model` or `adapter`."""
    repository = trained.recipe.model.base if is_repository(trained) else None
    random = ["synthetic-weights"] if trained.base.is_synthetic else []
    found: dict[str, Value] = {
        "general.type": kind,
        "general.name": _MISREAD.sub(" ", model_name(trained)),
        "general.finetune": "fastsft",
        "general.tags": ["fastsft", trained.recipe.method, *random],
        "general.base_model.count": 1,
        "general.base_model.0.name": base_name(trained),
    }
    if repository:
        found["general.base_model.0.organization"] = repository.partition("/")[0]
        found["general.base_model.0.repo_url"] = f"https://huggingface.co/{repository}"
    return found


def is_repository(trained: Trained) -> bool:
    """Whether the recipe names the base as a Hugging Face repository, not as a folder."""
    return trained.base.commit is not None


def base_name(trained: Trained) -> str:
    """The base without the path that leads to it."""
    return trained.recipe.model.base.rstrip("/").rpartition("/")[2]
