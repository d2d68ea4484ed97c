"""What a run measures of itself: tokens, times and work that add up, on a CPU."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from crash_harness import Ended, Server

from fastsft import events, meter
from fastsft.data import arrays
from fastsft.engine import probes
from fastsft.engine.batches import counted
from fastsft.engine.metering import Meter, Work
from fastsft.errors import DeviceError
from fastsft.meter import Tokens
from fastsft.run import Run
from fastsft.shapes import SHIPPED

NewRun = Callable[..., Run]


@pytest.fixture(scope="module")
def ended(
    server: Server, ready: Callable[[str], Run], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Run, Ended]]:
    """Gives a trained run of a variant, and its events."""
    import shutil
    from functools import cache

    @cache
    def train(variant: str) -> tuple[Run, Ended]:
        folder = tmp_path_factory.mktemp("metering") / variant
        run = Run(Path(shutil.copytree(ready(variant).folder, folder)))
        return run, server.train(run)

    return train


def test_a_run_ends_with_what_it_measured(ended: Callable[[str], tuple[Run, Ended]]):
    _, told = ended("short")

    assert [event.kind for event in told.events[-2:]] == ["measured", "finished"]
    measured = told.only(events.Measured)
    assert {"import", "load", "matmul", "preflight", "first_step", "train", "save", "eval"} == set(
        measured.phases_s
    )
    assert all(seconds >= 0 for seconds in measured.phases_s.values())
    assert measured.vram == {}, "nothing is known of a GPU that is not there"
    assert measured.pinned_bytes is None
    assert measured.adapter_norm > 0
    assert measured.matmul_flops_per_s > 1e8


def test_the_steps_add_up_to_the_whole(ended: Callable[[str], tuple[Run, Ended]]):
    _, told = ended("short")
    measured, steps = told.only(events.Measured), told.all(events.Step)

    assert measured.phases_s["train"] == pytest.approx(sum(step.seconds for step in steps))
    assert measured.phases_s["first_step"] == pytest.approx(steps[0].seconds)
    spent, ours = sum(s.seconds for s in steps), sum(s.overhead_s for s in steps)
    assert measured.overhead_share == pytest.approx(ours / spent)
    assert all(0 < step.overhead_s < step.seconds for step in steps)


def test_the_rates_are_of_the_steps_after_the_first(ended: Callable[[str], tuple[Run, Ended]]):
    _, told = ended("short")
    measured, steady = told.only(events.Measured), told.all(events.Step)[1:]

    seconds = sum(step.seconds for step in steady)
    for kind in ("trained_tokens", "real_tokens", "slots"):
        count = sum(getattr(step, kind) for step in steady)
        assert getattr(measured, f"{kind}_per_s") == pytest.approx(count / seconds)


def test_evaluating_and_saving_are_in_no_step(ended: Callable[[str], tuple[Run, Ended]]):
    _, told = ended("short")
    steps, measured = told.all(events.Step), told.only(events.Measured)

    between = steps[-1].time_s - steps[0].time_s  # eval and save after step 2 are in between
    assert sum(step.seconds for step in steps[1:]) < between
    assert measured.phases_s["save"] >= sum(saved.seconds for saved in told.all(events.Saved))


@pytest.mark.parametrize("variant", ["packed", "short"])
def test_the_tokens_of_the_steps_are_those_of_the_data(
    ended: Callable[[str], tuple[Run, Ended]], variant: str
):
    run, told = ended(variant)
    steps, (rows, _) = told.all(events.Step), arrays.load(run.tokens_path)
    pairs = [n * (n + 1) // 2 for n in rows.lengths]

    assert all(step.trained_tokens <= step.real_tokens <= step.slots for step in steps)
    if variant == "packed":  # two whole epochs
        assert sum(step.documents for step in steps) == 2 * len(rows)
        assert sum(step.real_tokens for step in steps) == 2 * int(rows.lengths.sum())
        assert sum(step.attention_pairs for step in steps) == 2 * sum(pairs)
    else:
        assert [step.documents for step in steps] == [4] * 4
        assert [step.micro_batches for step in steps] == [2] * 4


def test_a_resumed_run_measures_its_own_process_and_the_whole_order(
    server: Server, new_run: NewRun, ended: Callable[[str], tuple[Run, Ended]]
):
    run = new_run("short")
    assert server.train(run, {"die_before_step": {"step": 3}}).code < 0

    told = server.train(run)

    assert told.steps == [3, 4]
    measured = told.only(events.Measured)
    assert measured.phases_s["train"] == pytest.approx(
        sum(step.seconds for step in told.all(events.Step))
    )
    assert measured.order_hash == ended("short")[1].only(events.Measured).order_hash


# The counts, against attention itself.


def seen(documents: Sequence[int]) -> np.ndarray:
    """Which positions a packed sequence's positions may attend to  # [T, T]."""
    of = np.repeat(np.arange(len(documents)), documents)
    return np.tril(of[:, None] == of[None])


