"""Synthetic bases: the real shape, written whole, in bounded memory, never mistaken for a model."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fastsft import base, cli, events, launch, recipe_file, shapes, start, synthetic, synthetic_nf4
from fastsft.data import arrays
from fastsft.demo import tiny
from fastsft.demo.markup import Family
from fastsft.errors import DataError, ExportError, RecipeError
from fastsft.export import card, push, record
from fastsft.exporting import Asked, export
from fastsft.recipe import Model
from fastsft.run import Run
from fastsft.shapes import SHIPPED, Shape
from fastsft.weights import Checkpoint, Reader

SMALL = Shape("small", "qwen2", 2, 128, 4, 2, 32, 256, 4096, tied=False, qkv_bias=True)
FAMILIES: dict[Family, Shape] = {
    "qwen2.5": SMALL,
    "llama": replace(SMALL, model_type="llama", qkv_bias=False, tied=True),
    "mistral": replace(SMALL, model_type="mistral", qkv_bias=False, head_dim=64),
}
DEMO = Path(start.__file__).parent / "demo" / "train.jsonl"
HARNESS = Path(__file__).parent / "engine" / "many_runs.py"
STEPS = 3


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "plain"
    return synthetic.write(SMALL, folder, shard_bytes=2**20)


@pytest.fixture(scope="module")
def stored_nf4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(SMALL, tmp_path_factory.mktemp("synthetic") / "nf4", nf4=True)


def model(folder: Path, **settings: object) -> Model:
    return Model.model_validate({"base": str(folder), "family": "qwen2.5", **settings})


def test_every_weight_of_the_shape_is_there(plain: Path):
    tensors = Checkpoint.open(plain).tensors

    assert sum(tensor.count for tensor in tensors.values()) == SMALL.params
    assert shapes.of(json.loads((plain / "config.json").read_text()), name="small") == SMALL
    assert len(list(plain.glob("model-*-of-*.safetensors"))) > 1
    assert all(path.stat().st_size < 1.1 * 2**20 for path in plain.glob("*.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_named_as_the_familys_are(tmp_path: Path, family: Family):
    shape = replace(FAMILIES[family], layers=4, tied=True)

    written = Checkpoint.open(synthetic.write(shape, tmp_path / "base")).tensors

    assert sum(tensor.count for tensor in written.values()) == shape.params
    assert written.keys() == Checkpoint.open(tiny.folder(family)).tensors.keys()


def test_weights_are_random_norms_one_and_biases_zero(plain: Path):
    tensors = Checkpoint.open(plain).tensors
    with Reader() as reader:
        values = {name: reader.floats(tensor) for name, tensor in tensors.items()}

    gate, up = (values[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    assert abs(float(np.std(gate)) - synthetic.DEVIATION) < 1e-3
    assert abs(float(np.mean(gate))) < 1e-3
    assert not np.array_equal(gate, up)
    assert set(values["model.norm.weight"]) == {1.0}
    assert set(values["model.layers.0.self_attn.q_proj.bias"]) == {0.0}


def test_no_two_rows_of_a_table_are_alike_however_long_it_is():
    period = synthetic.BLOCK // 64

    assert all(period % number for number in range(2, int(period**0.5) + 1))
    assert all(shape.vocab < period for shape in SHIPPED.values())
    assert all(shape.hidden % 64 == 0 for shape in SHIPPED.values())


def test_every_shipped_shape_can_be_stored_in_nf4():
    for shape in SHIPPED.values():
        assert all(a * b % 256 == 0 for a, b in shape.linears().values())


def test_writing_it_again_gives_the_same_bytes(plain: Path, tmp_path: Path):
    again = synthetic.write(SMALL, tmp_path / "again", shard_bytes=2**20)

    assert digest(again) == digest(plain)


def test_a_folder_that_is_there_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    heard: list[tuple[int, int]] = []

    first = synthetic.folder_for(SMALL, progress=lambda *told: heard.append(told))
    told = list(heard)
    second = synthetic.folder_for(SMALL, progress=lambda *told: heard.append(told))

    assert first == second
    assert first.parent == tmp_path / "fastsft" / "synthetic"
    assert heard == told
    assert told[-1] == (2 * SMALL.params, 2 * SMALL.params)
    assert synthetic.folder_for(SMALL, nf4=True) != first


def test_what_a_killed_process_left_is_swept(tmp_path: Path):
    left = tmp_path / ".tmp-base"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")

    folder = synthetic.write(SMALL, tmp_path / "base")

    assert not left.exists()
    assert Checkpoint.open(folder).tensors


def test_a_disk_that_is_too_small_is_told_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))

    with pytest.raises(DataError, match=r"needs 2\.\d MiB in .* free\n  hint: free .*another disk"):
        synthetic.write(SMALL, tmp_path / "base")

    assert [path.name for path in tmp_path.iterdir()] == [".base.lock"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)

    with pytest.raises(DataError, match="No space left on device"):
        synthetic.write(SMALL, tmp_path / "base")

    assert [path.name for path in tmp_path.iterdir()] == [".base.lock"]


def test_token_rows_are_all_of_one_length_and_half_trained():
    rows = synthetic.token_rows(4096, rows=3, length=9, seed=1)

    assert rows.lengths.tolist() == [9, 9, 9]
    assert rows.trained_tokens == 15
    ids, labels = rows[1]
    assert labels.tolist() == [-100] * 4 + ids[4:].tolist()
    assert 0 <= ids.min() < ids.max() < 4096
    assert rows.sha256() == synthetic.token_rows(4096, rows=3, length=9, seed=1).sha256()
    assert rows.sha256() != synthetic.token_rows(4096, rows=3, length=9, seed=2).sha256()


def test_four_bit_codes_stand_for_the_plain_folders_weights(plain: Path, stored_nf4: Path):
    """0.09 is what NF4 makes of normal values; it would be above 1 for any other stretch."""
    name = "model.layers.1.mlp.down_proj.weight"
    with Reader() as reader:
        wanted = reader.floats(Checkpoint.open(plain).tensors[name])
    parts = raw(stored_nf4 / "model.safetensors")

    codes = np.frombuffer(parts[name], np.uint8)
    both = np.stack([codes >> 4, codes & 15], axis=1).ravel()
    of_block = np.frombuffer(parts[f"{name}.absmax"], np.uint8)
    nested = np.frombuffer(parts[f"{name}.nested_absmax"], np.float32)
    dynamic = np.frombuffer(parts[f"{name}.nested_quant_map"], np.float32)
    state = json.loads(parts[f"{name}.{synthetic_nf4.STATE}"])
    absmax = dynamic[of_block] * np.repeat(nested, 256)[: of_block.size] + state["nested_offset"]
    seen = np.frombuffer(parts[f"{name}.quant_map"], np.float32)[both] * np.repeat(absmax, 64)

    assert state["shape"] == [128, 256]
    assert 0.05 < np.linalg.norm(seen - wanted) / np.linalg.norm(wanted) < 0.11


def test_it_is_known_as_synthetic_wherever_it_lies(plain: Path, stored_nf4: Path):
    found = base.resolve(model(plain, quantization="none"))
    four = base.resolve(model(stored_nf4))

    assert (found.is_synthetic, found.is_nf4) == (True, False)
    assert (four.is_synthetic, four.is_nf4) == (True, True)
    assert found.weight_bytes == 2 * SMALL.params
    assert four.weight_bytes == (stored_nf4 / "model.safetensors").stat().st_size
    assert not base.resolve(model(Path("tiny:qwen2.5"))).is_synthetic
    for folder in (plain, stored_nf4):
        assert "No model: random weights" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"quantization": "none"},
            'model.quantization: the base is stored with "nf4", the recipe says "none"',
        ),
        (
            {"double_quant": False},
            "model.double_quant: the base is stored with true, the recipe says false",
        ),
    ],
)
def test_four_bits_train_as_they_are_stored_or_not_at_all(
    stored_nf4: Path, settings: dict[str, object], told: str
):
    with pytest.raises(RecipeError, match=told):
        base.resolve(model(stored_nf4, **settings))


def test_a_quantised_base_passes_only_with_the_mark_and_our_own_settings(
    stored_nf4: Path, tmp_path: Path
):
    config = json.loads((stored_nf4 / "config.json").read_text())
    other = {**config["quantization_config"], "llm_int8_skip_modules": ["lm_head"]}

    for changes in ({synthetic.MARK: False}, {"quantization_config": other}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(RecipeError, match="quantised already"):
            base.check_config(tmp_path)


@pytest.fixture(scope="module")
def run(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on the plain base, with an adapter that was not trained."""
    from_exports = str(Path(__file__).parent / "export")
    sys.path.insert(0, from_exports)
    try:
        import finished_run
    finally:
        sys.path.remove(from_exports)
    folder = tmp_path_factory.mktemp("finished")
    return finished_run.make(folder, "tiny-qwen2.5", f"model.base={plain}")


