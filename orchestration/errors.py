"""What can go wrong only when a run is sent somewhere: on top of `msggan.errors`."""

from __future__ import annotations

from msggan.errors import MsgganError
from msggan.program import ReportedError

__all__ = ["JobFailedError", "ReportedError"]


class JobFailedError(MsgganError):
    """The run began and ended without a result."""

    code = "job_failed"
    exit_code = 1
