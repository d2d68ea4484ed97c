"""The error tree: each class knows its exit code, each error its place and its cure."""

from typing import Any


class FastsftError(Exception):
    """Something the user can act on: `where: what`, then a hint with the cure."""

    exit_code = 1

    def __init__(self, what: str, *, hint: str, where: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}\n  hint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        """So that an error survives the way out of a worker process."""
        rest = {key: value for key, value in vars(self).items() if key != "what"}
        return _again, (type(self), self.what, rest)


def _again(cls: type[FastsftError], what: str, rest: dict[str, Any]) -> FastsftError:
    return cls(what, **rest)


class RecipeError(FastsftError):
    """A recipe file, key, value or combination that cannot be honoured."""

    exit_code = 2


class DataError(FastsftError):
    """A row, file or mask that cannot be trained on as it stands."""

    exit_code = 2


class BadRow(DataError):
    """One row that cannot be trained on; `reason` is a short name of its kind for the ledger."""

    def __init__(self, what: str, *, reason: str, hint: str, where: str | None = None) -> None:
        super().__init__(what, hint=hint, where=where)
        self.reason = reason


class DeviceError(FastsftError):
    """No suitable GPU, too little memory, or a package that is missing."""

    exit_code = 3


class TrainError(FastsftError):
    """Training could not start, go on or resume; what was saved stays."""

    exit_code = 4


class OutOfMemory(TrainError):
    """The device ran out of memory."""


class NonFiniteLoss(TrainError):
    """The loss, or a gradient, became NaN or infinite."""


class NothingTrained(TrainError):
    """The run would not change, or did not change, any weight."""


class ExportError(FastsftError):
    """An export that does not fit, or whose result failed its check."""

    exit_code = 5