@pytest.mark.parametrize("kind", ["merged", "merged-4bit", "gguf", "gguf-lora"])
def test_what_was_trained_on_it_is_not_exported(run: Run, kind: str):
    with pytest.raises(ExportError) as caught:
        export(run.folder, Asked(kind))

    assert "the base is synthetic: its weights are random" in str(caught.value)
    assert "--allow-synthetic" in caught.value.hint
    assert not run.exports.exists()


def test_an_export_that_is_allowed_says_what_it_is_and_is_never_pushed(run: Run, tmp_path: Path):
    out = tmp_path / "merged"

    export(run.folder, Asked("merged", out=out, check=False, allow_synthetic=True))

    assert record.read(out).is_synthetic
    text = (out / card.NAME).read_text()
    assert "No model: a synthetic base's random weights" in text
    assert '"synthetic-weights"' in text
    assert synthetic.is_synthetic(json.loads((out / "config.json").read_text()))
    with pytest.raises(ExportError, match="is made from a synthetic base"):
        push.push(out, "me/model", private=True, unverified=True)


def test_the_command_line_takes_the_word(run: Run, tmp_path: Path):
    words = ["export", str(run.folder), "--no-verify", "--out", str(tmp_path / "merged")]

    refused = CliRunner().invoke(cli.app, words)
    made = CliRunner().invoke(cli.app, [*words, "--allow-synthetic"])

    assert isinstance(refused.exception, ExportError)
    assert made.exit_code == 0
    assert record.read(tmp_path / "merged").is_synthetic


