"""Packed documents do not see each other, train as they do alone, and resume bit for bit."""

import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crash_harness import Ended, Server
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from fastsft import events
from fastsft.data import arrays, pack
from fastsft.data.arrays import TokenRows
from fastsft.data.encode import Encoded
from fastsft.engine.batches import REAL, Collator, Items, LikeLengths
from fastsft.run import Run

VOCABULARY, PAD = 97, 0
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,  # so that what is attended to matters
}
CONFIGS = {
    "qwen2.5": Qwen2Config(**SMALL),
    "qwen2.5 with a window": Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "mistral with a window": MistralConfig(**SMALL, sliding_window=8),
}
LENGTHS = (30, 5, 1, 17, 24, 40, 2, 13)


@cache
def model(name: str) -> Any:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        CONFIGS[name], attn_implementation="sdpa", dtype=torch.float32
    )
    return made.eval()


@cache
def rows() -> TokenRows:
    noise = np.random.default_rng(0)
    ids = [noise.integers(1, VOCABULARY, length).astype(np.int32) for length in LENGTHS]
    trained = [np.where(noise.random(len(i)) < 0.6, i, -100).astype(np.int32) for i in ids]
    return TokenRows.of(
        (index, Encoded(*pair)) for index, pair in enumerate(zip(ids, trained, strict=True))
    )


def batch_of(items: Items) -> dict[str, Any]:
    """All items in one batch, as the model gets them."""
    batch = Collator(PAD)([items[index] for index in range(len(items))])
    batch.pop(REAL, None)
    return batch


def packed() -> Items:
    items = Items.of(rows(), "packed", budget=64)
    assert 1 < len(items) < len(rows())
    return items


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_document_has_the_logits_that_it_has_alone(name: str):
    items, differences = packed(), []
    batch = batch_of(items)
    del batch["labels"]

    with torch.no_grad():
        found = model(name)(**batch).logits  # [B, T, V]
        for index, sequence in enumerate(found):
            ends = np.cumsum(items[index]["lengths"])
            for row, end in zip(items.bins[index].tolist(), ends, strict=True):
                ids = torch.tensor(rows()[row][0], dtype=torch.long)
                alone = model(name)(input_ids=ids[None]).logits[0]
                differences.append((sequence[end - len(ids) : end] - alone).abs().max())

    assert len(differences) == len(LENGTHS)
    print(f"{name}: {max(differences):.1e} of {found.abs().max():.1f}")
    assert max(differences) <= 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_without_positions_a_document_sees_the_one_before_it(name: str):
    batch = batch_of(packed())
    del batch["labels"]

    with torch.no_grad():
        apart = model(name)(**batch).logits
        together = model(name)(**{**batch, "position_ids": None}).logits

    assert (apart - together).abs().max() > 1e-2


def trained(name: str, batch: dict[str, Any], targets: int) -> tuple[float, dict[str, Any]]:
    """The batch's loss, normalised by `targets` labels, and every gradient."""
    model(name).zero_grad(set_to_none=True)
    loss = model(name)(**batch, num_items_in_batch=targets).loss
    loss.backward()
    return loss.item(), {key: w.grad.clone() for key, w in model(name).named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_of_packed_documents_is_the_step_of_the_same_rows_unpacked(name: str):
    batches = batch_of(Items(rows())), batch_of(packed())
    targets = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]

    loss, gradients = trained(name, batches[0], targets[0])
    packed_loss, packed_gradients = trained(name, batches[1], targets[1])

    assert targets[0] == targets[1] > 50
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    for key, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[key], gradient, rtol=1e-4, atol=1e-6)


def test_padding_behind_a_packed_sequence_is_a_document_of_its_own():
    items = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8], "lengths": [2, 2]},
        {"input_ids": [9], "labels": [-100], "lengths": [1]},
    ]

    batch = Collator(PAD, tells_lengths=True)(items)

    assert "attention_mask" not in batch
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, PAD, PAD, PAD]]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8], [-100, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 0, 1, 2]]
    assert batch["packed_seq_lengths"].tolist() == [2, 2, 1, 3]
    assert batch["packed_seq_lengths"].dtype == torch.int32
    assert batch[REAL].tolist() == [4, 1]


def test_lengths_are_told_to_unsloth_alone():
    assert "packed_seq_lengths" not in batch_of(packed())


