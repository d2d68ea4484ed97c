"""llama.cpp's child: what it says of a file, ids, logits, and what becomes of a crash."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import gguf_files
import numpy as np
import pytest

from fastsft.errors import ExportError
from fastsft.export import llamacpp
from fastsft.export.llamacpp import LlamaModel

if llamacpp.installed() is None:
    pytest.skip("needs the extra gguf", allow_module_level=True)

TEXT = "Is it <s> so?"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_files.tiny(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[LlamaModel]:
    with llamacpp.opened(path, context=512) as opened:
        yield opened


def ids_of(model: LlamaModel, length: int) -> list[int]:
    return [gguf_files.BOS, *(3 + (7 * n) % 256 for n in range(length - 1))]


def test_a_file_is_described_by_its_vocabulary(model: LlamaModel):
    told = model.describe()

    assert told.architecture == "llama"
    assert (told.n_vocab, told.bos_id, told.eos_id) == (259, gguf_files.BOS, gguf_files.EOS)
    assert (told.add_bos, told.add_eos, told.eog_ids) == (True, False, (gguf_files.EOS,))
    assert (told.eot_id, told.pad_id) == (None, None)
    assert told.chat_template == "{{ messages }}"


def test_special_tokens_are_read_from_text_only_when_asked(model: LlamaModel):
    (read,) = model.tokenize([TEXT], add_special=True)
    (typed,) = model.tokenize([TEXT], add_special=False, parse_special=False)

    assert read.count(gguf_files.BOS) == 2
    assert gguf_files.BOS not in typed


def test_the_pieces_of_a_text_are_its_bytes(model: LlamaModel):
    (ids,) = model.tokenize(["né中🤷"], add_special=False)

    assert b"".join(model.pieces(ids)) == "né中🤷".encode()


def test_logits_of_a_long_sequence_are_those_of_its_beginning(model: LlamaModel):
    ids = ids_of(model, 300)  # three batches

    rows = model.logits(ids)

    assert rows.shape == (300, 259)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows[:140], model.logits(ids[:140]), atol=1e-3)


def test_the_greedy_continuation_follows_the_logits(model: LlamaModel):
    ids = ids_of(model, 20)

    found = model.greedy(ids, max_tokens=5, stop_ids=[])

    rows = model.logits([*ids, *found])
    assert found == rows[19:24].argmax(axis=1).tolist()


def test_the_greedy_continuation_ends_with_the_stop_token(model: LlamaModel):
    ids = ids_of(model, 20)
    free = model.greedy(ids, max_tokens=5, stop_ids=[])

    assert model.greedy(ids, max_tokens=5, stop_ids=[free[2]]) == free[: free.index(free[2]) + 1]


def test_a_lora_gives_the_logits_of_the_merged_file(path: Path, tmp_path: Path):
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((4, 256), (256, 4)))
    name = "blk.1.ffn_up.weight"
    b = np.concatenate([b, b])  # the rows of the feed-forward
    merged = gguf_files.tiny(tmp_path / "merged.gguf", add={name: b @ a})
    adapter = gguf_files.lora(tmp_path / "lora.gguf", name, a, b)
    ids = [gguf_files.BOS, *range(3, 30)]

    with llamacpp.opened(merged) as opened:
        wanted = opened.logits(ids)
    with llamacpp.opened(path, lora=adapter) as opened:
        found = opened.logits(ids)
    with llamacpp.opened(path) as opened:
        without = opened.logits(ids)

    assert np.abs(found - wanted).max() < 0.02
    assert np.abs(without - wanted).max() > 0.1


def test_a_vocabulary_alone_tokenizes_and_has_no_logits(path: Path):
    with llamacpp.opened(path, vocab_only=True) as opened:
        assert opened.tokenize(["a"], add_special=True) == [[gguf_files.BOS, 3 + ord("a")]]
        with pytest.raises(ExportError, match="opened for its vocabulary only"):
            opened.logits([1])


@pytest.mark.parametrize(
    ("ids", "what"),
    [([], "no token"), ([999], "token 999"), ([1] * 513, "513 tokens do not fit")],
)
def test_ids_that_cannot_be_decoded_are_refused(model: LlamaModel, ids: list[int], what: str):
    with pytest.raises(ExportError, match=what):
        model.logits(ids)

    assert model.logits([1]).shape == (1, 259)


def test_a_file_cut_short_is_refused_in_llama_cpps_words(path: Path, tmp_path: Path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-5000])

    with pytest.raises(ExportError, match="not within the file bounds"), llamacpp.opened(cut):
        pass


def test_a_crash_is_an_error_that_says_how_the_process_ended(path: Path):
    with pytest.raises(ExportError, match="ended by SIGSEGV"), llamacpp.opened(path) as opened:
        os.kill(opened.child.process.pid, signal.SIGSEGV)
        opened.child.process.wait()
        opened.logits([1])


def test_a_missing_package_is_named_with_what_to_type(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp, "installed", lambda: None)

    with pytest.raises(ExportError) as raised, llamacpp.opened(path):
        pass

    assert raised.value.exit_code == 5
    assert "uv sync --extra gguf" in raised.value.hint


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ExportError, match="no such file"), llamacpp.opened(tmp_path / "no.gguf"):
        pass
