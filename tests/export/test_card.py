"""The model card: true, complete, safe to render, and without a path of this machine."""

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import finished_run
import pytest
from ruamel.yaml import YAML

from fastsft import events, recipe_file
from fastsft import run as runs
from fastsft.base import Base
from fastsft.export import card, licenses, public, record
from fastsft.export import trained as training
from fastsft.export.record import File, Kind, Record
from fastsft.export.trained import Trained
from fastsft.recipe import Recipe

FILES = MappingProxyType({"m-q8_0.gguf": File("q8_0", 123, "c" * 64)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = finished_run.make(tmp_path_factory.mktemp("somebody"))
    return training.opened(runs.open_run(run.folder))


def made(trained: Trained, kind: Kind = "gguf", **changes: object) -> Record:
    base, run = trained.recipe.model.base, trained.run.folder.name
    versions = {"fastsft": "0.1.0", "gguf": "0.19.0"}
    whole = Record(
        kind, run, base, trained.base.fingerprint, "a" * 64, "stored", (1,), FILES, versions
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def front_matter(text: str) -> dict[str, object]:
    _, block, _ = text.split("---\n", 2)
    found = YAML(typ="safe").load(block)
    assert isinstance(found, dict)
    return found


def from_hub(trained: Trained, name: str) -> Trained:
    """The same run, on a base of the Hub."""
    model = trained.recipe.model.model_copy(update={"base": name})
    recipe = trained.recipe.model_copy(update={"model": model})
    return replace(trained, recipe=recipe, base=replace(trained.base, commit="f" * 40))


@pytest.mark.parametrize(
    ("kind", "relation", "library", "tag"),
    [
        ("merged", "finetune", "transformers", "qlora"),
        ("merged-4bit", "quantized", "transformers", "bitsandbytes"),
        ("gguf", "quantized", "gguf", "llama-cpp"),
        ("gguf-lora", "adapter", "gguf", "gguf"),
    ],
)
def test_the_front_matter_is_what_the_hub_reads(
    kind: Kind, relation: str, library: str, tag: str, trained: Trained
) -> None:
    given = from_hub(trained, "Qwen/Qwen2.5-0.5B-Instruct")

    found = front_matter(card.text(given, made(given, kind)))

    assert found["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert found["base_model_relation"] == relation
    assert found["library_name"] == library
    assert found["pipeline_tag"] == "text-generation"
    assert isinstance(found["tags"], list)
    assert {"fastsft", "sft", tag} <= set(found["tags"])


def test_a_base_in_a_folder_is_named_without_its_path(trained: Trained) -> None:
    text = card.text(trained, made(trained, base="/home/somebody/models/base-7b"))

    assert "`base-7b`" in text
    assert "/home/somebody" not in text
    assert "base_model" not in front_matter(text)


def test_no_path_and_no_row_of_the_run_is_in_the_card(trained: Trained) -> None:
    text = card.text(trained, made(trained))

    rows = (trained.run.folder.parent.parent / "rows.jsonl").read_text("utf-8").splitlines()
    assert not any(row[40:80] in text for row in rows)
    assert str(trained.run.folder.parent) not in text
    assert "somebody" not in text
    assert "path: rows.jsonl" in text


def test_data_is_told_by_hashes_and_counts(trained: Trained) -> None:
    manifest = trained.run.manifest()

    text = card.text(trained, made(trained))

    assert next(iter(manifest["identity"]["data"].values())) in text
    assert manifest["identity"]["tokens"] in text
    assert f"| rows trained | {manifest['rows']['trained']} |" in text
    assert f"| rows held out | {manifest['rows']['held_out']} |" in text


def test_losses_are_those_of_the_events(trained: Trained) -> None:
    heard = [
        events.Evaluated(step=step, loss=loss, is_best=step == 5)
        for step, loss in ((5, 1.25), (10, 1.5))
    ]
    trained.run.events_path.write_text("".join(events.to_line(one) + "\n" for one in heard))

    text = card.text(trained, made(trained))

    assert "| held-out loss | 1.5000 at step 10 |" in text
    assert "| lowest held-out loss | 1.2500 at step 5 |" in text


def test_hostile_names_stay_text(trained: Trained) -> None:
    name = "](javascript:x)<img src=x>`|\n# Heading"
    files = {name: File("q8_0", 1, "c" * 64)}
    recipe = trained.recipe.model_copy(update={"description": "```\n# out\n---\nlicense: mit"})

    text = card.text(replace(trained, recipe=recipe), made(trained, base=name, files=files))

    outside = text.split("````yaml")[0] + text.split("````\n")[-1]
    assert "# Heading" not in outside.splitlines()
    assert "`|\n" not in outside
    assert "# out" not in outside
    assert "license: mit" not in outside
    assert "license" not in front_matter(text) or front_matter(text)["license"] != "mit"


def test_the_verdict_replaces_the_last_section(trained: Trained) -> None:
    checks = [
        {"name": "token ids", "file": "m", "result": "passed", "measured": "9|9", "threshold": "="},
        {"name": "greedy", "file": "m", "result": "not run", "measured": "", "threshold": ""},
    ]
    verdict = {"result": "passed in part", "checks": checks}

    text = card.text(trained, made(trained))
    told = card.with_verdict(text, verdict)

    assert "Not checked yet." in text
    assert "Not checked yet." not in told
    assert "**passed in part** (1 not run, 1 passed)" in told
    assert "| token ids | m | passed | 9\\|9 | = |" in told
    assert told == card.text(trained, made(trained), verdict=verdict)
    assert card.with_verdict(told, verdict) == told


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("gguf", "ollama create NAME -f Modelfile"),
        ("gguf", "llama-server -m m-q8_0.gguf -c 256 --jinja"),
        ("gguf-lora", "llama-server -m BASE.gguf --lora m-q8_0.gguf -c 256 --jinja"),
        ("merged", "vllm serve . --max-model-len 256"),
        ("merged-4bit", "AutoModelForCausalLM.from_pretrained(folder"),
    ],
)
def test_the_card_says_how_to_run_it(kind: Kind, line: str, trained: Trained) -> None:
    assert line in card.text(trained, made(trained, kind))


def test_the_card_says_onto_what_an_nf4_run_was_merged(trained: Trained) -> None:
    assert "16-bit weights, where training saw them in NF4" in card.text(trained, made(trained))
    assert "dequantised" in card.text(trained, made(trained, merge_base="dequantised"))


def test_the_published_recipe_is_a_recipe_without_paths(tmp_path: Path) -> None:
    sources = [
        {"path": str(tmp_path / "secret" / "a.jsonl"), "weight": 2.0},
        {"path": "HuggingFaceH4/ultrachat_200k", "split": "train_sft"},
    ]
    given = recipe_file.load("tiny-llama")
    values = given.model_dump(mode="json")
    values["data"] |= {"path": None, "sources": sources, "template": "~/mine/t.jinja"}
    values["eval"] |= {"path": "data/held-out.jsonl", "share": 0.0}
    values["model"]["base"] = str(tmp_path)
    private = Recipe.model_validate_json(json.dumps(values))

    shown = recipe_file.dump(public.recipe(private))

    assert str(tmp_path) not in shown
    assert "mine" not in shown
    assert "path: a.jsonl" in shown
    assert "path: HuggingFaceH4/ultrachat_200k" in shown
    assert "path: held-out.jsonl" in shown


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("README.md", "---\nlicense: apache-2.0\ntags: [a]\n---\n", "apache-2.0"),
        (
            "LICENSE",
            "\n                Apache License\n           Version 2.0, 2004\n",
            "apache-2.0",
        ),
        ("LICENSE.txt", "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "llama3.1"),
        ("LICENSE", "Do what you like.", "other"),
        ("README.md", "# no front matter\nlicense: mit\n", None),
    ],
)
def test_a_licence_is_read_off_the_bases_own_files(
    name: str, text: str, wanted: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)

    found = licenses.of(tmp_path)

    assert (found.identifier if found else None) == wanted


def test_a_licence_that_is_not_known_is_not_made_up(trained: Trained, tmp_path: Path) -> None:
    bare = Base(tmp_path, trained.base.family, None, trained.base.fingerprint, 0)

    text = card.text(replace(trained, base=bare), made(trained))

    assert "license" not in front_matter(text)
    assert "Licence of the base: not known" in text
    assert record.NAME not in text
