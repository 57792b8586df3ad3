"""The trials of a sweep on Azure: their states from the run history, what they measured from their run folders.

Trial i of the sweep job NAME is the job NAME_i, whose settings are a tag of NAME: Microsoft's own
HyperDriveRun.get_hyperparameters reads them there. Its run folder is `trials/NAME_i` in that of the sweep.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from msggan.commands.options import from_argv
from msggan.config import explicit_values, field_types
from msggan.errors import MsgganError
from msggan.tracking.metrics_log import reports_in
from orchestration.azure.blobs import Store
from orchestration.azure.following import JOB_LOG, LogReader, log_url
from orchestration.azure.history import Details, History, RunJobs, number_of, state_of
from orchestration.azure.status import reason_of
from orchestration.azure.sweep_jobs import JOINT, switch
from orchestration.spec import TRIALS_FOLDER, DatastorePath
from orchestration.status import ACTIVE_STATES
from orchestration.sweeps.record import SweepRequest
from orchestration.sweeps.trials import (
    CANCELLED,
    Trial,
    failures_reason,
    measured,
    reason_to_stop,
    time_limit_reason,
)

CONCURRENT_READS = 8
STOPPED_EARLY = "Azure ML stopped it early."
TIME_UP = "Time limit reached (--timeout-hours)."
ERROR = "Error: "


@dataclass(frozen=True)
class TrialJob:
    """A trial in the run history: its number and settings, its job and that of its sweep."""

    number: int
    child: Details
    parent: Details
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SweepReader:
    """Reads the trials of one sweep. folder: the sweep's folder in `store`."""

    history: History
    store: Store
    folder: DatastorePath
    request: SweepRequest

    def trials(self, jobs: RunJobs, newest: Details) -> list[Trial]:
        """All trials in order of their numbers, which continue from one job of the sweep to the next.

        newest: the details of the sweep's newest job. Raises MsgganError.
        """
        started = list(self.trial_jobs(jobs, newest))
        with ThreadPoolExecutor(CONCURRENT_READS) as threads:
            trials = list(threads.map(self._read, started))
        return [self._explained(trial, trials, job, started) for trial, job in zip(trials, started, strict=True)]

    def trial_jobs(self, jobs: RunJobs, newest: Details) -> Iterator[TrialJob]:
        """The trials that have started, in order of their numbers. Raises MsgganError."""
        first = 0
        for job in jobs.jobs:
            parent = newest if job is jobs.newest else self.history.details(job.name)
            children = self.history.children(job.name)
            for child in children:
                number = first + number_of(job.name, child.name)
                yield TrialJob(number, child, parent, settings_in(parent.tags.get(child.name, ""), self.request.space))
            first += max((number_of(job.name, child.name) + 1 for child in children), default=0)

    def _read(self, job: TrialJob) -> Trial:
        number, child = job.number, job.child
        folder = self.run_folder(child.name)
        with self.history.client.errors(f"Reading the metrics of {child.name}"):
            reports = reports_in(self.store.read(f"{folder.path}metrics.jsonl") or b"")
        state = state_of(child.status)
        return Trial(
            number=number,
            name=f"{self.folder.path.rstrip('/').rpartition('/')[2]}/{number}",
            state=state,
            settings=dict(job.settings),
            run_dir=folder.uri,
            reason=self._why(child) if state in ("failed", "interrupted") else "",
            job_id=child.name,
            **measured(reports, self.request.objective),
        )

    def run_folder(self, child: str) -> DatastorePath:
        """The run folder of a trial."""
        return replace(self.folder, path=f"{self.folder.path.rstrip('/')}/{TRIALS_FOLDER}/{child}/")

    def _why(self, child: Details) -> str:
        """The last error in the program's log, or else the service's reason."""
        try:
            url = log_url(self.history.details(child.name), JOB_LOG)
            lines = [] if url is None else LogReader(self.history.client.wait_factor_s).lines(url, final=True)
            errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
        except MsgganError:  # the log cannot be read
            errors = []
        return " ".join(errors or reason_of(child).split("\n"))

    def _explained(self, trial: Trial, trials: Sequence[Trial], job: TrialJob, started: Sequence[TrialJob]) -> Trial:
        """A trial with what the service does not report: why it was cancelled, or that it measured nothing."""
        if trial.state == "completed" and trial.objective is None:
            return replace(trial, state="failed", reason=f"It never logged {self.request.objective.metric}.")
        if trial.state != "cancelled":
            return trial
        reason = TIME_UP if job.child.timed_out else self._why_stopped(trial, trials)
        if not reason and not ended_with_its_sweep(job, started):
            reason = CANCELLED if self.request.early_stopping.policy == "none" else STOPPED_EARLY
        return replace(trial, state="stopped", reason=reason) if reason else trial

    def _why_stopped(self, trial: Trial, trials: Sequence[Trial]) -> str:
        """Why the policy stops a trial, by the values read now; empty if it does not."""
        if self.request.early_stopping.policy == "none":
            return ""
        curves = {other.number: other.values for other in trials}
        own = curves.pop(trial.number)
        others = [curve for curve in curves.values() if curve]
        return reason_to_stop(self.request.early_stopping, self.request.objective, own, others)


def ended_with_its_sweep(trial: TrialJob, started: Sequence[TrialJob]) -> bool:
    """Whether a trial was cancelled because its sweep ended. If another trial started later, it had not ended."""
    sweep, ended = trial.parent, trial.child.ended
    if sweep.status != "CancelRequested" and state_of(sweep.status) in (*ACTIVE_STATES, "completed"):
        return False
    later = [other for other in started if other.parent is sweep and (other.child.started or "") > (ended or "")]
    return not (ended and later)


def settings_in(tag: str, space: Sequence[str]) -> dict[str, Any]:
    """The settings in the tag of a trial, with the fields' own types; {} if the tag cannot be read.

    space: what --over takes; other names in the tag are ignored.
    """
    try:
        values = dict(json.loads(tag))
    except (ValueError, TypeError):
        return {}
    if JOINT in values:
        return explicit_values(from_argv(shlex.split(str(values[JOINT]))))
    names = [text.partition("=")[0] for text in space]
    return {name: _typed(name, values[name]) for name in names if name in values}


def _typed(name: str, value: Any) -> Any:
    kind = field_types()[name]
    return value == switch(name, True) if kind is bool else kind(value)


# --- The sweep as a whole ---------------------------------------------------------------------------------------------


def state_and_reason(details: Details, trials: Sequence[Trial], request: SweepRequest) -> tuple[str, str]:
    """The state of a sweep and the reason for it. details: of its newest job."""
    state = details.state
    if details.timed_out and details.has_ended:
        return "completed", time_limit_reason(trials, request.planned)
    failed = too_many_failures(trials, request)
    if details.has_ended and failed:
        return "failed", failures_reason(failed, request.planned)
    return state, reason_of(details)


def too_many_failures(trials: Sequence[Trial], request: SweepRequest) -> list[str]:
    """Why trials failed, if more failed than --max-failed-fraction allows, or all; else empty."""
    failed = [trial.reason for trial in trials if trial.state == "failed"]
    too_many = len(failed) > request.max_failed_fraction * request.planned or len(failed) == request.planned
    return failed if too_many else []