def test_weights_that_are_stored_in_four_bits_are_never_exported(
    stored_nf4: Path, run: Run, tmp_path: Path
):
    moved = Run(tmp_path / "run")
    moved.folder.mkdir()
    text = run.recipe_path.read_text().replace(str(run.recipe().model.base), str(stored_nf4))
    moved.recipe_path.write_text(text.replace("quantization: none", "quantization: nf4"))
    found = base.resolve(recipe_file.load(str(moved.recipe_path)).model)
    manifest = run.manifest()
    manifest["identity"]["base"] = found.fingerprint
    moved.manifest_path.write_text(json.dumps(manifest))
    moved.adapter.mkdir()

    with pytest.raises(ExportError, match="the base is stored in 4 bits"):
        export(moved.folder, Asked("merged", allow_synthetic=True))


def test_training_on_it_is_told_and_written_down(run: Run):
    recipe = run.recipe()
    prepared = start.prepare_rows(recipe, base.resolve(recipe.model))

    assert start.SYNTHETIC in prepared.report.notes
    assert run.manifest()["base"]["is_synthetic"] is True


@pytest.fixture(scope="module")
def losses(
    request: pytest.FixtureRequest,
    plain: Path,
    stored_nf4: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[events.Step]]:
    """A few steps of one engine in one child: on the base as it is loaded in 4 bits, and stored."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {
        name: synthetic_run(folder, name, f"engine={request.param}", model_base)
        for name, model_base in (("quantised", plain), ("stored", stored_nf4))
    }
    with launch.scratch_folder() as scratch:
        done = subprocess.run(
            [sys.executable, str(HARNESS), *(str(made.folder) for made in runs.values())],
            env=launch.environment(scratch),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: steps(made) for name, made in runs.items()}


@pytest.mark.parametrize(
    "losses",
    ["reference", pytest.param("unsloth", marks=pytest.mark.slow)],
    indirect=True,
    scope="module",
)
class TestTraining:
    """Both engines load what is written, and it trains as any base does."""

    def test_the_loss_is_near_that_of_no_knowledge_and_gradients_are_not_zero(self, losses):
        for told in losses.values():
            assert len(told) == STEPS
            assert abs(told[0].loss - np.log(SMALL.vocab)) < 0.1
            assert all(0 < step.grad_norm < 1e3 for step in told)

    def test_stored_in_four_bits_it_trains_as_if_it_were_loaded_in_four(self, losses):
        pairs = zip(losses["stored"], losses["quantised"], strict=True)
        apart = max(abs(a.loss - b.loss) / b.loss for a, b in pairs)
        norms = zip(losses["stored"], losses["quantised"], strict=True)
        gradients = max(abs(a.grad_norm - b.grad_norm) / b.grad_norm for a, b in norms)

        print(f"loss {apart:.1e} apart, gradient norm {gradients:.1e}")
        assert apart < 1e-5
        assert gradients < 1e-3


def synthetic_run(folder: Path, name: str, engine: str, model_base: Path) -> Run:
    recipe = recipe_file.load(
        "tiny-qwen2.5",
        [
            engine,
            f"model.base={model_base}",
            "model.quantization=nf4",
            f"data.path={DEMO}",
            "train.epochs=null",
            f"train.steps={STEPS}",
            "train.micro_batch_rows=2",
            "train.accumulation_steps=1",
            "eval.share=0",
            "eval.every_steps=null",
        ],
    )
    found = base.resolve(recipe.model)
    made = start.start(recipe, found, start.prepare_rows(recipe, found), runs=folder, name=name)
    rows = synthetic.token_rows(SMALL.vocab, rows=2 * STEPS, length=64)
    made.tokens_path.unlink()
    writer = arrays.Writer(made.tokens_path)
    writer.append(rows.input_ids, rows.trained)
    nothing = np.zeros(0, np.int64)
    writer.finish(rows.index, arrays.Index.of(nothing, nothing, nothing))
    return made


def steps(made: Run) -> list[events.Step]:
    return [event for event, _ in events.read(made.events_path) if isinstance(event, events.Step)]


def digest(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def raw(path: Path) -> dict[str, bytes]:
    """Each tensor's bytes, whatever its type."""
    data = path.read_bytes()
    at = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:at])
    entries.pop("__metadata__")
    return {
        name: data[slice(*(at + place for place in entry["data_offsets"]))]
        for name, entry in entries.items()
    }
