"""Sweeps on Azure ML: each is a sweep job, whose trials have their run folders in that of the sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from azure.ai.ml.sweep import SweepJob

from msggan.commands.program import Terminated, stopped
from msggan.errors import MsgganError, RunFolderError, UsageError
from msggan.runs.files import write_whole
from orchestration.azure.blobs import OnProgress
from orchestration.azure.client import configured_workspace, workspace_scope
from orchestration.azure.downloads import download_run
from orchestration.azure.following import cancel, is_transient, watch
from orchestration.azure.history import (
    Details,
    RunJobs,
    created_at,
    data_of,
    find_jobs,
    get_job,
    is_sweep,
    list_runs,
    portal_url,
)
from orchestration.azure.jobs import DATA_PLACEHOLDER, JobPlan, run_folder
from orchestration.azure.session import Session
from orchestration.azure.status import to_seconds
from orchestration.azure.submission import Submission, planned_job, refuse_if_running
from orchestration.azure.sweep_jobs import (
    TRIAL_FOLDER,
    RemainingTrials,
    build_sweep,
    build_sweep_body,
    refuse_on_azure,
    remaining_trials,
    trial_run,
)
from orchestration.azure.trials import SweepReader, state_and_reason, too_many_failures
from orchestration.copies import COPY_FILE, is_copy
from orchestration.errors import AzureServiceError
from orchestration.spec import SWEEP_FILE, trial_named
from orchestration.status import Download
from orchestration.sweeps.record import SweepRequest, read_request, refuse_another_sweep
from orchestration.sweeps.report import newest_grid, report_result, write_report
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.status import SweepStatus, next_of_sweep, trial_line
from orchestration.sweeps.trials import Trial, failures_reason, sorted_trials

CONCURRENT_REQUESTS = 4


@dataclass(frozen=True)
class AzureSweeps:
    """The sweeps in the workspace of the session's settings."""

    session: Session

    name = "azure"

    # --- Before anything is sent --------------------------------------------------------------------------------------

    def plan_sweep(self, spec: SweepSpec) -> dict[str, Any]:
        """What `submit_sweep` would send for a new sweep. Makes no requests. Raises `UsageError`."""
        refuse_on_azure(spec)
        scope = workspace_scope(configured_workspace(self.session.settings))
        job = planned_job(self.session.settings, trial_run(spec), list(identity_of(spec)))
        body = build_sweep_body(job, spec, scope)
        return {
            "target": self.name,
            "command": trial_run(spec).command(data=DATA_PLACEHOLDER, run_dir=TRIAL_FOLDER),
            "env": body["properties"]["trial"]["environmentVariables"],
            "run_dir": job.run_folder.uri,
            "requests": [{"method": "PUT", "path": f"{scope}/jobs/{job.name}", "body": body}],
        }

    def sweep_question(self, spec: SweepSpec) -> str | None:
        """What the user has to agree to before the first job in this folder: it costs money."""
        refuse_on_azure(spec)
        return self.session.agreement.question(
            f"{spec.name} trains {spec.trials} trials, {spec.concurrent} at once, each"
        )

    # --- The verbs ----------------------------------------------------------------------------------------------------

    def submit_sweep(self, spec: SweepSpec, *, detach: bool = False) -> SweepStatus:
        """Submits the sweep, or what remains of the one of that name, as a job and follows it to its end.

        Raises MsgganError: there is no new job then, or the error says that there may be one.
        """
        refuse_on_azure(spec)
        before = find_jobs(self.session.client, spec.name)
        request = self._request_for(spec, before)
        trials = self._reader(before).trials(before, self._details(before)) if before.jobs else []
        remaining = remaining_trials(spec, trials, len(before.jobs))
        if remaining is None:
            self.session.reporter.info(f"{spec.name} is complete: all trials have ended. Increase --trials for more.")
            return self.report(self._status(before))
        if failed := too_many_failures(trials, request):
            raise UsageError(
                [f"{spec.name}: was given up. {failures_reason(failed, request.planned)}"],
                "Use a larger --max-failed-fraction to run the remaining trials, or another --name to start again.",
            )
        job = self._send(spec, remaining, before, request)
        self.session.agreement.give()
        jobs = RunJobs(spec.name, (*before.jobs, job))
        self.session.reporter.info(f"Submitted job {job.name}: {portal_url(job)}")
        if detach:
            return self._status(jobs)
        self._follow(jobs)
        return self.report(self._status(jobs))

    def sweeps(self) -> list[SweepStatus]:
        """The newest sweeps, the newest first."""
        found, _ = list_runs(self.session.client, sweeps=True)
        if not found:
            return []
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as threads:
            return [status for status in threads.map(self._status_if_readable, found) if status is not None]

    def is_sweep(self, name: str) -> bool:
        job = None if trial_named(name) else get_job(self.session.client, name)
        return job is not None and is_sweep(job)

    def sweep_status(self, name: str) -> SweepStatus:
        """The status of a sweep and its trials. Raises `RunFolderError` if there is none."""
        return self._status(self._jobs(name))

    def cancel_sweep(self, name: str) -> SweepStatus:
        """Stops a sweep and its trials, and waits for its end. Raises `UsageError` if it is not running."""
        jobs = self._jobs(name)
        if not jobs.is_active:
            raise UsageError([f"{name}: is not running but {self._status(jobs).state}."])
        cancel(self.session, jobs.jobs[-1].name)
        return self.sweep_status(name)

    def trial_jobs(self, name: str, number: int) -> RunJobs:
        """A trial as a run of its own, which has one job. Raises MsgganError if there is none."""
        jobs = self._jobs(name)
        reader = self._reader(jobs)
        children = {trial.number: trial.child.name for trial in reader.trial_jobs(jobs, self._details(jobs))}
        job = get_job(self.session.client, children[number]) if number in children else None
        if job is None:
            raise RunFolderError(f"{name}: no trial {number} has started.", f"See its trials: msggan-aml status {name}")
        return RunJobs(f"{name}/{number}", (job,), trial_folder=reader.run_folder(job.name))

    def download_trial(self, trial: Trial, to: Path, *, force: bool, progress: OnProgress) -> Download:
        """Downloads a trial's run folder. Raises MsgganError if it cannot."""
        store, folder = self.session.folder_at(trial.run_dir)
        return download_run(self.session.client, store, folder, to, weights=False, force=force, on_progress=progress)

    # --- Submitting ---------------------------------------------------------------------------------------------------

    def _request_for(self, spec: SweepSpec, before: RunJobs) -> SweepRequest:
        """The request to store. Raises `UsageError` if the name is taken by a run, another sweep or a running one."""
        request = SweepRequest.of(spec)
        del request.fixed["--data"]  # a path on somebody's machine; the images are compared by their content
        if not before.jobs:
            return request
        if not before.is_sweep:
            raise UsageError([f"--name {spec.name}: is a run, not a sweep."], "Use another --name.")
        there = self._request(before)
        refuse_another_sweep(spec, there.planned, there.fixed)
        refuse_if_running(before)
        return request

    def _send(self, spec: SweepSpec, remaining: RemainingTrials, before: RunJobs, request: SweepRequest) -> Any:
        """The sweep's new job. The request is stored before the job is sent: every job has one. Raises MsgganError."""
        store = self.session.store(self.session.settings.datastore)
        folder = run_folder(store.datastore, spec.name)
        with self.session.client.errors(f"Writing into {folder.uri}"):
            store.write(f"{folder.path}{SWEEP_FILE}", request.to_bytes())

        def build(plan: JobPlan) -> SweepJob:
            refuse_other_images(plan, before)
            return build_sweep(plan, spec, remaining)

        extra = [*identity_of(spec), before.next_name]
        return Submission(self.session).send(trial_run(spec), before, build=build, extra=extra)

    # --- Following ----------------------------------------------------------------------------------------------------

    def _follow(self, jobs: RunJobs) -> None:
        """Reports each trial that ends, until the sweep ends. Ctrl-C detaches from it."""
        job = jobs.jobs[-1].name
        reported: set[str] = set()
        try:
            reader = self._reader(jobs)
            request = reader.request
            for details in watch(self.session, job).updates():
                trials = self._report_ended(jobs, reader, details, reported)
                failed = too_many_failures(trials, request)
                if failed and not details.has_ended:
                    self.session.reporter.info(f"{jobs.run} is given up. {failures_reason(failed, request.planned)}")
                    cancel(self.session, job)
        except (KeyboardInterrupt, Terminated) as stop:
            raise stopped(
                type(stop),
                f"Detached: {jobs.run} continues as job {job}.",
                f"See its status: msggan-aml status {jobs.run}. Stop it: msggan-aml cancel {jobs.run}.",
            ) from None
        except MsgganError as error:
            again = f"{jobs.run} continues. See its status: msggan-aml status {jobs.run}"
            error.hint = "\n".join(filter(None, [error.hint, again]))
            raise

    def _report_ended(self, jobs: RunJobs, reader: SweepReader, newest: Details, reported: set[str]) -> list[Trial]:
        """Reports the trials that have ended since the last look. → all trials, or none if no trial has ended."""
        job = jobs.jobs[-1].name
        try:
            ended = {child.name for child in self.session.history.children(job) if child.has_ended}
            if ended <= reported:
                return []
            trials = reader.trials(jobs, newest)
        except AzureServiceError as error:
            if not is_transient(error):
                raise
            return []  # the next look finds them
        request = reader.request
        for trial in trials:
            if trial.job_id in ended - reported:
                self.session.reporter.info(trial_line(trial, trials, request.planned, request.objective))
        reported |= ended
        return trials

    # --- The status ---------------------------------------------------------------------------------------------------

    def _jobs(self, name: str) -> RunJobs:
        jobs = find_jobs(self.session.client, name)
        if not jobs.is_sweep:
            where = self.session.client.workspace.workspace_name
            raise RunFolderError(f"No sweep {name!r} in workspace {where}.", "List runs and sweeps: msggan-aml list")
        return jobs

    def _details(self, jobs: RunJobs) -> Details:
        return self.session.history.details(jobs.jobs[-1].name)

    def _request(self, jobs: RunJobs) -> SweepRequest:
        """The stored request of a sweep. Raises `RunFolderError` if it was removed."""
        store, folder = self.session.folder_of(jobs)
        path = f"{folder.path.rstrip('/')}/{SWEEP_FILE}"
        with self.session.client.errors(f"Reading {SWEEP_FILE} of {jobs.run}"):
            content = store.read(path)
        if content is None:
            raise RunFolderError(f"{folder.uri}: has no {SWEEP_FILE}; it was removed.", "Use another --name.")
        return read_request(content, SweepRequest, f"{folder.uri}{SWEEP_FILE}")

    def _reader(self, jobs: RunJobs) -> SweepReader:
        store, folder = self.session.folder_of(jobs)
        return SweepReader(self.session.history, store, folder, self._request(jobs))

    def _status_if_readable(self, jobs: RunJobs) -> SweepStatus | None:
        """None if the sweep cannot be read, which must not hide the others."""
        try:
            return self._status(jobs)
        except MsgganError as error:
            self.session.reporter.info(error.message)
            return None

    def _status(self, jobs: RunJobs) -> SweepStatus:
        reader, details = self._reader(jobs), self._details(jobs)
        request = reader.request
        trials = reader.trials(jobs, details)
        job = jobs.jobs[-1]
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
            portal_url=portal_url(job),
            reason=reason,
            report=str(report) if report.exists() and is_copy(report.parent) else None,
            data=data_of(job),
            config=request.config,
            space=request.space,
            planned=request.planned,
            created=created_at(jobs.jobs[0]),
            ended=to_seconds(details.ended) if details.has_ended else None,
        )
        return replace(status, next=next_of_sweep(status, request.args, str(self.session.settings.runs_dir)))

    # --- The report ---------------------------------------------------------------------------------------------------

    def _report_path(self, sweep: str) -> Path:
        return Path(self.session.settings.runs_dir) / sweep / "report.html"

    def report(self, status: SweepStatus) -> SweepStatus:
        """Writes the report into `runs_dir`. On failure, reports the reason and returns the status unchanged."""
        path, tell = self._report_path(status.name), self.session.reporter.info
        if path.parent.exists() and not is_copy(path.parent):
            tell(f"No report: {path.parent} belongs to a run on this machine. Use another --runs-dir for it.")
            return status
        with report_result(path, tell):
            with ThreadPoolExecutor(CONCURRENT_REQUESTS) as threads:
                contents = list(threads.map(partial(_newest_grid, self.session), status.trials))
            numbers = [trial.number for trial in status.trials]
            grids = {number: grid for number, grid in zip(numbers, contents, strict=True) if grid is not None}
            path.parent.mkdir(parents=True, exist_ok=True)
            record = {"scope": self.session.agreement.scope, "run": status.name}
            write_whole(path.with_name(COPY_FILE), json.dumps(record).encode())
            write_report(path, status, grids)
            return replace(status, report=str(path))
        return status


def _newest_grid(session: Session, trial: Trial) -> bytes | None:
    """The PNG file of a trial's last sample grid in full resolution, None if there is none yet."""
    store, folder = session.folder_at(trial.run_dir)
    with session.client.errors(f"Downloading the samples of {trial.name}"):
        newest = newest_grid(blob.name for blob in store.list_blobs(f"{folder}samples/"))
        return None if newest is None else store.read(f"{folder}samples/{newest}")


def identity_of(sweep: SweepSpec) -> Iterator[str]:
    """What tells two sweeps apart, beyond what their trials have in common."""
    yield from sweep.space.as_texts()
    yield from (sweep.sampling, str(sweep.sampling_seed), str(sweep.trials))
    yield from map(str, (sweep.objective, sweep.early_stopping))


def refuse_other_images(plan: JobPlan, before: RunJobs) -> None:
    """Raises `UsageError` if the sweep used other images so far: its trials could not be compared."""
    if before.newest is not None and (there := data_of(before.newest)) != plan.data.uri:
        raise UsageError(
            [f"--data {plan.spec.data}: the sweep {before.run} uses other images, {there}."],
            "Use those images to resume it, or another --name.",
        )
