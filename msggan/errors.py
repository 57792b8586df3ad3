"""The errors that a user can fix, each with a hint and an exit code, and how messages count things."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LISTED = 10


class MsgganError(Exception):
    """An error that a user can fix.

    `message`: what failed, and on what. `hint`: what to type or change next. `code`: a stable identifier for scripts.
    `exit_code`: that of the process (2: nothing had started, 3: the plan is refused, 1: the run had started).
    `may_have_happened`: what failed may have been carried out nevertheless.
    """

    code = "error"
    exit_code = 2
    may_have_happened = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def as_json(self) -> dict[str, dict[str, str]]:
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class UsageError(MsgganError):
    """Options that cannot be used. `problems`: all of them, one sentence each."""

    code = "usage"

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        super().__init__("\n".join(problems), hint)
        self.problems = tuple(problems)


class RefusedError(MsgganError):
    """The plan contains something that cannot or must not be done. Nothing was changed."""

    code = "refused"
    exit_code = 3


class DataError(MsgganError):
    """The images cannot be found, read or used."""

    code = "data"


class RunFolderError(MsgganError):
    """The run folder cannot be written, is full, or has another configuration."""

    code = "run_folder"


class CheckpointError(MsgganError):
    """A file of weights is damaged, of another program, or of another shape."""

    code = "checkpoint"


class FilmError(MsgganError):
    """A film could not be made from its frames."""

    code = "film"
    exit_code = 1


class ExportError(MsgganError):
    """A trained network could not be written for other programs."""

    code = "export"
    exit_code = 1


class TrainingError(MsgganError):
    """A run that had started failed; what was written before stays good."""

    code = "training"
    exit_code = 1


class OutOfMemoryError(MsgganError):
    """The memory of the CPU or of a device is too small for these options."""

    code = "memory"
    exit_code = 1


class SupersededError(TrainingError):
    """Another process is training this run now."""

    code = "superseded"


def plural(count: int, noun: str, verb: str = "", verbs: str = "") -> str:
    """1 image, 2 images; with verbs 1 image is, 2 images are."""
    words = f"{noun} {verb}" if count == 1 else f"{noun}s {verbs}"
    return f"{count} {words}".rstrip()


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The first few of the names, and how many more there are."""
    more = [f"and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
    return separator.join([*names[:MAX_LISTED], *more])
