"""Makes a folder appear whole or not at all: staged beside, synced, renamed.  Knows no weights."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastsft.errors import ExportError
from fastsft.run import sync_folder

_GIB = 1024**3
_FULL = (errno.ENOSPC, errno.EDQUOT)


def refuse_existing(out: Path, *, overwrite: bool, marks: tuple[str, ...]) -> None:
    """Raises ExportError when `out` exists, unless it may be overwritten and looks like an export.

    A folder looks like one when it holds one of `marks`; nothing else is ever deleted.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise ExportError(
            "exists already", where=str(out), hint="pass --overwrite, or --out with a new folder"
        )
    if out.is_symlink() or not any((out / mark).is_file() for mark in marks):
        raise ExportError(
            "is not an exported model, so it is not overwritten",
            where=str(out),
            hint="pass --out with a new folder",
        )


def require_space(folder: Path, needed: int) -> None:
    """Raises ExportError unless `folder`'s disk has `needed` bytes and 1 % free."""
    needed += needed // 100
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"needs {needed / _GIB:.1f} GiB in {folder}/, {free / _GIB:.1f} GiB free",
            where="export",
            hint=f"free {max(needed - free, _GIB / 10) / _GIB:.1f} GiB,"
            " or pass --out on another disk",
        )


@contextmanager
def staged(out: Path, *, keep: Sequence[str] = ()) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block ends well.

    It is empty but for the files of `out` that are named in `keep`, linked, not copied.
    A block that raises leaves nothing; a killed one leaves `.tmp-…`, which the next removes.
    An `out` that exists is replaced.  A second export to the same place is refused.
    """
    staging = out.parent / f".tmp-{out.name}"
    with _locked(staging, out):
        try:
            for name in keep:
                os.link(out / name, staging / name)
            yield staging
            _publish(staging, out)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turns the system's errors in making `out` into an ExportError that says what to do."""
    try:
        yield
    except OSError as error:
        raise _failed(error, out) from error


def write_file(path: Path, data: bytes) -> None:
    """Writes a small file and brings it to the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, path: Path) -> None:
    """Copies a file's bytes and brings them to the disk."""
    shutil.copyfile(source, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _locked(staging: Path, out: Path) -> Iterator[None]:
    """Holds `staging`, made new or emptied, by a lock that dies with the process."""
    staging.mkdir(parents=True, exist_ok=True)
    handle = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock(handle, out)
        if not staging.is_dir() or os.fstat(handle).st_ino != staging.stat().st_ino:
            raise _busy(out)  # another export renamed or removed it in between
        _empty(staging)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, out: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _busy(out) from error
    except OSError as error:  # a file system without locks for folders, such as NFS
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):
            raise


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _publish(staging: Path, out: Path) -> None:
    sync_folder(staging)
    old = out.parent / f".tmp-{out.name}-old"
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        out.rename(old)
    staging.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _busy(out: Path) -> ExportError:
    return ExportError(
        "another export is writing here", where=str(out), hint="wait for it, or pass --out"
    )


def _failed(error: OSError, out: Path) -> ExportError:
    if error.errno in _FULL:
        return ExportError(
            f"the disk of {out.parent}/ is full; nothing was kept",
            where="export",
            hint="free space there, or pass --out on another disk",
        )
    return ExportError(
        f"{error.strerror or error}: {error.filename or out}; nothing was kept",
        where="export",
        hint="check the disk and the permissions of the folders",
    )
