"""The page: whole in itself, every name inert, the verdict first and failed gates before others."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bench_rows import made

from fastsft.bench import page, row
from fastsft.bench.row import Gate, Predicted, PredictionError, Row, Validity
from fastsft.bench.statistics import summarise

ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(1)></pre>{{ 7 * 7 }}\x1b\u202e"
GIB = 2**30
# As matplotlib writes them: a prolog, metadata with addresses, the drawn words in comments.
SVG = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="792pt" height="311pt" viewBox="0 0 792 311" \
xmlns="http://www.w3.org/2000/svg" version="1.1">
<metadata><rdf:RDF xmlns:cc="http://creativecommons.org/ns#"></rdf:RDF></metadata>
<g id="figure_1"><!-- words --><use xlink:href="#m1"/></g>
</svg>"""
VOID = {"meta", "br", "use"}


class Page(HTMLParser):
    """A page's tags in order with their attributes' names, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def gate(name: str, result: row.Result, measured: str = "1") -> Gate:
    return Gate(name=name, result=result, measured=measured, wanted=f"{name} well", why="or else")


def judged(one: Row, *gates: Gate) -> Row:
    is_valid = all(gate.result != "failed" for gate in gates)
    return replace(one, validity=Validity(is_valid=is_valid, gates=list(gates)))


def bench(name: str = "tiny-qwen2.5", arm: str = "unsloth") -> list[Row]:
    """Two arms on a GPU, one row each; the first arm's second row failed a gate."""
    memory = {
        "memory.predicted": Predicted(
            allocated_bytes=int(6.3 * GIB),
            reserved_bytes=7 * GIB,
            process_bytes=int(7.6 * GIB),
            host_bytes=3 * GIB,
        ),
        "memory.error": PredictionError(allocated=0.05, process=-0.05),
        "identity.recipe": name,
    }
    sound = [gate("finished", "passed"), gate("alone", "not run", ""), gate("gradients", "passed")]
    wrong = [*sound[:2], gate("gradients", "failed", "zero at step 3")]
    return [
        judged(made(memory, gpu=True, arm=arm, order=1), *sound),
        judged(made(memory, gpu=True, arm="reference", order=2), *sound),
        judged(made(memory, gpu=True, arm=arm, repeat=2, order=3), *wrong),
    ]


def of(rows: list[Row]) -> str:
    return page.page(rows, summarise(rows), {"tokens": SVG})


def section(text: str, name: str) -> str:
    return text.split(f'<section id="{name}">')[1].split("</section>")[0]


def test_every_name_is_inert():
    attacked = of(
        [
            replace(one, error=ATTACK, notes=[ATTACK])
            for one in bench(f"recipe{ATTACK}", f"arm{ATTACK}")
        ]
    )
    harmless = of([replace(one, error="x", notes=["x"]) for one in bench("recipe", "arm")])

    assert Page(attacked).tags == Page(harmless).tags
    assert "alert(1)" in Page(attacked).text
    assert "{{ 7 * 7 }}" in Page(attacked).text
    assert not {"\x1b", "\u202e"} & set(attacked)


def test_the_page_loads_and_runs_nothing():
    text = of(bench())

    names = {name for _, attributes in Page(text).tags for name in attributes}
    assert not {"src", "action", "srcset"} & names
    assert not [name for name in names if name.startswith("on")]
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in Page(text).tags)
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|@import|@font-face", text)
    assert not re.search(r'href="[^#]|url\([^#]', text)


def test_a_picture_comes_in_without_prolog_words_and_ids():
    picture = str(page.inline(SVG))

    assert picture.startswith('<svg viewBox="0 0 792 311" version="1.1">')
    assert '<g><use href="#m1"/></g>' in picture
    assert "words" not in picture


def test_the_statement_stands_at_the_top():
    rows = bench()
    text = of(rows)

    header = text.split("<header")[1].split("</header>")[0]
    assert summarise(rows).statement in header.replace("&#39;", "'")
    assert text.index("<header") < text.index("<section")
    assert 'class="failed"' in text.split("<h1>")[0]


def test_failed_gates_come_first_and_name_their_rows():
    found = page.gate_lines(bench())

    assert [(line.name, line.result, line.rows) for line in found] == [
        ("gradients", "failed", 1),
        ("alone", "not run", 3),
        ("finished", "passed", 3),
    ]
    assert "zero at step 3 (unsloth 2)" in section(of(bench()), "gates")


def test_memory_stands_beside_what_was_predicted():
    text = Page(section(of(bench()), "memory")).text

    assert re.findall(r"[+-]\d+\.\d %", text)[:3] == ["+5.0 %", "+0.0 %", "-5.0 %"]
    assert "6.3 GiB" in text
    assert "host" not in text, "a resident set holds mapped files, a prediction does not"


def test_memory_by_difference_is_called_so():
    rows = [replace(one, memory=replace(one.memory, is_vram_by_difference=True)) for one in bench()]

    assert "process (device less what was in use)" in section(of(rows), "memory")


def test_arms_that_are_not_alike_have_their_own_settings():
    one, other, again = bench()
    kept = replace(one.settings, gradient_checkpointing="standard", checkpoint_skip_layers=10)

    found = page.settings([replace(one, settings=kept), other, again])

    assert found["recomputation"] == "unsloth: standard, 10 layers kept; reference: unsloth"
    assert found["optimizer"] == "adamw_torch_fused"


def test_a_base_that_is_smaller_on_disk_is_told():
    stored = [
        replace(
            one,
            identity=replace(
                one.identity, base=replace(one.identity.base, is_synthetic=True, stored="nf4")
            ),
        )
        for one in bench()
    ]

    text = Page(section(of(stored), "identity")).text
    assert "random weights of the real shape, stored in nf4" in text
    assert "loading, the time to the first step, and host RAM" in text
    assert "not the real model" not in section(of(bench()), "identity")


@pytest.mark.parametrize("name", ["arms", "gates", "pictures", "identity", "settings", "again"])
def test_the_page_has_its_parts(name: str):
    assert f'<section id="{name}">' in of(bench())


def test_what_is_not_known_is_not_told():
    rows = [made(), made(arm="reference", order=2)]

    text = page.page(rows, summarise(rows), {})

    assert 'id="pictures"' not in text
    assert 'id="memory"' not in text
    assert "n/a" in section(text, "arms")
    assert "speaks of the pipeline, not of kernels" in text.split("</header>")[0]


def test_the_command_makes_the_same_bench():
    rows = [
        replace(
            one,
            identity=replace(
                one.identity,
                vram_cap_gib=24.0,
                overrides=["train.seed=7", "lora.rank=8"],
                has_data=True,
                base=replace(one.identity.base, is_synthetic=True),
            ),
        )
        for one in bench("my recipe.yaml")
    ]

    assert page.command(rows, summarise(rows)) == (
        "fastsft bench 'my recipe.yaml' --against reference --steps 6 --warmup 4 --repeats 2 "
        "--set train.seed=7 --set lora.rank=8 --data ROWS --synthetic --vram-cap 24"
    )


def test_the_pictures_of_the_folder_are_taken_in(tmp_path: Path):
    rows = bench()
    (tmp_path / "losses.svg").write_text(SVG)

    written = page.write(tmp_path, rows, summarise(rows))

    text = written.read_text("utf-8")
    assert written == tmp_path / "index.html"
    assert text.count("<svg") == 1
    assert 'aria-label="Loss by step' in text
