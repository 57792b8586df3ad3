"""Sweeps on Azure ML: each is a sweep job, whose trials have their run folders in that of the sweep.

Trial i of the sweep job NAME is the job NAME_i, whose settings are a tag of NAME: Microsoft's own
HyperDriveRun.get_hyperparameters reads them there. Its run folder is `trials/NAME_i` in that of the sweep.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from azure.ai.ml.sweep import SweepJob

from msggan.commands.options import from_argv
from msggan.config import explicit_values, field_types
from msggan.errors import MsgganError, RunFolderError, UsageError
from msggan.tracking.metrics_log import reports_in
from orchestration.azure.blobs import OnProgress, Store
from orchestration.azure.client import Client
from orchestration.azure.consent import consent_question
from orchestration.azure.data import planned_mode
from orchestration.azure.downloads import download_run, record_copy
from orchestration.azure.estimates import estimate_sweep, estimated, estimated_settings, hours_of_sweep, with_price
from orchestration.azure.following import cancel, detaching, is_transient, not_running, read_log, watch
from orchestration.azure.history import (
    MAX_RUNS,
    Details,
    RunJobs,
    created_at,
    data_of,
    find_jobs,
    get_job,
    is_sweep,
    list_runs,
    number_of,
    read_children,
    read_details,
    state_of,
)
from orchestration.azure.jobs import JobPlan, run_folder
from orchestration.azure.submission import as_plan, planned_job, refuse_if_running, submit
from orchestration.azure.sweep_jobs import (
    JOINT,
    TRIAL_FOLDER,
    build_sweep,
    build_sweep_body,
    refuse_on_azure,
    remaining_trials,
    switch,
    trial_run,
)
from orchestration.copies import is_copy
from orchestration.data_source import DatastorePath, in_datastore
from orchestration.errors import AzureServiceError
from orchestration.settings import Settings
from orchestration.spec import SWEEP_FILE, TRIALS_FOLDER, trial_named
from orchestration.status import ACTIVE_STATES, Download, Question
from orchestration.sweeps.record import SweepRequest, read_request, refuse_another_sweep
from orchestration.sweeps.report import newest_grid, report_result, write_report
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.status import SweepStatus, next_of_sweep, trial_line
from orchestration.sweeps.trials import (
    CANCELLED,
    Trial,
    failures_reason,
    measured,
    reason_to_stop,
    sorted_trials,
    time_limit_reason,
)
from orchestration.targets import SweepTarget

CONCURRENT_SWEEPS = 4
CONCURRENT_READS = 8
STOPPED_EARLY = "Azure ML stopped it early."
TIME_UP = "Time limit reached (--timeout-hours)."
ERROR = "Error: "


@dataclass(frozen=True)
class AzureSweeps(SweepTarget):
    """The sweeps in the client's workspace."""

    client: Client

    name = "azure"

    # --- Submit -------------------------------------------------------------------------------------------------------

    def plan_sweep(self, spec: SweepSpec) -> dict[str, Any]:
        return self._plan(spec, self.client.settings)

    def priced_sweep(self, spec: SweepSpec) -> dict[str, Any]:
        """`plan_sweep` with what it costs, and with the time limits that --max-cost sets. Only reads."""
        refuse_on_azure(spec)
        estimate = estimated(self.client, lambda: estimate_sweep(self.client, spec), spec)
        settings = estimated_settings(self.client.settings, estimate)
        plan = self._plan(replace(spec, timeout_hours=estimate.total_hours), settings)
        self.client.reporter.info(planned_mode(settings))
        return plan | {"cost": estimate.as_json()}

    def _plan(self, spec: SweepSpec, settings: Settings) -> dict[str, Any]:
        refuse_on_azure(spec)
        job = planned_job(settings, self.client.scope, trial_run(spec), _distinguishing_args(spec))
        scope = self.client.scope
        return as_plan(job, job.command(TRIAL_FOLDER), build_sweep_body(job, spec, scope), scope)

    def sweep_question(self, spec: SweepSpec) -> Question | None:
        refuse_on_azure(spec)
        first_words = f"{spec.name} trains {spec.trials} trials, {spec.concurrent} at once, each"
        hours = hours_of_sweep(self.client, spec)
        return consent_question(self.client, first_words, hours, lambda: estimate_sweep(self.client, spec))

    def submit_sweep(self, spec: SweepSpec, *, detach: bool = False) -> SweepStatus:
        """Submits the sweep, or what remains of the one of that name, as a job and follows it to its end.

        Raises MsgganError: there is no new job then, or the error says that there may be one.
        """
        refuse_on_azure(spec)
        before = find_jobs(self.client, spec.name)
        request = self._request_for(spec, before)
        reader = SweepReader(self.client, before)
        trials = reader.trials(reader.details()) if before.jobs else []
        remaining = remaining_trials(spec, trials, len(before.jobs))
        if remaining is None:
            self.client.reporter.info(f"{spec.name} is complete: all trials have ended. Increase --trials for more.")
            return self.report(self._status(before))
        if failed := too_many_failures(trials, request):
            raise UsageError(
                [f"{spec.name}: has failed. {failures_reason(failed, request.planned)}"],
                "Use a larger --max-failed-fraction to run the remaining trials, or another --name to start again.",
            )
        limited = hours_of_sweep(self.client, spec, remaining.trials)
        if self.client.settings.max_cost:
            limited = with_price(self.client, limited)
        # The request is stored before the job is sent, so that every job has one.
        store = self.client.store(self.client.settings.datastore)
        folder = run_folder(store.datastore, spec.name)
        with self.client.errors(f"Writing into {folder.uri}"):
            store.write(f"{folder.path}{SWEEP_FILE}", request.to_bytes())

        def build(plan: JobPlan) -> SweepJob:
            refuse_other_images(plan, before)
            return build_sweep(plan, replace(spec, timeout_hours=limited.total_hours), remaining)

        extra = [*_distinguishing_args(spec), before.next_name]
        run = trial_run(spec)
        jobs = submit(self.client, run, before, build=build, extra=extra, job_hours=limited.job_hours)
        if detach:
            return self._status(jobs)
        reader = SweepReader(self.client, jobs)
        self._follow(reader)
        return self.report(self._status(jobs, reader))

    def _request_for(self, spec: SweepSpec, before: RunJobs) -> SweepRequest:
        """The request to store. Raises `UsageError` if the name is that of a run, another sweep or a running one."""
        request = SweepRequest.of(spec)
        del request.fixed["--data"]  # a path on somebody's machine; the images are compared by their content
        if not before.jobs:
            return request
        if not before.is_sweep:
            raise UsageError([f"--name {spec.name}: is a run, not a sweep."], "Use another --name.")
        existing = SweepReader(self.client, before).request
        refuse_another_sweep(spec, existing.planned, existing.fixed)
        refuse_if_running(before)
        return request

    def _follow(self, reader: SweepReader) -> None:
        """Reports each trial that ends, until the sweep ends. Ctrl-C detaches from it."""
        jobs, info = reader.jobs, self.client.reporter.info
        job = jobs.jobs[-1].name
        reported: set[str] = set()
        with detaching(jobs, f"See its status: msggan-aml status {jobs.run}"):
            request = reader.request
            for details in watch(self.client, job).updates():
                trials = self._report_ended(reader, details, reported)
                failed = too_many_failures(trials, request)
                if failed and not details.has_ended:
                    info(f"Cancelling {jobs.run}. {failures_reason(failed, request.planned)}")
                    cancel(self.client, job)

    def _report_ended(self, reader: SweepReader, newest: Details, reported: set[str]) -> list[Trial]:
        """Reports the trials that have ended since the last poll. Returns all trials, or none if no trial has ended."""
        try:
            children = read_children(self.client, reader.jobs.jobs[-1].name)
            ended = {child.name for child in children if child.has_ended}
            if ended <= reported:
                return []
            trials = reader.trials(newest)
        except AzureServiceError as error:
            if not is_transient(error):
                raise
            return []  # the next poll finds them
        request = reader.request
        for trial in trials:
            if trial.job_id in ended - reported:
                self.client.reporter.info(trial_line(trial, trials, request.planned, request.objective))
        reported |= ended
        return trials

    # --- Its sweeps ---------------------------------------------------------------------------------------------------

    def sweeps(self, limit: int | None = None) -> list[SweepStatus]:
        found, are_more = list_runs(self.client, limit or MAX_RUNS, sweeps=True)
        if are_more and limit is None:
            info = self.client.reporter.info
            info(f"Only the newest {len(found)} sweeps on Azure are listed. Use --limit N for more.")
        with ThreadPoolExecutor(CONCURRENT_SWEEPS) as threads:
            return [status for status in threads.map(self._status_if_readable, found) if status is not None]

    def _status_if_readable(self, jobs: RunJobs) -> SweepStatus | None:
        try:
            return self._status(jobs)
        except MsgganError as error:
            self.client.reporter.info(error.message)
            return None

    def is_sweep(self, name: str) -> bool:
        job = None if trial_named(name) else get_job(self.client, name)
        return job is not None and is_sweep(job)

    def sweep_status(self, name: str) -> SweepStatus:
        return self._status(self._jobs(name))

    def cancel_sweep(self, name: str) -> SweepStatus:
        jobs = self._jobs(name)
        if not jobs.is_active:
            raise not_running(name, self._status(jobs).state)
        cancel(self.client, jobs.jobs[-1].name)
        return self.sweep_status(name)

    def trial_jobs(self, name: str, number: int) -> RunJobs:
        """A trial as a run of its own, which has one job. Raises MsgganError if there is none."""
        reader = SweepReader(self.client, self._jobs(name))
        children = {trial.number: trial.child.name for trial in reader.trial_jobs(reader.details())}
        job = get_job(self.client, children[number]) if number in children else None
        if job is None:
            raise RunFolderError(f"{name}: no trial {number} has started.", f"See its trials: msggan-aml status {name}")
        return RunJobs(f"{name}/{number}", (job,), trial_folder=reader.trial_folder(job.name))

    def download_trial(self, trial: Trial, to: Path, *, force: bool, progress: OnProgress) -> Download:
        store, folder = self._open_trial(trial)
        return download_run(self.client, store, folder, to, force=force, on_progress=progress)

    def _jobs(self, name: str) -> RunJobs:
        jobs = find_jobs(self.client, name)
        if not jobs.is_sweep:
            where = self.client.workspace.workspace_name
            raise RunFolderError(f"No sweep {name!r} in workspace {where}.", "List runs and sweeps: msggan-aml list")
        return jobs

    def _open_trial(self, trial: Trial) -> tuple[Store, str]:
        """The container of a trial's run folder, and its path there."""
        folder = in_datastore(trial.run_dir)
        if folder is None:
            raise RunFolderError(f"{trial.run_dir}: is not a path in a datastore.")
        return self.client.store(folder.datastore), folder.path

    def _status(self, jobs: RunJobs, reader: SweepReader | None = None) -> SweepStatus:
        """The status of a sweep. reader: one that has read trials already."""
        reader = reader or SweepReader(self.client, jobs)
        details, request, job = reader.details(), reader.request, jobs.jobs[-1]
        trials = reader.trials(details)
        state, reason = state_and_reason(details, trials, request)
        report = self._report_path(jobs.run)
        status = SweepStatus(
            name=jobs.run,
            target=self.name,
            state=state,
            run_dir=reader.folder.uri,
            objective=request.objective,
            trials=sorted_trials(trials, request.objective),
            job_id=job.name,
            portal_url=job.studio_url or None,
            reason=reason,
            report=str(report) if report.exists() and is_copy(report.parent) else None,
            data=data_of(job),
            config=request.config,
            space=request.space,
            planned=request.planned,
            created=created_at(jobs.jobs[0]),
            ended=details.ended_at,
        )
        return replace(status, next=next_of_sweep(status, request.args, str(self.client.settings.runs_dir)))

    # --- The report ---------------------------------------------------------------------------------------------------

    def _report_path(self, sweep: str) -> Path:
        return Path(self.client.settings.runs_dir) / sweep / "report.html"

    def report(self, status: SweepStatus) -> SweepStatus:
        """Writes the report into `runs_dir`. On failure, reports the reason and returns the status unchanged."""
        path, info = self._report_path(status.name), self.client.reporter.info
        if path.parent.exists() and not is_copy(path.parent):
            info(f"No report: {path.parent} belongs to a run on this machine. Use another --runs-dir for it.")
            return status
        with report_result(path, info):
            with ThreadPoolExecutor(CONCURRENT_READS) as threads:
                contents = list(threads.map(self._newest_grid, status.trials))
            grids = {trial.number: grid for trial, grid in zip(status.trials, contents, strict=True) if grid}
            record_copy(path.parent, self.client, status.name)
            write_report(path, status, grids)
            return replace(status, report=str(path))
        return status

    def _newest_grid(self, trial: Trial) -> bytes | None:
        """The PNG file of a trial's last sample grid in full resolution, None if there is none yet."""
        store, folder = self._open_trial(trial)
        with self.client.errors(f"Downloading the samples of {trial.name}"):
            newest = newest_grid(blob.name for blob in store.list_blobs(f"{folder}samples/"))
            return None if newest is None else store.read(f"{folder}samples/{newest}")


