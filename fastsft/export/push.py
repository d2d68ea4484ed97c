"""Uploads an export to the Hugging Face Hub, when asked.  Changes nothing in the export.

The token comes from HF_TOKEN only; it is never printed, saved, or taken as an argument.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from fastsft.base import REPOSITORY
from fastsft.errors import ExportError
from fastsft.export import card, public, record
from fastsft.export.record import Record
from fastsft.weights import read_object

TOKEN = "HF_TOKEN"
WAITS_S = (2.0, 5.0, 15.0, 45.0)
"""Seconds before each new attempt after a network fault or an error of the server's own."""

_BESIDE = re.compile(r"[\w.-]+\.(json|jinja|md|model)|merges\.txt|Modelfile|LICENSE[\w.]*")
_MOST_TEXT_BYTES = 4 * 1024**2
_CURES: Mapping[int, tuple[str, str]] = {
    401: ("does not accept the token", f"set {TOKEN} to a valid token with write access"),
    403: (
        "does not let this token write there",
        "name a repository of your own, or make a token with write access to it",
    ),
    404: (
        "knows no such user or organisation, or hides it from this token",
        "check the name before the slash",
    ),
    409: (
        "says that the repository changed meanwhile",
        "run the same command again once the other upload is done",
    ),
    413: ("finds a file too large", "export with smaller files: --max-shard"),
}

Progress = Callable[[int, int], None]
Result = TypeVar("Result")


def push(
    folder: Path,
    repository: str,
    *,
    private: bool,
    unverified: bool = False,
    progress: Progress | None = None,
    waits_s: Sequence[float] = WAITS_S,
) -> str:
    """Uploads an export that passed the gate as one commit; returns the repository's address.

    `progress` hears the bytes that were read again and found unchanged, and all of them.
    `unverified` uploads an export that did not pass too; its card says so.  Hidden files and
    the mark UNVERIFIED stay here, and names of local folders are left out.

    Raises: ExportError when the folder is no export, is of a synthetic base, did not pass,
    changed since, or cannot be uploaded.
    """
    made = record.read(folder)
    _refuse_synthetic(folder, made)
    verdict = _verdict(folder, unverified=unverified)
    _require_name(repository)
    token = _token()
    _require_unchanged(folder, made, progress)
    contents = {path.name: path for path in _files(folder, made)}
    for path in contents.values():
        _refuse_local_path(path)
    return _Hub(token, waits_s).send(
        repository, {**contents, **_public(folder, made, verdict)}, private=private
    )


def _refuse_synthetic(folder: Path, made: Record) -> None:
    """Random weights are for this machine's measurements; nothing lets them out."""
    if made.is_synthetic:
        raise ExportError(
            "is made from a synthetic base: its weights are random, and it is no model",
            where=str(folder),
            hint="train on a real base, export that, and push it",
        )


def _verdict(folder: Path, *, unverified: bool) -> dict[str, Any] | None:
    path = folder / record.VERDICT
    found = read_object(path) if path.is_file() else None
    passed = found is not None and found.get("result") in ("passed", "passed in part")
    if (passed and not (folder / record.UNVERIFIED).exists()) or unverified:
        return found
    said = {None: "was never checked", "passed in part": "was checked in part only"}
    outcome = None if found is None else found.get("result")
    raise ExportError(
        said.get(outcome, "did not pass its check"),
        where=str(folder),
        hint=f"fastsft verify {folder}; or push it with --unverified",
    )