def test_pairs_of_packed_documents_are_those_that_attention_may_see():
    documents, padding, width = (5, 1, 7), 3, 16
    positions = np.concatenate([np.arange(n) for n in (*documents, padding)])[None]
    labels = np.full((1, width), -100)
    labels[0, 2:4] = 1

    found = counted(labels, np.array([width - padding]), positions)

    assert found == Tokens(
        trained=2,
        real=13,
        slots=16,
        documents=3,
        pairs=int(seen(documents).sum()),
        computed_pairs=int(seen((*documents, padding)).sum()),
    )


def test_pairs_of_padded_rows_leave_the_padding_out():
    labels = np.full((3, 6), 1)

    found = counted(labels, np.array([6, 2, 0]), None)

    assert (found.documents, found.real, found.slots) == (2, 8, 18)
    assert found.pairs == int(seen([6]).sum() + seen([2]).sum())
    assert found.computed_pairs == 3 * int(seen([6]).sum())
    assert found.trained == 15, "the first position of a row has nothing before it"


# The meter, on a clock of its own.


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_and_steps_leave_out_what_is_done_apart():
    clock = Clock()
    found = Meter(clock)
    found.imported_since(97.0)
    clock.now += 4
    with found.apart("matmul"):
        clock.now += 1
    found.enter("preflight")
    clock.now += 2
    found.enter("first_step")
    clock.now += 8
    first = found.lap(Tokens(1))
    with found.apart("eval"):
        clock.now += 50
    with found.ours():
        clock.now += 0.5
    clock.now += 3
    second = found.lap(Tokens(1))

    assert (first.seconds, second.seconds, second.overhead_s) == (8, 3.5, 0.5)
    assert found.phases_s == {
        "import": 3,
        "matmul": 1,
        "load": 4,
        "preflight": 2,
        "first_step": 8,
        "train": 11.5,
        "eval": 50,
    }


def frozen(name: str, *, skips_untrained: bool) -> Work:
    """A base without an adapter on it."""
    return Work(SHIPPED[name], 0, (), 0, skips_untrained=skips_untrained, is_stock=False)


def test_the_stock_stack_is_not_credited_with_what_it_leaves_out():
    tokens = Tokens(trained=8, real=8, slots=8, documents=1, pairs=36, computed_pairs=36)
    whole = Work(SHIPPED["qwen2.5-0.5b"], 16, ("q_proj",), 24, True, is_stock=False)

    stock = replace(whole, is_stock=True)

    assert stock.model(tokens) == whole.model(tokens)
    assert stock.hardware(tokens) < whole.hardware(tokens)


def test_padding_is_work_for_the_hardware_and_not_for_the_model():
    work = frozen("qwen2.5-0.5b", skips_untrained=False)
    full = Tokens(trained=8, real=8, slots=8, documents=1, pairs=36, computed_pairs=36)
    padded = Tokens(trained=8, real=8, slots=16, documents=1, pairs=36, computed_pairs=136)

    assert work.model(full) == work.model(padded)
    assert work.hardware(padded) > work.hardware(full) >= work.model(full)


def test_a_head_that_skips_untrained_positions_is_not_credited_with_them():
    tokens = Tokens(trained=2, real=8, slots=8, documents=1, pairs=36, computed_pairs=36)
    shape = SHIPPED["qwen2.5-0.5b"]

    skips = frozen(shape.name, skips_untrained=True).hardware(tokens)
    whole = frozen(shape.name, skips_untrained=False).hardware(tokens)

    assert whole - skips == 4 * 6 * shape.head_params


# What the process and torch tell.


def test_the_age_of_a_process_is_its_own():
    began = time.perf_counter()
    stand_in = "from types import SimpleNamespace as S; import sys; "  # torch takes seconds
    stand_in += "sys.modules['torch'] = S(cuda=None, dtype=None, Tensor=None); "
    code = stand_in + "from fastsft.engine.probes import process_age_s as age; print(age())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert 0.01 < float(done.stdout) <= time.perf_counter() - began + 0.02


def test_a_matmul_is_measured_fast_and_draws_no_random_number():
    before, began = torch.get_rng_state(), time.thread_time()

    speed = probes.matmul_flops_per_s(torch.float32)

    assert speed is not None and speed > 1e8
    assert torch.equal(torch.get_rng_state(), before)
    assert time.thread_time() - began < 0.5