def _distinguishing_args(sweep: SweepSpec) -> list[str]:
    """What differs between two sweeps, beyond what their trials have in common."""
    values = (sweep.sampling, sweep.sampling_seed, sweep.trials, sweep.objective, sweep.early_stopping)
    return [*sweep.space.as_texts(), *map(str, values)]


def refuse_other_images(plan: JobPlan, before: RunJobs) -> None:
    """Raises `UsageError` if the sweep has used other images: its trials could not be compared."""
    if before.newest is not None and (used := data_of(before.newest)) != plan.data.uri:
        raise UsageError(
            [f"--data {plan.spec.data}: the sweep {before.run} uses other images, {used}."],
            "Use those images to resume it, or another --name.",
        )


# --- Reading a sweep --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialJob:
    """A trial in the run history: its number and settings, its job and that of its sweep."""

    number: int
    child: Details
    parent: Details
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class SweepReader:
    """Reads the sweep of these jobs: the states of its trials from the run history, the rest from their run folders.

    The run folder of a trial that has ended is read once.
    """

    client: Client
    jobs: RunJobs
    _ended: dict[str, Trial] = field(default_factory=dict, init=False, repr=False)  # by job

    @cached_property
    def request(self) -> SweepRequest:
        """The stored request of the sweep. Raises `RunFolderError` if it was removed."""
        store, folder = self.jobs.open_folder(self.client)
        with self.client.errors(f"Reading {SWEEP_FILE} of {self.jobs.run}"):
            content = store.read(f"{folder}{SWEEP_FILE}")
        if content is None:
            raise RunFolderError(f"{self.folder.uri}: has no {SWEEP_FILE}; it was removed.", "Use another --name.")
        return read_request(content, SweepRequest, f"{self.folder.uri}{SWEEP_FILE}")

    @property
    def folder(self) -> DatastorePath:
        store, folder = self.jobs.open_folder(self.client)
        return DatastorePath(store.datastore, folder)

    def trial_folder(self, job: str) -> DatastorePath:
        return replace(self.folder, path=f"{self.folder.path}{TRIALS_FOLDER}/{job}/")

    def details(self) -> Details:
        """The details of the newest job."""
        return read_details(self.client, self.jobs.jobs[-1].name)

    def trials(self, newest: Details) -> list[Trial]:
        """All trials in order of their numbers, which continue from one job of the sweep to the next.

        newest: the details of the sweep's newest job. Raises MsgganError.
        """
        started = list(self.trial_jobs(newest))
        with ThreadPoolExecutor(CONCURRENT_READS) as threads:
            trials = list(threads.map(self._read, started))
        return [self._explained(trial, trials, job, started) for trial, job in zip(trials, started, strict=True)]

    def trial_jobs(self, newest: Details) -> Iterator[TrialJob]:
        """The trials that have started, in order of their numbers. Raises MsgganError."""
        first = 0
        for job in self.jobs.jobs:
            parent = newest if job is self.jobs.newest else read_details(self.client, job.name)
            children = read_children(self.client, job.name)
            for child in children:
                number = first + number_of(job.name, child.name)
                yield TrialJob(number, child, parent, settings_in(parent.tags.get(child.name, ""), self.request.space))
            first += max((number_of(job.name, child.name) + 1 for child in children), default=0)

    def _read(self, job: TrialJob) -> Trial:
        name, completed = job.child.name, job.child.state == "completed"
        if name in self._ended:
            return self._ended[name]
        trial = self._read_folder(job)
        # A completed trial that measured nothing is an error: its metrics may still be on their way.
        if job.child.has_ended and (trial.curve or not completed):
            self._ended[name] = trial
        return trial

    def _read_folder(self, job: TrialJob) -> Trial:
        child, state = job.child, state_of(job.child.status)
        store, folder = self.client.store(self.folder.datastore), self.trial_folder(child.name)
        with self.client.errors(f"Reading the metrics of {child.name}"):
            reports = reports_in(store.read(f"{folder.path}metrics.jsonl") or b"")
        return Trial(
            number=job.number,
            name=f"{self.folder.path.rstrip('/').rpartition('/')[2]}/{job.number}",
            state=state,
            settings=dict(job.settings),
            run_dir=folder.uri,
            reason=self._failure(child) if state in ("failed", "interrupted") else "",
            job_id=child.name,
            **measured(reports, self.request.objective),
        )

    def _failure(self, child: Details) -> str:
        """The errors in the program's log, or else the service's reason."""
        try:
            lines = list(read_log(self.client, child.name))
        except MsgganError:  # the log cannot be read
            lines = []
        errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
        return " ".join(errors or child.reason.split("\n"))

    def _explained(self, trial: Trial, trials: Sequence[Trial], job: TrialJob, started: Sequence[TrialJob]) -> Trial:
        """A trial with what the service does not report: why it was cancelled, or that it measured nothing."""
        if trial.state == "completed" and trial.objective is None:
            return replace(trial, state="failed", reason=f"It never logged {self.request.objective.metric}.")
        if trial.state != "cancelled":
            return trial
        stopping = self.request.early_stopping
        if job.child.timed_out:
            return replace(trial, state="stopped", reason=TIME_UP)
        if stopping.policy != "none":  # whether it stops this trial, by the values read now
            others = [other.values for other in trials if other is not trial and other.curve]
            if reason := reason_to_stop(stopping, self.request.objective, trial.values, others):
                return replace(trial, state="stopped", reason=reason)
        if ended_with_its_sweep(job, started):
            return trial
        return replace(trial, state="stopped", reason=CANCELLED if stopping.policy == "none" else STOPPED_EARLY)


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
    settings: dict[str, Any] = {}
    for name in (text.partition("=")[0] for text in space):
        if name in values:
            kind, value = field_types()[name], values[name]
            settings[name] = value == switch(name, True) if kind is bool else kind(value)
    return settings


def state_and_reason(details: Details, trials: Sequence[Trial], request: SweepRequest) -> tuple[str, str]:
    """The state of a sweep and the reason for it. details: of its newest job."""
    if details.timed_out and details.has_ended:
        return "completed", time_limit_reason(trials, request.planned)
    failed = too_many_failures(trials, request)
    if details.has_ended and failed:
        return "failed", failures_reason(failed, request.planned)
    return details.state, details.reason


def too_many_failures(trials: Sequence[Trial], request: SweepRequest) -> list[str]:
    """Why trials failed, if more failed than --max-failed-fraction allows, or all; else empty."""
    failed = [trial.reason for trial in trials if trial.state == "failed"]
    too_many = len(failed) > request.max_failed_fraction * request.planned or len(failed) == request.planned
    return failed if too_many else []
