"""The pictures: every process is in them, axes begin at zero, the same rows give the same bytes."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench_rows import made
from matplotlib.colors import to_hex

from fastsft.bench import plots
from fastsft.bench.row import Gate, Row, Summary, Validity
from fastsft.bench.statistics import summarise

ATTACK = "$\\frac{1}{0}$ <b>&\u202e 中文 -->" + "x" * 200
FAILED = Gate(name="gradients", result="failed", measured="0", wanted="above 0", why="it learns")


def invalid(row: Row) -> Row:
    return replace(row, validity=Validity(is_valid=False, gates=[FAILED]))


def bench(*, gpu: bool = False, names: tuple[str, str] = ("unsloth", "reference")) -> list[Row]:
    """A B A B A B, the second repeat of the first arm not valid."""
    rows = [
        made(gpu=gpu, arm=arm, repeat=n + 1, order=2 * n + place + 1, pace=pace + n / 50)
        for n in range(3)
        for place, (arm, pace) in enumerate(zip(names, (1.3, 1.0), strict=True))
    ]
    return [invalid(row) if row.identity.order == 3 else row for row in rows]


ROWS = bench()
SUMMARY: Summary = summarise(ROWS)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    rows = bench(names=(ATTACK, "reference"))
    plots.draw(folder, rows, summarise(rows))
    return folder


def test_three_pictures_are_written_each_in_both_ways(drawn: Path):
    names = {f"{name}.{kind}" for name in plots.NAMES for kind in ("svg", "png")}

    assert {path.name for path in drawn.iterdir()} == names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn.glob("*.png"))


def test_a_picture_is_whole_and_tells_no_date(drawn: Path):
    for path in drawn.glob("*.svg"):
        root = ElementTree.fromstring(path.read_bytes())

        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "dc:date" not in path.read_text()
        assert not {"script", "foreignObject", "image", "a"} & {
            node.tag.rpartition("}")[2] for node in root.iter()
        }


def test_the_same_rows_give_the_same_bytes(drawn: Path, tmp_path: Path):
    with plots.styled():
        plots.save(plots.losses(summarise(bench(names=(ATTACK, "reference")))), tmp_path / "losses")

    assert (tmp_path / "losses.svg").read_bytes() == (drawn / "losses.svg").read_bytes()


def test_every_process_is_a_dot_and_hollow_where_it_is_not_valid():
    figure = plots.tokens(ROWS, SUMMARY)

    for axes, kind in zip(figure.axes, ("trained", "real", "slots"), strict=True):
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        shown = {float(line.get_xdata()[0]): to_hex(line.get_markerfacecolor()) for line in dots}
        rates = {row.identity.order: getattr(row.rates, f"{kind}{RATE[kind]}") for row in ROWS}
        assert sorted(shown) == sorted(rates.values())
        assert [value for value in shown if shown[value] == "#ffffff"] == [rates[3]]


RATE = {"trained": "_tokens_per_s", "real": "_tokens_per_s", "slots": "_per_s"}


def test_the_reason_of_a_hollow_dot_is_told():
    assert "unsloth, process 2: gradients" in plots.tokens(ROWS, SUMMARY).get_supxlabel()


def test_the_bar_ends_at_the_median_of_the_valid_rows():
    figure = plots.tokens(ROWS, SUMMARY)

    widths = [bar.get_width() for bar in figure.axes[0].patches[:2]]
    assert widths == [arm.trained_tokens_per_s.median for arm in SUMMARY.arms]


def test_rates_and_memory_begin_at_zero():
    rates, memory = plots.tokens(ROWS, SUMMARY), plots.memory(ROWS, SUMMARY)

    assert [axes.get_xlim()[0] for axes in rates.axes] == [0, 0, 0]
    assert [axes.get_ylim()[0] for axes in memory.axes] == [0, 0]


def test_the_band_lies_about_the_peer_and_nowhere_without_one():
    middle, band = SUMMARY.arms[1].trained_tokens_per_s.median, SUMMARY.aa_band

    span = plots.tokens(ROWS, SUMMARY).axes[0].patches[-1].get_extents()
    axes = plots.tokens(ROWS, SUMMARY).axes[0]
    box = span.transformed(axes.transData.inverted())
    assert (box.x1 - box.x0) == pytest.approx(2 * band * middle, rel=0.2)
    alone = [row for row in ROWS if row.identity.arm == "reference"]
    assert len(plots.tokens(alone, summarise(alone)).axes[0].patches) == 1


@pytest.mark.parametrize("draw", [plots.tokens, plots.memory])
def test_only_a_cpu_picture_says_that_it_speaks_of_the_pipeline(draw):
    gpu = bench(gpu=True)

    assert plots.ONLY_PIPELINE in draw(ROWS, SUMMARY).get_suptitle()
    title = draw(gpu, summarise(gpu)).get_suptitle()
    assert plots.ONLY_PIPELINE not in title
    assert "tiny-qwen2.5 on NVIDIA Example 24" in title


def test_memory_has_the_phases_and_what_is_known():
    gpu = [
        replace(row, memory=replace(row.memory, samples=[(0.0, 2**30, None), (9.0, 2**31, 2**32)]))
        for row in bench(gpu=True)
    ]

    figure = plots.memory(gpu, summarise(gpu))

    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["load, preflight", "train", "end"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "host",
        "GPU, process",
    ]
    host = figure.axes[0].lines[0]
    assert list(host.get_ydata()) == [1, 2]


def test_no_picture_is_made_of_nothing(tmp_path: Path):
    bare = made({"memory.samples": [], "losses": []})

    written = plots.draw(tmp_path, [bare], summarise([bare]))

    assert {path.name for path in written} == {"tokens.svg", "tokens.png"}


def test_the_difference_in_loss_is_the_first_arms_less_the_peers():
    apart = [
        made({"losses": [value + shift for value in (3.0, 2.0, 1.0)]}, arm=arm)
        for arm, shift in (("unsloth", 0.25), ("reference", 0.0))
    ]

    figure = plots.losses(summarise(apart))

    assert list(figure.axes[1].lines[0].get_ydata()) == [0.25, 0.25, 0.25]
    assert figure.axes[1].get_title("left") == "Difference: unsloth less reference"
