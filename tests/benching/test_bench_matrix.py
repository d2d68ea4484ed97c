"""The grid: cells that are benches, a run that can be stopped, and what its files say together."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_rows import made

from bench import cells, matrix, report, results
from bench.cells import Cell
from fastsft import recipe_file
from fastsft.bench import gates, row
from fastsft.bench.row import Predicted, Row
from fastsft.bench.statistics import summarise
from fastsft.errors import RecipeError

GIB = 2**30
CELL = Cell(
    group="peer",
    question="Who?",
    recipe="tiny-qwen2.5",
    engine="unsloth",
    against=None,
    base="nf4",
    tokens=1024,
    length=256,
    recompute="none",
    is_synthetic=False,
    vram_cap_gib=None,
    steps=10,
    warmup=4,
    repeats=2,
    process_s=30,
)
OTHER = replace(CELL, tokens=2048)


def keep(folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True)
    for one in rows:
        row.write(folder / f"{one.identity.order}.json", one)
    row.write(folder / row.SUMMARY, summarise(rows))


class Fake:
    """Stands for fastsft: leaves rows, or says why not."""

    def __init__(self, out: Path, rows: Sequence[Row] = (), *, code: int = 0, told: str = ""):
        self.out, self.rows, self.code, self.told = out, rows, code, told
        self.asked: list[list[str]] = []

    def __call__(self, words: Sequence[str]) -> tuple[int, str]:
        self.asked.append(list(words))
        if self.rows:
            keep(self.out / "results" / "cpu-x" / f"bench-{len(self.asked)}", self.rows)
        return self.code, self.told


def run(out: Path, execute: Any, *asked: Cell, **options: Any) -> list[dict[str, Any]]:
    """The records written."""
    paths = matrix.run(
        asked or [CELL], out, on="cpu x", say=lambda _: None, execute=execute, **options
    )
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("section", ["gpu", "cpu"])
def test_every_kind_of_cell_is_a_recipe_that_stands(section: cells.Section):
    found = {(c.recipe, c.base, c.recompute): c for c in cells.read(section)}

    for cell in found.values():
        recipe = recipe_file.load(cell.recipe, cell.overrides())
        assert recipe.train.micro_rows * recipe.data.max_tokens == cell.tokens
        assert recipe.model.quantization == cell.base


def test_no_cell_is_there_twice_and_the_grid_has_what_it_is_for():
    found = cells.read("gpu")

    assert len({cell.id for cell in found}) == len(found)
    assert {cell.recompute for cell in found} == {"full", "partial", "none", "offload"}
    assert {cell.base for cell in found} == {"nf4", "none"}
    assert {cell.vram_cap_gib for cell in found} == {24}
    for recipe in ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "llama-3.1-8b"):
        assert {512, 2048, 4096, 8192} <= {c.tokens for c in found if c.recipe == recipe}
    assert {"qwen2.5-7b", "qwen2.5-1.5b"} == {c.recipe for c in found if c.against}


def test_partial_recomputation_is_of_half_the_layers():
    partial = next(cell for cell in cells.read("gpu") if cell.recompute == "partial")

    assert partial.recipe == "qwen2.5-7b"
    assert "train.checkpoint_skip_layers=14" in partial.overrides()


def test_a_recipe_of_unknown_shape_cannot_be_recomputed_in_part():
    with pytest.raises(RecipeError, match="recompute partial needs a base whose layers are known"):
        replace(CELL, recompute="partial").overrides()


def test_a_cell_is_one_command():
    cell = replace(CELL, against="reference", is_synthetic=True, vram_cap_gib=24.0)

    words = " ".join(cell.words(Path("out")))

    assert words.startswith("bench tiny-qwen2.5 --json --out out --set engine=unsloth ")
    assert words.endswith(
        "--against reference --synthetic --vram-cap 24 --steps 10 --warmup 4 --repeats 2"
    )
    assert "--set train.micro_batch_rows=4 --set train.accumulation_steps=1 " in words


@pytest.mark.parametrize(
    ("pattern", "count"), [(None, 2), ("peer", 1), ("*7b*none*", 1), ("t1024", 2)]
)
def test_only_takes_a_group_or_a_pattern(pattern: str | None, count: int):
    found = [CELL, replace(CELL, group="base", recipe="qwen2.5-7b")]

    assert len(cells.only(found, pattern)) == count


def test_only_of_nothing_is_refused():
    with pytest.raises(RecipeError, match="no cell is called so: 13b") as refused:
        cells.only([CELL], "13b")

    assert "a set (peer)" in str(refused.value)


@pytest.mark.parametrize("text", ["gpu: 1", "cpu: {}", "[", "cpu: {defaults: {}, sets: [{}]}"])
def test_a_file_that_is_no_grid_is_refused(tmp_path: Path, text: str):
    (tmp_path / "grid.yaml").write_text(text)

    with pytest.raises(RecipeError, match="not a grid of benches"):
        cells.read("cpu", tmp_path / "grid.yaml")


def test_a_measured_cell_is_kept_with_its_folder(tmp_path: Path):
    (record,) = run(tmp_path, Fake(tmp_path, [made()]))

    assert (record["result"], record["error"]) == ("measured", None)
    assert record["folder"] == "cpu-x/bench-1"
    assert record["cell"]["tokens"] == 1024
    assert matrix.record_path(tmp_path, "cpu x", CELL).is_file()


def test_resume_passes_over_what_is_measured_and_still_there(tmp_path: Path):
    first = Fake(tmp_path, [made()])
    run(tmp_path, first)

    again = Fake(tmp_path, code=1)
    run(tmp_path, again, CELL, OTHER, resume=True)

    assert len(again.asked) == 1
    assert "train.micro_batch_rows=8" in again.asked[0]
    (tmp_path / "results" / "cpu-x" / "bench-1" / row.SUMMARY).unlink()
    run(tmp_path, again, CELL, resume=True)
    assert len(again.asked) == 2


OUT_OF_MEMORY = "OutOfMemory: the device ran out of memory"


@pytest.mark.parametrize("rows", [[], [made({"error": OUT_OF_MEMORY})]])
def test_out_of_memory_is_a_result_and_the_run_goes_on(tmp_path: Path, rows: list[Row]):
    fake = Fake(tmp_path, rows, code=4, told=f"step 1\nerror: bench: {OUT_OF_MEMORY}\n hint: less")

    records = run(tmp_path, fake, CELL, OTHER)

    assert [record["result"] for record in records] == ["out of memory"] * 2
    assert OUT_OF_MEMORY in records[0]["error"]
    run(tmp_path, fake, resume=True)
    assert len(fake.asked) == 2


KILLED = (
    "TrainError: the training process was ended by SIGKILL (the machine may have run out of memory)"
)


def test_a_process_that_was_killed_did_not_run_out_of_memory_for_sure(tmp_path: Path):
    (record,) = run(tmp_path, Fake(tmp_path, [made({"error": KILLED})], code=4, told=KILLED))

    assert (record["result"], record["error"]) == ("invalid", KILLED)
    assert run(tmp_path, Fake(tmp_path, code=4, told=KILLED))[0]["result"] == "failed"


def test_an_arm_without_memory_leaves_the_other_its_figures(tmp_path: Path):
    rows = gates.judged([made(), made({"error": OUT_OF_MEMORY}, arm="reference", order=2)])

    (record,) = run(tmp_path, Fake(tmp_path, rows, code=4))

    assert record["result"] == "out of memory"
    assert record["error"] == f"reference: {OUT_OF_MEMORY}; unsloth is measured"
    found = results.read(matrix.named_folders(tmp_path / "results"))
    assert [point.arm.arm for point in results.points(found)] == ["unsloth"]


def test_an_arm_without_memory_does_not_hide_that_the_other_counts_not(tmp_path: Path):
    gate = row.Gate(name="gradients", result="failed", measured="0", wanted="above 0", why="")
    wrong = replace(made(), validity=row.Validity(is_valid=False, gates=[gate]))
    rows = [wrong, made({"error": OUT_OF_MEMORY}, arm="reference", order=2)]

    (record,) = run(tmp_path, Fake(tmp_path, rows, code=4))

    assert (record["result"], record["error"]) == ("invalid", "gates: gradients")


def test_a_cell_that_is_no_recipe_does_not_end_the_grid(tmp_path: Path):
    broken = replace(CELL, recipe="tiny-qwen")

    def refused(words: Sequence[str]) -> tuple[int, str]:
        return 2, "error: no such recipe"

    records = run(tmp_path, refused, broken, replace(CELL, recompute="partial"))

    assert [record["result"] for record in records] == ["failed", "failed"]
    assert "whose layers are known" in records[1]["error"]
    assert records[0]["predicted_process_bytes"] is None


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("x\nerror: recipe: bad key\n  hint: mend it", "exit code 2: error: recipe: bad key"),
        ("the last line", "exit code 2: the last line"),
        ("", "exit code 2: "),
    ],
)
def test_a_failed_cell_says_why_and_gets_another_go(tmp_path: Path, told: str, error: str):
    fake = Fake(tmp_path, code=2, told=told)

    (record,) = run(tmp_path, fake)

    assert (record["result"], record["error"]) == ("failed", error)
    run(tmp_path, fake, resume=True)
    assert len(fake.asked) == 2


def test_a_cell_whose_rows_count_not_is_invalid(tmp_path: Path):
    gate = row.Gate(name="gradients", result="failed", measured="0", wanted="above 0", why="")
    one = replace(made(), validity=row.Validity(is_valid=False, gates=[gate]))

    (record,) = run(tmp_path, Fake(tmp_path, [one]))

    assert (record["result"], record["error"]) == ("invalid", "gates: gradients")


def test_no_cell_begins_that_would_end_after_the_minutes(tmp_path: Path):
    seconds = iter(range(0, 10_000, 50))  # every look at the clock is 50 s later
    fake = Fake(tmp_path, [made()])

    run(tmp_path, fake, *[CELL, OTHER] * 5, minutes=5, clock=lambda: float(next(seconds)))

    assert len(fake.asked) == 2  # 60 s a cell are expected, then 50; each costs three looks


def test_ctrl_c_keeps_what_is_done_and_nothing_of_the_cell_in_hand(tmp_path: Path):
    fake = Fake(tmp_path, [made()])

    def execute(words: Sequence[str]) -> tuple[int, str]:
        if fake.asked:
            raise KeyboardInterrupt
        return fake(words)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, execute, CELL, OTHER)

    assert matrix.is_complete(matrix.record_path(tmp_path, "cpu x", CELL))
    assert not matrix.record_path(tmp_path, "cpu x", OTHER).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1}'])
def test_a_damaged_record_is_as_none(tmp_path: Path, text: str):
    (tmp_path / "cell.json").write_text(text)

    assert matrix.read(tmp_path / "cell.json") is None


def on_gpu(checkpointing: str, *, pace: float, flops: float, slots: int = 2000) -> Row:
    one = made(
        {
            "settings.gradient_checkpointing": checkpointing,
            "memory.predicted": Predicted(
                allocated_bytes=int(6.3 * GIB),
                reserved_bytes=7 * GIB,
                process_bytes=int(7.6 * GIB),
                host_bytes=GIB,
            ),
        },
        gpu=True,
        pace=pace,
    )
    slots_per_s = slots * 6 / sum(one.time.steps_s)
    rates = replace(one.rates, slots_per_s=slots_per_s, hardware_flops_per_s=flops * slots_per_s)
    return replace(one, work=replace(one.work, slots=6 * slots), rates=rates)


def reported(tmp_path: Path, *rows: Row) -> str:
    for number, one in enumerate(rows):
        keep(tmp_path / "gpu" / f"bench-{number}", [one])
        name(tmp_path, f"cell-{number}", f"gpu/bench-{number}")
    return report.write(tmp_path, tmp_path)


def name(results: Path, cell: str, folder: str) -> None:
    """Record the folder as a cell's result."""
    path = results / "gpu" / matrix.CELLS / f"{cell}.json"
    path.parent.mkdir(exist_ok=True)
    record = {"schema": 1, "cell": {"vram_cap_gib": None}, "result": "measured", "folder": folder}
    path.write_text(json.dumps(record))


