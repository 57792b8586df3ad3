"""How does a sweep on Azure stand? By its newest job and its trials, and when it is to be given up."""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.azure.history import Details
from orchestration.azure.status import reason_of
from orchestration.sweeps.request import SweepRequest
from orchestration.sweeps.spec import ENDED, Trial, why_given_up


def standing(details: Details, trials: Sequence[Trial], request: SweepRequest) -> tuple[str, str]:
    """Our word for how a sweep stands, and why. details: of its newest job."""
    state = details.state
    if details.timed_out and details.has_ended:
        done = sum(trial.state in ENDED for trial in trials)
        return "completed", f"Its time was up after {done} of {request.planned} trials."
    failed = reasons_to_give_up(trials, request)
    if details.has_ended and failed:
        return "failed", why_given_up(failed, request.planned)
    return state, reason_of(details)


def reasons_to_give_up(trials: Sequence[Trial], request: SweepRequest) -> list[str]:
    """Why trials failed, where more failed than may, or all; else nothing."""
    failed = [trial.reason for trial in trials if trial.state == "failed"]
    too_many = len(failed) > request.most_failed * request.planned or len(failed) == request.planned
    return failed if too_many else []
