"""The errors of orchestration, beyond those of `msggan.errors`."""

from __future__ import annotations

from msggan.errors import MsgganError


class JobFailedError(MsgganError):
    """The run started, and ended without a result."""

    code = "job_failed"
    exit_code = 1


class RehearsalError(MsgganError):
    """A run that was killed and resumed did not end like the uninterrupted one."""

    code = "rehearsal"
    exit_code = 1


class WorkspaceError(MsgganError):
    """No workspace is configured, or the configured one cannot be found."""

    code = "workspace"
    exit_code = 2


class AuthError(MsgganError):
    """Not signed in, or the identity lacks a role that the request requires."""

    code = "auth"
    exit_code = 4


class QuotaError(MsgganError):
    """The quota or the capacity is insufficient."""

    code = "quota"
    exit_code = 5


class AzureServiceError(MsgganError):
    """Azure returned an error that no other class covers. is_missing: the requested resource does not exist."""

    code = "azure"
    exit_code = 1

    def __init__(self, message: str, hint: str = "", *, is_missing: bool = False) -> None:
        super().__init__(message, hint)
        self.is_missing = is_missing


class UnreachableError(AzureServiceError):
    """No response arrived. may_have_happened: the request may have reached Azure and been carried out."""

    code = "unreachable"

    def __init__(self, message: str, hint: str = "", *, may_have_happened: bool) -> None:
        super().__init__(message, hint)
        self.may_have_happened = may_have_happened


class UncertainError(MsgganError):
    """The response to the request that creates a job was lost, and whether the job exists could not be determined."""

    code = "uncertain"
    exit_code = 1
