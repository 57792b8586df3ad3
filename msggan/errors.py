"""What can go wrong in a way that a person can mend: one family of errors, each with a hint and an exit code."""

from __future__ import annotations

from collections.abc import Sequence


class MsgganError(Exception):
    """Something a person can mend.

    `message` says what failed and on what; `hint` says what to type or change next; `code` is a stable word for
    scripts; `exit_code` is what the process ends with (2: nothing had begun, 1: the run had).
    """

    code = "error"
    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def as_json(self) -> dict[str, dict[str, str]]:
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class UsageError(MsgganError):
    """Options that cannot be used. All complaints come at once: `problems` holds one sentence each."""

    code = "usage"

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        super().__init__("\n".join(problems), hint)
        self.problems = tuple(problems)


class DataError(MsgganError):
    """The images cannot be found, read or used."""

    code = "data"


class RunFolderError(MsgganError):
    """The run folder cannot be written, is full, or belongs to another configuration."""

    code = "run_folder"


class CheckpointError(MsgganError):
    """A file of weights is damaged, foreign, or of another shape."""

    code = "checkpoint"


class FilmError(MsgganError):
    """The frames of a film could not be put together."""

    code = "film"
    exit_code = 1


class ExportError(MsgganError):
    """A trained network could not be written for other programs."""

    code = "export"
    exit_code = 1


class TrainingError(MsgganError):
    """The run had begun and could not go on; what was written stays good."""

    code = "training"
    exit_code = 1


class OutOfMemoryError(MsgganError):
    """The CPU's or a device's memory is too small for what was asked."""

    code = "memory"
    exit_code = 1


class SupersededError(TrainingError):
    """Another process trains this run now."""

    code = "superseded"
