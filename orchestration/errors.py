"""The errors of orchestration, beyond those of `msggan.errors`."""

from __future__ import annotations

from msggan.commands.program import ReportedError
from msggan.errors import MsgganError

__all__ = [
    "AuthError",
    "AzureServiceError",
    "JobFailedError",
    "QuotaError",
    "RefusedError",
    "RehearsalError",
    "ReportedError",
    "UncertainError",
    "UnreachableError",
    "WorkspaceError",
]


class JobFailedError(MsgganError):
    """The run began and ended without a result."""

    code = "job_failed"
    exit_code = 1


class RehearsalError(MsgganError):
    """A run that lost its machine did not end as the one that kept it."""

    code = "rehearsal"
    exit_code = 1


class WorkspaceError(MsgganError):
    """No workspace is configured, or the one that is cannot be found."""

    code = "workspace"
    exit_code = 2


class RefusedError(MsgganError):
    """The plan holds something that cannot or must not be done; nothing was done."""

    code = "refused"
    exit_code = 3


class AuthError(MsgganError):
    """Nobody is signed in, or who is has no role for what was asked."""

    code = "auth"
    exit_code = 4


class QuotaError(MsgganError):
    """The quota or the capacity does not suffice."""

    code = "quota"
    exit_code = 5


class AzureServiceError(MsgganError):
    """Azure answered with an error that none of the others names. is_missing: what was asked for is not there."""

    code = "azure"
    exit_code = 1

    def __init__(self, message: str, hint: str = "", *, is_missing: bool = False) -> None:
        super().__init__(message, hint)
        self.is_missing = is_missing


class UnreachableError(AzureServiceError):
    """No answer came. may_have_happened: the request may have arrived, so that what it asked for may be done."""

    code = "unreachable"

    def __init__(self, message: str, hint: str = "", *, may_have_happened: bool) -> None:
        super().__init__(message, hint)
        self.may_have_happened = may_have_happened


class UncertainError(MsgganError):
    """The answer to the request that begins a job was lost, and whether there is one could not be found out."""

    code = "uncertain"
    exit_code = 1
