"""The base model's folder: found or downloaded, then checked before any library sees it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastsft import families, synthetic, synthetic_nf4
from fastsft.errors import ExportError, RecipeError
from fastsft.families import Family
from fastsft.recipe import Model
from fastsft.weights import Checkpoint

TINY = "tiny:"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LIGHT_FILES = ["*.json", "*.jinja", "tokenizer.model", "merges.txt", "LICENSE*"]
FILES = ["*.safetensors", *LIGHT_FILES]
LARGEST = 2**40
HINT = "use the 16-bit model as its makers published it"


@dataclass(frozen=True)
class Base:
    """A checked base: its folder, family, commit where known, and weight bytes on disk.

    `is_synthetic`: its weights are random, to measure on.  `is_nf4`: they are stored in 4 bits.
    """

    folder: Path
    family: Family
    commit: str | None
    fingerprint: str
    weight_bytes: int
    is_synthetic: bool = False
    is_nf4: bool = False


def resolve(model: Model, *, needs_weights: bool = True) -> Base:
    """The base that a recipe names, downloaded if it must be, and checked.

    Without `needs_weights` its tokenizer and config are enough, and no weights are downloaded.

    Raises RecipeError when it cannot be had, is no model folder, or is not safe to load.
    """
    folder, commit = _folder(model, FILES if needs_weights else LIGHT_FILES)
    config = check_config(folder)
    family = families.of(config)
    if family.name != model.family:
        raise RecipeError(
            f"model.family: the base is {family.name}, the recipe says {model.family}",
            where=model.base,
            hint=f"set model.family to {family.name}, or name another base",
        )
    is_nf4 = "quantization_config" in config
    if is_nf4:
        _require_nf4(model, config)
    return Base(
        folder,
        family,
        commit,
        _fingerprint(folder),
        _weight_bytes(folder, is_nf4=is_nf4) if needs_weights else 0,
        is_synthetic=synthetic.is_synthetic(config),
        is_nf4=is_nf4,
    )


def _require_nf4(model: Model, config: Mapping[str, Any]) -> None:
    """Weights that are stored in 4 bits train in those 4 bits, or not at all."""
    stored = config["quantization_config"]["bnb_4bit_use_double_quant"]
    for key, asked, held in (
        ("quantization", model.quantization, "nf4"),
        ("double_quant", model.double_quant, stored),
    ):
        if asked != held:
            raise RecipeError(
                f"model.{key}: the base is stored with {json.dumps(held)}, "
                f"the recipe says {json.dumps(asked)}",
                where=model.base,
                hint=f"set model.{key} to {json.dumps(held)}, or name another base",
            )


def _weight_bytes(folder: Path, *, is_nf4: bool) -> int:
    if is_nf4:  # the files' sizes: `Checkpoint` reads floats only
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        checkpoint = Checkpoint.open(folder)
    except ExportError as error:
        raise RecipeError(error.what, where=error.where, hint=error.hint) from error
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def _folder(model: Model, files: list[str]) -> tuple[Path, str | None]:
    if model.base.startswith(TINY):
        from fastsft.demo import tiny

        name = model.base.removeprefix(TINY)
        if name not in ("qwen2.5", "llama", "mistral"):
            raise RecipeError(
                "no such tiny base",
                where=f"model.base: {model.base}",
                hint="tiny:qwen2.5, tiny:llama or tiny:mistral",
            )
        return tiny.folder(name), None  # type: ignore[arg-type]
    path = Path(model.base).expanduser()
    if path.is_dir():
        return path.resolve(), None
    if path.exists() or not REPOSITORY.fullmatch(model.base):
        raise RecipeError(
            "neither a folder nor a Hugging Face id",
            where=f"model.base: {model.base}",
            hint="give a model folder, or an id like Qwen/Qwen2.5-7B-Instruct",
        )
    return _downloaded(model, files)


def _downloaded(model: Model, files: list[str]) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"model.base: {model.base}"
    try:
        found = snapshot_download(model.base, revision=model.revision, allow_patterns=files)
    except GatedRepoError as error:
        hint = f"accept the licence at huggingface.co/{model.base}, then set HF_TOKEN"
        raise RecipeError("the repository is gated", where=where, hint=hint) from error
    except RevisionNotFoundError as error:
        hint = "name a branch, tag or commit that the repository has"
        raise RecipeError(f"no revision {model.revision}", where=where, hint=hint) from error
    except RepositoryNotFoundError as error:
        hint = "check the spelling; a private one needs HF_TOKEN"
        raise RecipeError("no such repository", where=where, hint=hint) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        hint = "connect to the network once, or set model.base to a local folder"
        raise RecipeError(
            "cannot be downloaded, and is not in the cache", where=where, hint=hint
        ) from error
    folder = Path(found)
    return folder, folder.name


def check_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, if loading by it is safe.

    Raises RecipeError for what could run code (auto_map, underscore keys, names that are no
    identifiers) or exhaust the machine (unbounded numbers), and for a quantised base other than
    `fastsft.synthetic`'s own.

    Source: CVE-2026-93348 and CVE-2026-4372.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise RecipeError("not a model folder: it has no config.json", where=str(folder), hint=HINT)
    try:
        config = json.loads(path.read_text("utf-8")) if path.stat().st_size < 2**20 else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise RecipeError("is not a JSON object", where=str(path), hint=HINT)
    for fault in _faults(config):
        raise RecipeError(fault, where=str(path), hint=HINT)
    return config


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    if "quantization_config" in config and not _is_our_nf4(config):
        yield "the base is quantised already; training and merging need the 16-bit one"
    names = [config.get("model_type"), *(config.get("architectures") or [])]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", name):
            yield f"{json.dumps(name)[:60]} is no model type"
    yield from _unsafe(config)


def _is_our_nf4(config: Mapping[str, Any]) -> bool:
    """Whether this is a synthetic base that was written in 4 bits: random, and never merged."""
    return synthetic.is_synthetic(config) and synthetic_nf4.is_ours(config["quantization_config"])


def _unsafe(value: object, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "auto_map" or (name.startswith("_") and name != "_name_or_path"):
                yield f"{name}: refused, it could run code from the model folder"
            if name == "model_type" and not (isinstance(inner, str) and inner.isidentifier()):
                yield f"{json.dumps(inner)[:60]} is no model type"
            yield from _unsafe(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _unsafe(inner, key)
    elif isinstance(value, int | float) and not -LARGEST < value < LARGEST:
        yield f"{key}: {value} is out of bounds"


def _fingerprint(folder: Path) -> str:
    """SHA-256 over config, tokenizer and the headers and sizes of the weights (not their bytes)."""
    digest = sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = min(int.from_bytes(file.read(8), "little"), 2**27)
                digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(length))
        elif path.name in ("config.json", "tokenizer.json", "chat_template.jinja"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
