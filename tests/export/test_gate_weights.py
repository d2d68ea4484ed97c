"""The gate's own arithmetic: what a weight must be, and how far what is stored lies from it."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import TORCH, oracle, round_once, write_pair

from fastsft.errors import ExportError
from fastsft.export.gate.compare import Sums, compared
from fastsft.export.gate.expected import HEAD, Block, Expected, stored
from fastsft.export.gate.gguf_file import UnknownType, open_gguf
from fastsft.weights import Dtype, Reader, widen

NAMES: dict[str, Dtype] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@given(st.lists(st.floats(width=64, min_value=-1e30, max_value=1e30), min_size=1, max_size=40))
@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_values_are_rounded_once(name: str, values: list[float]):
    exact = np.array(values)

    found = widen(stored(exact, NAMES[name]), NAMES[name])

    wanted = round_once(torch.from_numpy(exact), TORCH[name]).float().numpy()
    assert np.array_equal(found, wanted)


def test_bfloat16_is_rounded_once_and_to_even_even_below_the_normal_numbers():
    tie = 1 + 2.0**-8  # between 1 and 1 + 2**-7
    exact = np.array([tie, tie + 2.0**-40, 3 * 2.0**-134, 2.0**-140, -0.0, 2.0**-126])

    found = widen(stored(exact, "BF16"), "BF16")

    assert found.tolist() == [1, 1 + 2.0**-7, 2 * 2.0**-133, 0, 0, 2.0**-126]


@pytest.mark.parametrize(
    ("lora", "has_head"),
    [
        ({"tied": True}, False),
        ({"modules_to_save": ["embed_tokens"]}, True),
        ({"tied": True, "modules_to_save": ["lm_head"]}, True),
        ({"use_dora": True}, True),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}}, True),
    ],
)
def test_what_a_weight_must_be_is_what_peft_has(tmp_path: Path, lora, has_head: bool):
    pair = write_pair(tmp_path, **lora)
    wanted = oracle(pair, torch.float32)

    with Reader() as reader:
        expected = Expected(pair.base, pair.adapter, reader)

        assert {*wanted, *([HEAD] if has_head else [])} == {*expected.names}
        for name, tensor in wanted.items():
            cuts = expected.cuts(name, multiple=4)
            values = np.concatenate([expected.block(name, *cut).values for cut in cuts])
            assert np.allclose(values.reshape(tensor.shape), tensor.numpy(), rtol=2e-7, atol=0)


def block(values: np.ndarray, delta: np.ndarray) -> Block:
    return Block(0, values + delta, values, delta)


def normal(seed: int = 0, size: float = 1.0) -> np.ndarray:
    return size * np.random.default_rng(seed).normal(size=(64, 256))


def test_a_value_on_the_other_side_of_a_tie_is_told_apart_from_a_wrong_one():
    base = np.full((1, 2), 1.0)
    delta = np.full((1, 2), 2.0**-8 + 2.0**-52)  # all but a tie of bfloat16
    below, above = (np.array([x], np.float32).view(np.uint16)[1::2] for x in (1, 1 + 2.0**-7))
    raw = np.concatenate([below, above]).view(np.uint8)

    found = compared(block(base, delta), raw, Kind.BF16)

    assert (found.wrong, found.near_ties) == (0, 1)
    wrong = compared(block(base, delta * 1.5), raw, Kind.BF16)
    assert (wrong.wrong, wrong.near_ties) == (1, 0)


def test_values_that_are_not_finite_are_seen():
    raw = np.full(64 * 256, np.nan, np.float16).view(np.uint8)

    assert not compared(block(normal(), normal(1, 0.01)), raw, Kind.F16).is_finite


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0])
def test_the_share_of_a_small_change_is_found_under_the_rounding(share: float):
    base, delta = normal(), normal(1, 0.02)
    noise = normal(2, 0.08)  # four times the change, as q4_k_m has it
    raw = (base + share * delta + noise).astype(np.float32).view(np.uint8)

    found = sums_of(block(base, delta), raw).arrived()

    assert found is not None
    assert abs(found.share - share) < 6 * found.deviation < 0.5


def sums_of(one: Block, raw: np.ndarray) -> Sums:
    y, w, d, v = (
        x.reshape(-1)
        for x in (raw.view(np.float32).astype(np.float64), one.base, one.delta, one.values)
    )
    return Sums(v.size, w @ w, w @ d, d @ d, y @ w, y @ d, v @ v, ((y - v) ** 2).sum())


def test_a_change_that_is_not_there_has_no_share():
    assert Sums(vv=1.0).arrived() is None


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.number", 7)
    writer.add_array("a.list", ["x", "é"])
    writer.add_tensor("t", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_is_read_as_the_official_package_writes_it(tmp_path: Path):
    file = open_gguf(write_gguf(tmp_path / "a.gguf"))

    assert file.fields["general.architecture"] == "llama"
    assert (file.fields["a.number"], file.fields["a.list"]) == (7, [b"x", "é".encode()])
    tensor = file.tensors["t"]
    assert (tensor.shape, tensor.type) == ((3, 4), Kind.F32)
    assert file.read(tensor, 16, 16).view(np.float32).tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("keep", [0, 3, 20, 60, 150, -40])
def test_a_gguf_that_was_cut_is_damaged(tmp_path: Path, keep: int):
    path = write_gguf(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(ExportError, match="is damaged"):
        open_gguf(path)


def test_a_type_that_the_package_does_not_know_is_named(tmp_path: Path):
    path = write_gguf(tmp_path / "a.gguf")
    raw = path.read_bytes()
    entry = struct.pack("<Q", 1) + b"t" + struct.pack("<IQQ", 2, 4, 3)
    at = raw.index(entry) + len(entry)
    path.write_bytes(raw[:at] + struct.pack("<I", 250) + raw[at + 4 :])

    with pytest.raises(UnknownType, match="does not know t's type, 250"):
        open_gguf(path)