def test_a_dtype_that_cannot_be_multiplied_has_no_speed(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("not implemented")

    monkeypatch.setattr(torch, "mm", refuse)

    assert probes.matmul_flops_per_s(torch.float32) is None


def test_the_compiled_graphs_are_those_that_dynamo_counts(monkeypatch: pytest.MonkeyPatch):
    counters = {"stats": {"calls_captured": 9, "unique_graphs": 3}}
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", SimpleNamespace(counters=counters))

    assert probes.graphs_compiled() == 3


@pytest.mark.slow
def test_graphs_that_are_compiled_again_are_counted():
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    compiled = torch.compile(double, backend="eager", dynamic=False)
    before = probes.graphs_compiled()

    counts = []
    for size in (2, 2, 3):
        compiled(torch.ones(size))
        counts.append(probes.graphs_compiled() - before)

    assert counts == [1, 1, 2]


def test_no_graph_is_compiled_where_nobody_has_dynamo(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)

    assert probes.graphs_compiled() == 0
    assert "torch._dynamo.utils" not in sys.modules


def test_the_adapters_norm_is_of_all_its_b():
    model = torch.nn.Module()
    for name, value in (("lora_A", 7.0), ("lora_B", 3.0), ("other_lora_B", 5.0)):
        layer = torch.nn.Linear(1, 1, bias=False)
        layer.weight.data.fill_(value)
        setattr(model, name, torch.nn.ModuleDict({"default": layer}))
    model.again = torch.nn.Module()
    model.again.lora_B = torch.nn.Linear(1, 1, bias=False)
    model.again.lora_B.weight.data.fill_(4.0)

    whole = torch.nn.Module()
    whole.layer = model

    assert probes.adapter_norm(whole) == 5.0
    assert probes.adapter_norm(torch.nn.Linear(1, 1)) is None


# A GPU's side, with torch's answers made up.


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch says of a card of 80 GiB; `peak` is of what it reserved since the last reset."""
    told = SimpleNamespace(peak=0, fraction=None)
    kinds = ("allocated", "active", "reserved")
    answers = {
        "init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "synchronize": lambda: None,
        "memory_stats": lambda: {f"{kind}_bytes.all.peak": told.peak for kind in kinds},
        "host_memory_stats": lambda: {"allocated_bytes.peak": 5, "reserved_bytes.peak": 8},
        "reset_peak_memory_stats": lambda: setattr(told, "peak", 1),
        "set_per_process_memory_fraction": lambda share: setattr(told, "fraction", share),
        "mem_get_info": lambda device=None: (75 * 2**30, 80 * 2**30),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return told


def test_peaks_are_of_each_phase_and_the_runs_own_stays_the_highest(cuda: SimpleNamespace):
    found = Meter(Clock())
    cuda.peak = 30
    found.enter("preflight")
    cuda.peak = 50
    found.enter("first_step")
    cuda.peak = 40
    found.lap(Tokens())
    cuda.peak = 20

    assert found.vram_peak() == 50
    measured = found.measured("", None)
    assert {phase: peaks["reserved"] for phase, peaks in measured.vram.items()} == {
        "load": 30,
        "preflight": 50,
        "first_step": 40,
        "steady": 20,
    }
    assert measured.pinned_bytes == 8
    assert meter.whole(measured.vram.values())["reserved"] == 50


def test_a_capped_card_says_what_a_small_one_would(cuda: SimpleNamespace):
    probes.cap_vram(20)

    assert cuda.fraction == 15 / 80  # the context has taken 5 already
    assert torch.cuda.mem_get_info() == (15 * 2**30, 20 * 2**30)


def test_a_cap_needs_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(DeviceError, match="no GPU"):
        probes.cap_vram(24)


# The engines' own products, on a CPU.

HEAD = """
import json, sys, tempfile, time
from pathlib import Path
if sys.argv[1] == "unsloth":
    import unsloth
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from fastsft import events
from fastsft.engine import sft
from fastsft.engine.session import Session
from fastsft.run import open_run

class Products(TorchDispatchMode):
    rows = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.__name__ == "mm.default" and args[1].shape[1] == VOCABULARY:
            self.rows.add(args[0].shape[0])
        return function(*args, **(kwargs or {}))

run = open_run(Path(sys.argv[2]))
session = Session(run, events.Log(run.events_path))
VOCABULARY = json.loads((session.base.folder / "config.json").read_text())["vocab_size"]
made = sft._trainer_class

def watched(*args):
    class Watched(made(*args)):
        def training_step(self, model, inputs, count=None):
            with Products():
                return super().training_step(model, inputs, count)
    return Watched

sft._trainer_class = watched
session.train(time.perf_counter())
print("rows", *Products.rows)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["unsloth", "reference"])
def test_the_heads_rows_are_what_the_work_says(tmp_path: Path, engine: str):
    from test_engine_parity import make_run

    from fastsft import launch

    run = make_run(tmp_path, "qwen2.5", engine, "train.steps=1", "model.quantization=none")
    with launch.scratch_folder() as scratch:
        done = subprocess.run(
            [sys.executable, "-c", HEAD, engine, str(run.folder)],
            env=launch.environment(scratch),
            capture_output=True,
            text=True,
        )

    assert done.returncode == 0, done.stderr[-3000:]
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("rows")]
    (step,) = [e for e, _ in events.read(run.events_path) if isinstance(e, events.Step)]
    expected = step.trained_tokens if engine == "unsloth" else step.slots
    assert told == [[str(expected)]]