def test_the_report_holds_the_estimator_against_every_row(tmp_path: Path):
    told = reported(tmp_path, on_gpu("standard", pace=1.0, flops=6.0))

    assert "| 6.0 GiB | 6.3 GiB | +5.0 % | 8.0 GiB | 7.6 GiB | -5.0 % |" in told
    assert "allocated: 1 points, median error 5.0 %, largest 5.0 %" in told
    assert (tmp_path / report.FILE).read_text("utf-8") == told


def test_the_report_holds_the_gain_against_what_flops_predict(tmp_path: Path):
    told = reported(
        tmp_path,
        on_gpu("standard", pace=1.0, flops=6.0),
        on_gpu("none", pace=1.25, flops=4.0),
    )

    line = next(one for one in told.splitlines() if "recompute none" in one and "1.50×" in one)
    assert line.endswith("| n/a | 1.50× | 1.24× | n/a |")


def test_a_gain_is_predicted_where_the_card_is_known(tmp_path: Path):
    rows = [on_gpu("standard", pace=1.0, flops=6.0), on_gpu("none", pace=1.25, flops=4.0)]

    told = reported(tmp_path, *map(known, rows))

    line = next(one for one in told.splitlines() if "recompute none" in one and "1.50×" in one)
    predicted, by_flops, measured, off = (cell.strip() for cell in line.split("|")[5:9])
    assert (by_flops, measured) == ("1.50×", "1.24×")
    times = float(predicted.removesuffix("×"))
    assert 1 < times < 1.5
    assert float(off.removesuffix(" %")) == pytest.approx(100 * (1.243 / times - 1), abs=1)


