"""How does a sweep on Azure stand? By its newest job and its trials, and when it is to be given up."""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.azure.history import Details
from orchestration.azure.jobs import has_ended, is_timeout
from orchestration.azure.standing import final_state, reason_of
from orchestration.sweeps.request import SweepRequest
from orchestration.sweeps.spec import ENDED, Trial, why_given_up


def standing(details: Details, trials: Sequence[Trial], request: SweepRequest) -> tuple[str, str]:
    """Our word for how a sweep stands, and why. details: of its newest job."""
    state = final_state(details)
    if is_timeout(details.error) and has_ended(details.status):
        done = sum(trial.state in ENDED for trial in trials)
        return "completed", f"Its time was up after {done} of {request.planned} trials."
    failed = reasons_to_give_up(trials, request)
    if has_ended(details.status) and failed:
        return "failed", why_given_up(failed, request.planned)
    return state, reason_of(details)


def reasons_to_give_up(trials: Sequence[Trial], request: SweepRequest) -> list[str]:
    """Why trials failed, where more failed than may, or all; else nothing."""
    failed = [trial.reason for trial in trials if trial.state == "failed"]
    too_many = len(failed) > request.most_failed * request.planned or len(failed) == request.planned
    return failed if too_many else []