def test_held_out_rows_are_padded_beside_packed_ones():
    batch = batch_of(Items(rows()))

    assert batch["attention_mask"].sum(1).tolist() == list(LENGTHS)


def test_packed_items_hold_every_row_once():
    items = packed()
    sequences = [items[index] for index in range(len(items))]
    documents = [
        ids.tolist()
        for sequence in sequences
        for ids in np.split(sequence["input_ids"], np.cumsum(sequence["lengths"])[:-1])
    ]

    assert sorted(documents) == sorted(rows()[index][0].tolist() for index in range(len(LENGTHS)))
    assert items.lengths.tolist() == [len(sequence["input_ids"]) for sequence in sequences]


def test_the_order_of_like_lengths_is_the_seeds_and_the_epochs():
    lengths = np.random.default_rng(0).integers(1, 200, 1001)
    orders = [LikeLengths(lengths, 4, seed=seed) for seed in (1, 1, 2)]
    first = [list(order) for order in orders]
    torch.manual_seed(5)  # a resumed process has drawn other numbers

    again = list(orders[0])
    orders[0].set_epoch(1)

    assert first[0] == first[1] == again
    assert first[0] != first[2] != list(orders[0]) != first[0]
    assert sorted(first[0]) == list(range(1001)) == sorted(orders[0])


# Whole runs of the reference engine, each in a forked child.


@pytest.fixture(scope="module")
def packed_run(
    server: Server, ready: Callable[[str], Run], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Ended]:
    """A finished packed run, and how it ended."""
    folder = tmp_path_factory.mktemp("packed") / "run"
    run = Run(Path(shutil.copytree(ready("packed").folder, folder)))
    ended = server.train(run)
    assert ended.code == 0, run.log_path.read_text()[-3000:]
    return run, ended


def notes(ended: Ended) -> str:
    return "\n".join(note.text for note in ended.all(events.Note))


def test_the_preflight_proves_that_documents_are_kept_apart(packed_run: tuple[Run, Ended]):
    run, ended = packed_run

    assert run.manifest()["resolved"]["batching"] == "packed"
    print(notes(ended))
    assert "packed documents are kept apart: largest logit difference" in notes(ended)


def test_a_packed_run_trains_every_bin_an_epoch(packed_run: tuple[Run, Ended]):
    run, ended = packed_run
    train, _ = arrays.load(run.tokens_path)
    bins = len(pack.pack(train.lengths, run.recipe().data.max_tokens))

    assert 3 < bins < len(train)
    assert len(ended.steps) == 2 * math.ceil(bins / 2)


def test_real_tokens_of_a_packed_run_leave_out_its_padding(packed_run: tuple[Run, Ended]):
    _, ended = packed_run
    rates = [(step.real_tokens_per_s, step.slots_per_s) for step in ended.all(events.Step)]

    assert all(real <= slots for real, slots in rates)
    assert any(real < slots for real, slots in rates)


@pytest.mark.parametrize(
    ("batching", "sabotage"), [("packed", {}), ("grouped", {"cannot_pack": {}})]
)
def test_a_killed_run_resumes_bit_for_bit(
    batching: str, sabotage: dict[str, Any], server: Server, new_run: Callable[..., Run]
):
    whole, killed = new_run("packed", "whole"), new_run("packed", "killed")
    ended = server.train(whole, sabotage)
    assert ended.code == 0

    for step in (2, len(ended.steps) // 2 + 2):  # within the first epoch, and the second
        assert server.train(killed, {**sabotage, "die_before_step": {"step": step}}).code == -9
    assert server.train(killed, sabotage).code == 0

    assert killed.manifest()["resolved"]["batching"] == batching
    assert server.digest(killed) == server.digest(whole)


def test_documents_that_are_not_kept_apart_stop_the_run_before_step_1(
    server: Server, new_run: Callable[..., Run]
):
    ended = server.train(new_run("packed"), {"documents_without_positions": {}})
    failed = ended.only(events.Failed)

    assert (ended.code, failed.error, failed.where) == (4, "TrainError", "train.packing")
    assert failed.what.startswith("packed documents are not kept apart: largest logit difference")
    assert failed.hint == "--set train.packing=false trains each row by itself"
    assert ended.steps == []