def known(one: Row) -> Row:
    """The row as if of a known base on a known card."""
    base = replace(one.identity.base, name="synthetic:qwen2.5-7b")
    card = replace(one.identity.gpu, name="NVIDIA GeForce RTX 4090", memory_bytes=24 * GIB)
    return replace(one, identity=replace(one.identity, base=base, gpu=card))


def test_of_two_points_of_one_setting_the_newer_speaks(tmp_path: Path):
    rows = [
        on_gpu("standard", pace=1.0, flops=6.0),
        on_gpu("none", pace=1.25, flops=4.0),
        on_gpu("standard", pace=1.25, flops=6.0),
    ]
    times = [replace(r, identity=replace(r.identity, time_s=2e9 - n)) for n, r in enumerate(rows)]

    told = reported(tmp_path, *times)

    assert "| 1.24× |" in told
    assert told.count("recompute none | n/a") == 1


def test_what_an_interrupted_cell_left_is_not_in_the_report(tmp_path: Path):
    keep(tmp_path / "gpu" / "left-over", [on_gpu("standard", pace=1.0, flops=6.0)])

    assert "No row has a prediction" in report.write(tmp_path, tmp_path)


def test_points_of_other_tokens_are_no_pair_but_a_curve(tmp_path: Path):
    rows = [
        on_gpu("standard", pace=1.0, flops=6.0, slots=4000),
        on_gpu("standard", pace=1.0, flops=6.0, slots=1000),
    ]

    told = reported(tmp_path, *rows)

    assert "No pair of points that differ in it alone." in told
    lines = [one for one in told.splitlines() if "recompute full |" in one and " ms |" in one]
    assert [line.split("|")[2].strip() for line in lines] == ["1,000", "4,000"]
    assert [line.split("|")[5].strip() for line in lines] == ["25 %", "100 %"]
    assert {path.name for path in tmp_path.glob("host-bound.*")} == {
        "host-bound.svg",
        "host-bound.png",
    }


def test_the_picture_begins_at_zero_both_ways(tmp_path: Path):
    for number, slots in enumerate((1000, 4000)):
        row_of = on_gpu("standard", pace=1.0, flops=6.0, slots=slots)
        keep(tmp_path / "gpu" / f"bench-{number}", [row_of])
    points = results.points(results.benches(tmp_path))

    (axes,) = report.picture(report.host_bound(points)).axes

    assert (axes.get_xlim()[0], axes.get_ylim()[0]) == (0, 0)


def test_the_report_names_cells_without_figures(tmp_path: Path):
    cell = replace(CELL, recipe="qwen2.5-7b", vram_cap_gib=24.0, is_synthetic=True)
    run(tmp_path, Fake(tmp_path, code=4, told=OUT_OF_MEMORY), cell)

    told = report.write(tmp_path / "results", tmp_path)

    line = next(one for one in told.splitlines() if "out of memory" in one)
    assert "| 24 GiB |" in line
    assert "GiB | 24 GiB" in line


def test_a_report_of_nothing_says_so(tmp_path: Path):
    told = report.write(tmp_path, tmp_path)

    assert told.count("No ") == 3
    assert [path.name for path in tmp_path.iterdir()] == [report.FILE]
