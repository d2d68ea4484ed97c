"""Pushing: only what passed, only what is meant for others, and as often as it takes."""

import json
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import pytest
from fake_hub import Hub

from fastsft.errors import ExportError
from fastsft.export import card, record
from fastsft.export.push import push
from fastsft.export.record import Record

TOKEN = "hf_secretsecretsecret"
NAME = "me/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A small export that passed."""
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "m-q8_0.gguf").write_bytes(b"GGUF" + bytes(100))
    files = {"m-q8_0.gguf": record.file_of(folder / "m-q8_0.gguf", "q8_0")}
    base = "/data/somebody/models/base-7b"
    made = Record("gguf", "run", base, "b" * 64, "a" * 64, "stored", (1,), files, {"fastsft": "1"})
    record.write(folder, made)
    verdict(folder, "passed")
    (folder / "README.md").write_text(f"# m\n\n{card.VERIFICATION}\n\nNot checked yet.\n")
    (folder / "Modelfile").write_text("FROM ./m-q8_0.gguf\n")
    return folder


def verdict(folder: Path, result: str) -> None:
    check = {"name": "tensors", "file": "m", "result": "passed", "measured": "1", "threshold": "1"}
    (folder / record.VERDICT).write_text(json.dumps({"result": result, "checks": [check]}))


def send(export: Path, **options: object) -> str:
    settings = {"private": True, "waits_s": (0.0, 0.0), **options}
    return push(export, NAME, **settings)  # type: ignore[arg-type]


def test_an_export_that_passed_is_uploaded_in_one_commit(hub: Hub, export: Path) -> None:
    heard: list[tuple[int, int]] = []

    url = send(export, progress=lambda done, total: heard.append((done, total)))

    assert url == f"{hub.url}/{NAME}"
    assert hub.commits == 1
    assert hub.private
    assert sorted(hub.files) == sorted(path.name for path in export.iterdir())
    assert hub.files["m-q8_0.gguf"] == (export / "m-q8_0.gguf").read_bytes()
    assert hub.tokens - {""} == {f"Bearer {TOKEN}"}
    assert heard == [(104, 104)]


def test_no_path_of_this_machine_is_uploaded(hub: Hub, export: Path) -> None:
    send(export)

    assert json.loads(hub.files["export.json"])["base"] == "base-7b"
    assert not any(b"somebody" in content for content in hub.files.values())
    assert record.read(export).base == "/data/somebody/models/base-7b"


def test_the_card_says_what_the_gate_found(hub: Hub, export: Path) -> None:
    send(export)

    assert b"**passed** (1 passed)" in hub.files["README.md"]
    assert b"Not checked yet" not in hub.files["README.md"]


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (None, "was never checked"),
        ("failed", "did not pass its check"),
        ("passed in part", "was checked in part only"),
    ],
)
def test_what_did_not_pass_stays_here_unless_told(
    result: str | None, what: str, hub: Hub, export: Path
) -> None:
    (export / record.VERDICT).unlink()
    (export / record.UNVERIFIED).write_text("not yet")
    if result:
        verdict(export, result)

    with pytest.raises(ExportError, match=what) as raised:
        send(export)

    assert "fastsft verify" in raised.value.hint
    assert raised.value.exit_code == 5
    assert hub.asked == []
    assert send(export, unverified=True)
    assert record.UNVERIFIED not in hub.files


def test_weights_that_changed_since_are_refused(hub: Hub, export: Path) -> None:
    (export / "m-q8_0.gguf").write_bytes(b"GGUF" + bytes(99) + b"x")

    with pytest.raises(ExportError, match=r"m-q8_0\.gguf is not the file that was exported"):
        send(export)

    assert hub.asked == []


def test_a_file_that_is_no_part_of_the_export_is_refused(hub: Hub, export: Path) -> None:
    (export / "train.csv").write_text("private")

    with pytest.raises(ExportError, match=r"holds train\.csv"):
        send(export)

    assert hub.asked == []


def test_a_path_of_the_users_home_is_refused(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (export / "config.json").write_text('{"_name_or_path": "/home/somebody/models/x"}')

    with pytest.raises(ExportError, match="holds a path of this machine"):
        send(export)

    assert hub.asked == []


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not an export"):
        send(tmp_path)


def test_faults_of_the_server_are_waited_out(hub: Hub, export: Path) -> None:
    hub.faults = [503, 502]

    assert send(export)

    assert hub.commits == 1
    assert hub.asked.count("/api/repos/create") == 3


def test_a_file_that_the_repository_ignores_is_missed(hub: Hub, export: Path) -> None:
    hub.ignored = ("m-q8_0.gguf",)

    with pytest.raises(ExportError, match=r"the repository did not take m-q8_0\.gguf"):
        send(export)


@pytest.mark.parametrize(
    ("status", "what", "hint"),
    [
        (401, "does not accept the token", "HF_TOKEN"),
        (403, "does not let this token write there", "write access"),
        (404, "no such user or organisation", "before the slash"),
        (429, "gave an error", "later"),
        (500, "gave an error", "later"),
    ],
)
def test_a_refusal_names_its_cure_and_never_the_token(
    status: int, what: str, hint: str, hub: Hub, export: Path
) -> None:
    hub.faults = [status] * 9

    with pytest.raises(ExportError, match=what) as raised:
        send(export)

    assert hint in raised.value.hint
    assert TOKEN not in str(raised.value)
    assert raised.value.exit_code == 5


def test_a_conflict_says_so(hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def conflict(self: HfApi, *args: object, **kwargs: object) -> None:
        hub.faults = [409]
        self.model_info(NAME)

    monkeypatch.setattr(HfApi, "create_commit", conflict)

    with pytest.raises(ExportError, match="changed meanwhile"):
        send(export)


def test_without_a_network_the_export_stays(
    export: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(ExportError, match="cannot be reached") as raised:
        send(export)

    assert "the export stays" in raised.value.hint


def test_a_public_repository_does_not_get_what_is_to_be_private(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_hub, "_reply", _public_reply)

    with pytest.raises(ExportError, match="the repository is public"):
        send(export)

    assert hub.commits == 0


def _public_reply(hub: Hub, path: str, body: bytes) -> object:
    found = {"url": f"{hub.url}/{NAME}", "id": NAME, "private": False}
    hub.commits += "/commit/" in path
    return found


def test_the_token_comes_from_the_environment_only(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")

    with pytest.raises(ExportError, match="HF_TOKEN is not set"):
        send(export)


def test_offline_is_offline(hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set"):
        send(export)

    assert hub.asked == []


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "me/", "https://huggingface.co/me/x"])
def test_a_name_that_is_no_repository_is_refused(name: str, hub: Hub, export: Path) -> None:
    with pytest.raises(ExportError, match="no name of a repository"):
        push(export, name, private=True)