def _require_name(repository: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise ExportError(
            f"{repository!r} is no name of a repository",
            where="--to",
            hint="write owner/name, with letters, digits, -, _ and .",
        )


def _token() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ExportError(
            "HF_HUB_OFFLINE is set, so nothing is uploaded",
            where="push",
            hint="unset HF_HUB_OFFLINE",
        )
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ExportError(
            f"{TOKEN} is not set",
            where="push",
            hint=f"export {TOKEN}=... with a write token of https://huggingface.co/settings/tokens",
        )
    return token


def _require_unchanged(folder: Path, made: Record, progress: Progress | None) -> None:
    """The weights are still the ones that were checked."""
    total, done = sum(entry.nbytes for entry in made.files.values()), 0

    def heard(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress:
            progress(done, total)

    for name, entry in made.files.items():
        path = folder / name
        if not path.is_file() or record.file_of(path, entry.type, heard) != entry:
            raise ExportError(
                f"{name} is not the file that was exported",
                where=str(folder),
                hint="export again with --overwrite",
            )


def _files(folder: Path, made: Record) -> list[Path]:
    """What is uploaded: the weights and what fastsft writes beside them.

    Raises: ExportError for anything else: it was put there, and may not be meant for others.
    """
    found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    found = [path for path in found if path.name != record.UNVERIFIED]
    for path in found:
        is_ours = path.name in made.files or _BESIDE.fullmatch(path.name)
        if not is_ours or not path.is_file() or path.is_symlink():
            raise ExportError(
                f"holds {path.name}, which is no part of the export",
                where=str(folder),
                hint="move it elsewhere",
            )
    return found


def _refuse_local_path(path: Path) -> None:
    """A file that names the user's home tells strangers about this machine."""
    if path.suffix == ".gguf" or path.stat().st_size > _MOST_TEXT_BYTES:
        return
    home = f"{Path.home()}/"
    if home != "//" and path.name != record.NAME and home.encode() in path.read_bytes():
        raise ExportError(
            f"holds a path of this machine ({home}...)",
            where=str(path),
            hint="remove the path from the file; it is not part of the weights",
        )


def _public(folder: Path, made: Record, verdict: dict[str, Any] | None) -> dict[str, bytes]:
    """The files that are uploaded other than they lie here: the record and the card."""
    shown = json.dumps(asdict(replace(made, base=public.place(made.base))), indent=2) + "\n"
    found = {record.NAME: shown.encode()}
    readme = folder / card.NAME
    if verdict is not None and readme.is_file():
        found[card.NAME] = card.with_verdict(readme.read_text("utf-8"), verdict).encode()
    return found


class _Hub:
    """The Hub, asked again with growing waits where it is worth it."""

    def __init__(self, token: str, waits_s: Sequence[float]) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        self._token = token
        self._waits_s = waits_s
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)

    def send(self, repository: str, contents: Mapping[str, Path | bytes], *, private: bool) -> str:
        """Makes the repository where there is none, and commits everything at once."""
        from huggingface_hub import CommitOperationAdd

        where = f"push to {repository}"
        url = self._ask(
            where, lambda: self._api.create_repo(repository, private=private, exist_ok=True)
        )
        if private and self._ask(where, lambda: self._api.model_info(repository)).private is False:
            raise ExportError(
                "the repository is public",
                where=where,
                hint="name another one, make it private in its settings, or leave out --private",
            )

        def commit() -> object:
            added = [
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                for name, content in contents.items()
            ]
            return self._api.create_commit(repository, added, commit_message="Upload by fastsft")

        self._ask(where, commit)
        self._require_all(where, repository, contents)
        return str(url)

    def _require_all(self, where: str, repository: str, contents: Mapping[str, Any]) -> None:
        """A repository's own .gitignore makes the library leave files out without a word."""
        siblings = self._ask(where, lambda: self._api.model_info(repository)).siblings or []
        missing = sorted(contents.keys() - {sibling.rfilename for sibling in siblings})
        if missing:
            raise ExportError(
                f"the repository did not take {', '.join(missing)}",
                where=where,
                hint="remove the names from its .gitignore and run the same command again",
            )

    def _ask(self, where: str, call: Callable[[], Result]) -> Result:
        """The call's answer, after as many attempts as there are waits."""
        import httpx
        from huggingface_hub.errors import HfHubHTTPError

        for wait_s in (*self._waits_s, None):
            try:
                return call()
            except HfHubHTTPError as error:
                status = error.response.status_code
                if wait_s is None or not (status >= 500 or status in (408, 429)):
                    raise self._refused(where, status, error) from None
            except (httpx.HTTPError, OSError) as error:
                if wait_s is None:
                    raise ExportError(
                        f"the Hub cannot be reached: {self._clean(str(error))}",
                        where=where,
                        hint="check the network and run the same command again; the export stays",
                    ) from None
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _refused(self, where: str, status: int, error: Exception) -> ExportError:
        said = str(getattr(error, "server_message", None) or error)
        what, hint = _CURES.get(
            status, ("gave an error", "run the same command again later; the export stays")
        )
        return ExportError(
            f"the Hub {what} ({status}: {self._clean(said)})", where=where, hint=hint
        )

    def _clean(self, text: str) -> str:
        """One line without the token."""
        return " ".join(text.replace(self._token, "***").split())[:300]
