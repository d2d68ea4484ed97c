"""Cells for terminal and README: bands told, unknowns n/a, nothing of a name is markup."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bench_rows import made

from bench import table as readme
from bench.__main__ import parser
from fastsft.bench import row, table
from fastsft.bench.row import Row, Spread
from fastsft.bench.statistics import summarise
from fastsft.errors import RecipeError

ROOT = Path(__file__).parent.parent.parent


def pair(*, gpu: bool = False, pace: float = 1.5) -> list[Row]:
    """A B A B: the first arm faster by `pace`."""
    return [
        made(gpu=gpu, arm=arm, repeat=n, order=2 * n + place, pace=speed + 0.01 * n)
        for n in (1, 2)
        for place, (arm, speed) in enumerate((("unsloth", pace), ("reference", 1.0)))
    ]


def line(rows: Sequence[Row], place: int = 0) -> dict[str, str]:
    lines = table.lines(rows, summarise(rows))
    return dict(zip(table.columns(), lines[place], strict=True))


def keep(folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True)
    for one in rows:
        row.write(folder / f"{one.identity.order}.json", one)
    row.write(folder / row.SUMMARY, summarise(rows))


def test_an_arm_is_told_with_its_band_and_its_peer():
    cells = line(pair())

    assert cells["valid rows"] == "2 of 2"
    assert cells["trained tok/s"] == "1,176 (1,173 to 1,180)"
    assert cells["against peer"] == "1.48× (A/A band 1.0 %)"
    assert line(pair(), 1)["against peer"] == "peer"


def test_what_lies_within_the_band_is_said_to():
    assert line(pair(pace=1.001))["against peer"] == "1.00× (within A/A band 1.0 %)"


def test_one_repeat_has_no_band():
    assert line(pair()[:2])["against peer"] == "1.48× (no band)"


def test_what_a_cpu_does_not_have_is_not_known():
    cells = line(pair())

    assert {cells[name] for name in ("VRAM allocated", "VRAM process")} == {"n/a"}
    assert cells["host RAM"] == "1.4 GiB"
    assert line(pair(gpu=True))["VRAM process"] == "8.0 GiB"


def changed(rows: Sequence[Row], **memory: bool) -> list[Row]:
    """The rows on random weights in 4 bits, with these facts of their memory."""
    base = replace(rows[0].identity.base, is_synthetic=True, stored="nf4")
    return [
        replace(
            one,
            identity=replace(one.identity, base=base),
            memory=replace(one.memory, **memory),
        )
        for one in rows
    ]


def test_what_is_not_the_real_models_or_not_the_drivers_word_is_told():
    cells = line(changed(pair(gpu=True), is_vram_by_difference=True))

    assert cells["VRAM process"] == "8.0 GiB (device less what was in use)"
    assert cells["to first step"] == "9.2 s (base stored in 4 bits)"
    assert cells["host RAM"] == "1.4 GiB (base stored in 4 bits)"
    assert cells["VRAM allocated"] == "6.0 GiB"


def test_a_ratio_of_other_settings_says_so():
    one, *rest = pair()
    rows = [replace(one, settings=replace(one.settings, rank=8)), *rest]

    assert line(rows)["against peer"] == "1.48× (A/A band 1.0 %), other settings"


def test_an_arm_without_valid_rows_has_no_rates():
    rows = [replace(one, validity=row.Validity(is_valid=False, gates=[])) for one in pair()]

    assert line(rows)["trained tok/s"] == "n/a"
    assert line(rows)["valid rows"] == "0 of 2"
    assert line(rows)["of matmul"] == "n/a"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "n/a"), (0.0413, "41.3 ms"), (1.24, "1.24 s"), (125.2, "2 min 5 s")],
)
def test_seconds_have_their_unit(seconds: float | None, told: str):
    assert table.seconds(seconds) == told


@pytest.mark.parametrize(("rate", "told"), [(None, "n/a"), (12.34, "12.3"), (7412.4, "7,412")])
def test_rates_have_no_more_digits_than_they_are_worth(rate: float | None, told: str):
    assert table.rate(rate) == told


def test_a_spread_of_one_value_has_no_band():
    assert table.spread(Spread(median=200.0, low=200.0, high=200.0)) == "200"
    assert table.spread(None) == "n/a"


def test_a_name_stays_text_in_markdown():
    told = table.markdown_table(["a"], [["| <b>x</b> [y](z) `c`\n# h\u202e"]])

    assert told.splitlines()[2] == ("| \\| \\<b\\>x\\</b\\> \\[y\\](z) \\`c\\`↵\\# h⟨U+202E⟩ |")


def test_the_readme_has_the_table_as_the_results_are_now():
    found = readme.block((ROOT / "README.md").read_text("utf-8"), "README.md")

    assert found.strip() == readme.markdown().strip(), (
        f"README.md is behind bench/results; run: {readme.COMMAND} README.md"
    )


def test_gpus_stand_before_cpus_and_a_cpu_says_what_it_is(tmp_path: Path):
    keep(tmp_path / "cpu-x" / "one", pair())
    keep(tmp_path / "nvidia-example" / "one", pair(gpu=True))

    told = readme.markdown(tmp_path)

    assert told.index("**NVIDIA Example 24**, 24.0 GiB") < told.index("**Intel(R) Xeon")
    assert "2 cores. CPU: speaks of the pipeline, not of kernels." in told
    assert "8.0 GiB VRAM" in told
    assert "No GPU has been measured" not in told


def test_a_gpu_with_other_settings_still_stands_before_a_cpu(tmp_path: Path):
    one, *rest = pair(gpu=True)
    other = replace(one, settings=replace(one.settings, rank=8))
    keep(tmp_path / "nvidia-example" / "one", [other, *rest])
    keep(tmp_path / "cpu-x" / "one", pair())

    told = readme.markdown(tmp_path)

    assert told.index("**NVIDIA Example 24**") < told.index("**Intel(R) Xeon")


def test_a_line_tells_recipe_setting_rates_and_day(tmp_path: Path):
    keep(tmp_path / "cpu-x" / "one", pair())

    lines = [one for one in readme.markdown(tmp_path).splitlines() if one.startswith("| tiny")]

    assert lines[0] == (
        "| tiny-qwen2.5 | 4-bit, 16 × 256 tokens, recompute none | unsloth | 1,176 (1,173 to 1,180)"
        " | 1.48× (A/A band 1.0 %) | 4,705 | 5,882 | 1.4 GiB RAM | 2 of 2 | 2026-01-01 |"
    )
    assert len(lines) == 2
    assert readme.NO_GPU in readme.markdown(tmp_path)


def test_a_card_with_many_benches_shows_those_with_a_peer(tmp_path: Path):
    for number in range(readme.MOST + 2):
        keep(tmp_path / "cpu-x" / f"alone-{number:02}", [made()])
    keep(tmp_path / "cpu-x" / "with-a-peer", pair())

    told = readme.markdown(tmp_path)

    lines = [one for one in told.splitlines() if one.startswith("| tiny")]
    assert [len(lines), "peer" in lines[1]] == [readme.MOST + 1, True]
    assert "3 more of this device are in `bench/results`." in told


def test_random_weights_and_a_cap_are_told(tmp_path: Path):
    one = made(gpu=True)
    base = replace(one.identity.base, is_synthetic=True)
    capped = replace(one, identity=replace(one.identity, base=base, vram_cap_gib=24.0))
    keep(tmp_path / "gpu" / "one", [capped])

    told = readme.markdown(tmp_path)

    assert "tiny-qwen2.5 (random weights)" in told
    assert "8.0 GiB VRAM, of 24 GiB allowed" in told


def test_nothing_but_the_block_is_renewed(tmp_path: Path):
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"

    renewed = readme.renewed(text, "page.md", tmp_path)

    assert renewed == f"before\n{readme.BEGIN}\n{readme.markdown(tmp_path)}{readme.END}\nafter\n"
    assert readme.renewed(renewed, "page.md", tmp_path) == renewed


@pytest.mark.parametrize(
    "text",
    [
        "",
        readme.BEGIN,
        f"{readme.END} {readme.BEGIN}",
        f"{readme.BEGIN} {readme.END} {readme.END}",
        f"{readme.BEGIN} {readme.BEGIN} {readme.END}",
    ],
)
def test_markers_must_be_there_in_order_once_each(text: str):
    with pytest.raises(RecipeError, match="not there once each"):
        readme.block(text, "page.md")


def test_the_command_renews_a_file_and_prints_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "page.md"
    page.write_text(f"{readme.BEGIN}\nold\n{readme.END}\n")

    for words in (["table"], ["table", "--write", str(page)]):
        asked = parser().parse_args(words)
        asked.do(asked)

    assert capsys.readouterr().out == readme.markdown()
    assert readme.block(page.read_text("utf-8"), "page.md").strip() == readme.markdown().strip()
