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

from msggan.config import field_types, said
from msggan.errors import MsgganError
from msggan.options import from_argv
from msggan.tracking import reports_in
from orchestration.azure.blobs import Store
from orchestration.azure.history import Details, History, number_of
from orchestration.azure.jobs import state_of
from orchestration.azure.logs import JOB_LOG, LogReader, log_in
from orchestration.azure.run_jobs import RunJobs
from orchestration.azure.standing import reason_of
from orchestration.azure.sweep_jobs import JOINT, switch
from orchestration.data_source import DatastorePath
from orchestration.early_stopping import reason_to_stop
from orchestration.sweep import Trial, reached
from orchestration.sweep_report import newest_grid
from orchestration.sweep_request import SweepRequest

READ_AT_ONCE = 8
TRIALS_FOLDER = "trials"
ENDED_EARLY = "Azure ML ended it early."
ERROR = "Error: "


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
        begun = list(self._begun(jobs, newest))
        with ThreadPoolExecutor(READ_AT_ONCE) as threads:
            trials = list(threads.map(lambda one: self._read(*one), begun))
        return [self._judged(trial, trials, was_cancelled=one[1]) for trial, one in zip(trials, begun, strict=True)]

    def _begun(self, jobs: RunJobs, newest: Details) -> Iterator[tuple[int, bool, Details, Mapping[str, Any]]]:
        """Of each trial its number, whether its sweep was cancelled, how it stands and its settings."""
        first = 0
        for job in jobs.jobs:
            parent = newest if job is jobs.newest else self.history.details(job.name)
            children = self.history.children(job.name)
            for child in children:
                number = first + number_of(job.name, child.name)
                told = settings_in(parent.tags.get(child.name, ""), self.request.space)
                yield number, state_of(parent.status) in ("cancelled", "interrupted"), child, told
            first += max((number_of(job.name, child.name) + 1 for child in children), default=0)

    def _read(self, number: int, _: bool, child: Details, settings: Mapping[str, Any]) -> Trial:
        place = self.place(child.name)
        with self.history.client.errors(f"Reading how far {child.name} is"):
            reports = reports_in(self.store.read(f"{place.path}metrics.jsonl") or b"")
        state = state_of(child.status)
        return Trial(
            number=number,
            name=f"{self.folder.path.rstrip('/').rpartition('/')[2]}/{number}",
            state=state,
            settings=dict(settings),
            run_dir=place.uri,
            reason=self._why(child) if state in ("failed", "interrupted") else "",
            job_id=child.name,
            **reached(reports, self.request.objective),
        )

    def place(self, child: str) -> DatastorePath:
        """The run folder of a trial."""
        return replace(self.folder, path=f"{self.folder.path.rstrip('/')}/{TRIALS_FOLDER}/{child}/")

    def newest_grid(self, trial: Trial) -> bytes | None:
        """The PNG file of a trial's last sample grid, in full resolution; None where there is none yet."""
        folder = f"{self.place(str(trial.job_id)).path}samples/"
        with self.history.client.errors(f"Fetching the samples of {trial.name}"):
            newest = newest_grid(blob.name for blob in self.store.walk(folder))
            return None if newest is None else self.store.read(f"{folder}{newest}")

    def _why(self, child: Details) -> str:
        """What the program said last of an error, or else what the service says."""
        try:
            url = log_in(self.history.details(child.name), JOB_LOG)
            lines = [] if url is None else LogReader(self.history.client.wait_factor_s).lines(url, to_the_end=True)
            said_last = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
        except MsgganError:  # without its log the service's word is all there is
            said_last = []
        return " ".join(said_last or reason_of(child).split("\n"))

    def _judged(self, trial: Trial, trials: Sequence[Trial], *, was_cancelled: bool) -> Trial:
        """A trial with what the service does not tell: that it was ended early, or measured nothing."""
        if trial.state == "completed" and trial.objective is None:
            return replace(trial, state="failed", reason=f"It never logged {self.request.objective.metric}.")
        stopping = self.request.early_stopping
        if trial.state != "cancelled" or stopping.policy == "none":
            return trial
        own, *others = ([value for _, value in one.curve] for one in (trial, *_without(trial, trials)))
        reason = reason_to_stop(stopping, self.request.objective, own, [other for other in others if other])
        if reason or not was_cancelled:
            return replace(trial, state="stopped", reason=reason or ENDED_EARLY)
        return trial


def settings_in(tag: str, space: Sequence[str]) -> dict[str, Any]:
    """The settings that the tag of a trial says, with the fields' own types; {} where it says nothing that is read.

    space: what --over took; what is not in it is not read.
    """
    try:
        told = dict(json.loads(tag))
    except (ValueError, TypeError):
        return {}
    if JOINT in told:
        return said(from_argv(shlex.split(str(told[JOINT]))))
    names = [text.partition("=")[0] for text in space]
    return {name: _typed(name, told[name]) for name in names if name in told}


def _typed(name: str, value: Any) -> Any:
    kind = field_types()[name]
    return value == switch(name, True) if kind is bool else kind(value)


def _without(trial: Trial, trials: Sequence[Trial]) -> list[Trial]:
    return [other for other in trials if other is not trial]
