"""A chat template on a base that has not learnt its tokens is warned about."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastsft.untrained import find
from fastsft.weights import Dtype, header

ROWS, WIDTH = 2000, 16
TOKENS = {"<|start_header_id|>": 1900, "<|end_header_id|>": 1901, "<|eot_id|>": 1902}
CURE = (
    ": answers may never end; use the Instruct checkpoint of the same model, or set data.template "
    "to alpaca or human-assistant, which end a turn with the base's own end-of-text token"
)
DTYPES: tuple[Dtype, ...] = ("F32", "F16", "BF16")


def table() -> NDArray[np.float32]:
    """Embeddings as a trained model has them, rows of about the same length."""
    return np.random.default_rng(1).normal(0, 0.02, (ROWS, WIDTH)).astype(np.float32)


def stored(values: NDArray[np.float32], dtype: Dtype) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(np.float16 if dtype == "F16" else np.float32).tobytes()


def base(folder: Path, values: NDArray[np.float32], dtype: Dtype = "F32") -> Path:
    """A model folder with a norm before and after the embeddings, so that offsets matter."""
    norm = np.ones(WIDTH, np.float32)
    head = header(
        [
            ("model.a.weight", dtype, norm.shape),
            ("model.embed_tokens.weight", dtype, values.shape),
            ("model.norm.weight", dtype, norm.shape),
        ]
    )
    data = b"".join(stored(tensor, dtype) for tensor in (norm, values, norm))
    (folder / "model.safetensors").write_bytes(head + data)
    return folder


def found(folder: Path, *, stop_id: int = 1902, eos_ids: tuple[int, ...] = (1902,)) -> str | None:
    return find(folder, TOKENS, stop_id, eos_ids)


@pytest.mark.parametrize("dtype", DTYPES)
def test_trained_tokens_are_well(tmp_path: Path, dtype: Dtype):
    assert found(base(tmp_path, table(), dtype)) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_near_zero_is_untrained(tmp_path: Path, dtype: Dtype):
    values = table()
    values[1902] *= 0.05

    warning = found(base(tmp_path, values, dtype))

    assert warning == f"the base's embeddings of <|eot_id|> are untrained{CURE}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_all_alike_are_untrained(tmp_path: Path, dtype: Dtype):
    values = table()
    values[1900] = values[1902]

    warning = found(base(tmp_path, values, dtype))

    assert warning == (
        f"the base's embeddings of <|start_header_id|>, <|eot_id|> are untrained{CURE}"
    )


def test_a_short_row_of_a_trained_token_is_well(tmp_path: Path):
    values = table()
    values[1902] *= 0.5

    assert found(base(tmp_path, values)) is None


def test_reserved_rows_do_not_move_the_median(tmp_path: Path):
    values = table()
    values[1500:] = 0

    assert "<|start_header_id|>, <|end_header_id|>, <|eot_id|>" in str(
        found(base(tmp_path, values))
    )


def test_a_token_without_a_row_is_untrained(tmp_path: Path):
    warning = found(base(tmp_path, table()[:1902]))

    assert warning == f"the base's embeddings of <|eot_id|> are untrained{CURE}"


def test_a_base_that_stops_elsewhere_is_told_with_or_without_weights(tmp_path: Path):
    expected = f"the template ends a turn with <|eot_id|>, but this base stops at token 7{CURE}"

    assert found(tmp_path, eos_ids=(7,)) == expected
    assert found(base(tmp_path, table()), eos_ids=(7,)) == expected


def test_both_signs_stand_in_one_warning(tmp_path: Path):
    values = table()
    values[1902] = 0

    warning = str(found(base(tmp_path, values), eos_ids=(1900, 7)))

    assert warning.startswith(
        "the template ends a turn with <|eot_id|>, but this base stops at token 7, "
        "<|start_header_id|>; the base's embeddings of <|eot_id|> are untrained: answers may"
    )


def test_a_base_that_names_no_end_is_judged_by_its_weights_alone(tmp_path: Path):
    assert found(base(tmp_path, table()), eos_ids=()) is None


def test_weights_that_cannot_be_read_say_nothing(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 32)

    assert found(tmp_path) is None


def test_no_special_tokens_need_no_training(tmp_path: Path):
    assert find(base(tmp_path, np.zeros((ROWS, WIDTH), np.float32)), {}, 2, (2,)) is None


def test_values_that_are_no_numbers_are_no_sign(tmp_path: Path):
    values = np.full((ROWS, WIDTH), np.nan, np.float32)

    assert found(base(tmp_path, values)) is None
