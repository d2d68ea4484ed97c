"""The demo's rows and where their words come from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import fastsft.demo
from fastsft.demo import data, messages

SHIPPED = Path(fastsft.demo.__file__).parent


def texts(rows: list[data.Row]) -> set[str]:
    return {row["messages"][1]["content"] for row in rows}


@pytest.mark.parametrize("name", ["train.jsonl", "heldout.jsonl"])
def test_the_generator_writes_the_shipped_rows_byte_for_byte(name: str, tmp_path: Path):
    data.write(tmp_path)

    assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_the_shipped_rows_are_small():
    assert sum(path.stat().st_size for path in SHIPPED.glob("*.jsonl")) < 300_000


def test_no_held_out_message_is_trained_on():
    train, heldout = data.split()

    assert not texts(train) & texts(heldout)
    assert len(texts(train)) == data.TRAIN_ROWS
    assert len(texts(heldout)) == data.HELDOUT_ROWS


def test_a_record_keeps_its_keys_in_order():
    message = messages.draw(Random(0))

    keys = list(json.loads(data.record(message)))
    assert keys == ["language", "intent", "product", "urgent"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_message_names_its_order_and_its_product(language: messages.Language):
    message = messages.draw(Random(3), language=language)

    product = messages.say(message.product, messages.PRODUCTS, language)
    assert str(message.order) in message.text
    assert product in message.text


def test_nothing_in_the_demo_but_pretraining_imports_torch():
    code = (
        "import sys, fastsft.demo.data, fastsft.demo.tiny, fastsft.demo.corpus\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
