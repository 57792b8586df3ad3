"""How do the trials of a sweep on Azure stand? Their states from the run history, their numbers from their folders.

Trial i of the sweep job NAME is the job NAME_i, whose settings are a tag of NAME: that is how Microsoft's own
HyperDriveRun.get_hyperparameters reads them. Its run folder is `trials/NAME_i` in that of the sweep.
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
from orchestration.data_source import DatastorePath
from orchestration.spec import GOES_ON, TRIALS_FOLDER
from orchestration.sweeps.early_stopping import reason_to_stop
from orchestration.sweeps.request import SweepRequest
from orchestration.sweeps.spec import CANCELLED, Trial, reached

READ_AT_ONCE = 8
ENDED_EARLY = "Azure ML ended it early."
TIME_UP = "Its time was up: --timeout-hours."
ERROR = "Error: "


@dataclass(frozen=True)
class TrialJob:
    """A trial as the service tells of it: its number, how its job and that of its sweep stand, and its settings."""

    number: int
    child: Details
    parent: Details
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SweepReader:
    """Reads the trials of one sweep. folder: where the sweep's run folder lies in `store`."""

    history: History
    store: Store
    folder: DatastorePath
    request: SweepRequest

    def trials(self, jobs: RunJobs, newest: Details) -> list[Trial]:
        """All trials in order of their numbers, which go on from one job of the sweep to its next. Raises MsgganError.

        newest: how the sweep's newest job stands.
        """
        begun = list(self.begun(jobs, newest))
        with ThreadPoolExecutor(READ_AT_ONCE) as threads:
            trials = list(threads.map(self._read, begun))
        return [self._judged(trial, trials, one, begun) for trial, one in zip(trials, begun, strict=True)]

    def begun(self, jobs: RunJobs, newest: Details) -> Iterator[TrialJob]:
        """The trials that have begun, in order of their numbers, as the service tells of them. Raises MsgganError."""
        first = 0
        for job in jobs.jobs:
            parent = newest if job is jobs.newest else self.history.details(job.name)
            children = self.history.children(job.name)
            for child in children:
                number = first + number_of(job.name, child.name)
                yield TrialJob(number, child, parent, settings_in(parent.tags.get(child.name, ""), self.request.space))
            first += max((number_of(job.name, child.name) + 1 for child in children), default=0)

    def _read(self, begun: TrialJob) -> Trial:
        number, child = begun.number, begun.child
        place = self.place(child.name)
        with self.history.client.errors(f"Reading how far {child.name} is"):
            reports = reports_in(self.store.read(f"{place.path}metrics.jsonl") or b"")
        state = state_of(child.status)
        return Trial(
            number=number,
            name=f"{self.folder.path.rstrip('/').rpartition('/')[2]}/{number}",
            state=state,
            settings=dict(begun.settings),
            run_dir=place.uri,
            reason=self._why(child) if state in ("failed", "interrupted") else "",
            job_id=child.name,
            **reached(reports, self.request.objective),
        )

    def place(self, child: str) -> DatastorePath:
        """The run folder of a trial."""
        return replace(self.folder, path=f"{self.folder.path.rstrip('/')}/{TRIALS_FOLDER}/{child}/")

    def _why(self, child: Details) -> str:
        """What the program said last of an error, or else what the service says."""
        try:
            url = log_url(self.history.details(child.name), JOB_LOG)
            lines = [] if url is None else LogReader(self.history.client.wait_factor_s).lines(url, final=True)
            said_last = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
        except MsgganError:  # without its log the service's word is all there is
            said_last = []
        return " ".join(said_last or reason_of(child).split("\n"))

    def _judged(self, trial: Trial, trials: Sequence[Trial], one: TrialJob, begun: Sequence[TrialJob]) -> Trial:
        """A trial with what the service does not tell: why it was cancelled, or that it measured nothing."""
        if trial.state == "completed" and trial.objective is None:
            return replace(trial, state="failed", reason=f"It never logged {self.request.objective.metric}.")
        if trial.state != "cancelled":
            return trial
        reason = TIME_UP if one.child.timed_out else self._why_stopped(trial, trials)
        if not reason and not ended_with_its_sweep(one, begun):
            reason = CANCELLED if self.request.early_stopping.policy == "none" else ENDED_EARLY
        return replace(trial, state="stopped", reason=reason) if reason else trial

    def _why_stopped(self, trial: Trial, trials: Sequence[Trial]) -> str:
        """Why the policy ends a trial, as far as its values tell now; empty where it does not."""
        if self.request.early_stopping.policy == "none":
            return ""
        curves = {other.number: [value for _, value in other.curve] for other in trials}
        own = curves.pop(trial.number)
        others = [curve for curve in curves.values() if curve]
        return reason_to_stop(self.request.early_stopping, self.request.objective, own, others)


def ended_with_its_sweep(trial: TrialJob, begun: Sequence[TrialJob]) -> bool:
    """Whether a trial was cancelled because its sweep ended. A sweep that began another trial later had not yet."""
    sweep, ended = trial.parent, trial.child.ended
    if sweep.status != "CancelRequested" and state_of(sweep.status) in (*GOES_ON, "completed"):
        return False
    later = [other for other in begun if other.parent is sweep and (other.child.started or "") > (ended or "")]
    return not (ended and later)


def settings_in(tag: str, space: Sequence[str]) -> dict[str, Any]:
    """The settings that the tag of a trial says, with the fields' own types; {} where it says nothing that is read.

    space: what --over took; what is not in it is not read.
    """
    try:
        told = dict(json.loads(tag))
    except (ValueError, TypeError):
        return {}
    if JOINT in told:
        return explicit_values(from_argv(shlex.split(str(told[JOINT]))))
    names = [text.partition("=")[0] for text in space]
    return {name: _typed(name, told[name]) for name in names if name in told}


def _typed(name: str, value: Any) -> Any:
    kind = field_types()[name]
    return value == switch(name, True) if kind is bool else kind(value)
