"""How does a sweep run on Azure ML? As a sweep job, whose trials have their run folders in that of the sweep."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msggan.commands.program import Terminated, stopped
from msggan.errors import MsgganError, RunFolderError, UsageError
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
from orchestration.azure.jobs import DATA_PLACEHOLDER
from orchestration.azure.session import Session
from orchestration.azure.status import to_seconds
from orchestration.azure.submission import planned_job, refuse_if_running
from orchestration.azure.sweep_jobs import TRIAL_FOLDER, azure_problems, build_sweep_body
from orchestration.azure.sweep_page import page_of, write_page
from orchestration.azure.sweep_standing import reasons_to_give_up, standing
from orchestration.azure.sweep_submission import asked, send_sweep, trial_run, what_is_left
from orchestration.azure.trials import SweepReader
from orchestration.errors import AzureServiceError
from orchestration.runs import is_copy
from orchestration.spec import SWEEP_NOTE, Download, trial_named
from orchestration.sweeps.request import SweepRequest, read_request, refuse_another_space
from orchestration.sweeps.spec import SweepSpec, SweepStatus, Trial, sorted_trials, why_given_up
from orchestration.sweeps.words import next_of_sweep, trial_line

ASKED_AT_ONCE = 4


@dataclass(frozen=True)
class AzureSweeps:
    """The sweeps in the workspace that the session's settings name."""

    session: Session

    name = "azure"

    # --- Before anything is sent --------------------------------------------------------------------------------------

    def plan_sweep(self, spec: SweepSpec) -> dict[str, Any]:
        """What `submit_sweep` would send for a new sweep. Asks nobody. Raises `UsageError` for what Azure refuses."""
        refuse_on_azure(spec)
        scope = workspace_scope(configured_workspace(self.session.settings))
        job = planned_job(self.session.settings, trial_run(spec), list(asked(spec)))
        body = build_sweep_body(job, spec, scope)
        return {
            "target": self.name,
            "command": trial_run(spec).command(data=DATA_PLACEHOLDER, run_dir=TRIAL_FOLDER),
            "env": body["properties"]["trial"]["environmentVariables"],
            "run_dir": job.run_folder.uri,
            "requests": [{"method": "PUT", "path": f"{scope}/jobs/{job.name}", "body": body}],
        }

    def sweep_question(self, spec: SweepSpec) -> str | None:
        """What a person has to agree to before the first job in this folder: it costs money."""
        refuse_on_azure(spec)
        return self.session.agreement.question(
            f"{spec.name} trains {spec.trials} trials, {spec.concurrent} at once, each"
        )

    # --- The verbs ----------------------------------------------------------------------------------------------------

    def submit_sweep(self, spec: SweepSpec, *, detach: bool = False) -> SweepStatus:
        """Sends the sweep as a job, or what is left of the one of that name, and follows it to its end.

        Raises MsgganError: there is no new job then, or the error says that there may be one.
        """
        refuse_on_azure(spec)
        before = find_jobs(self.session.client, spec.name)
        request = self._renewed(spec, before)
        trials = self._reader(before).trials(before, self._details(before)) if before.jobs else []
        part = what_is_left(spec, trials, len(before.jobs))
        if part is None:
            self.session.reporter.info(f"{spec.name} is complete: every trial has ended. A larger --trials goes on.")
            return self.report(self._status(before))
        if failed := reasons_to_give_up(trials, request):
            raise UsageError(
                [f"{spec.name}: was given up, and would be at once: {why_given_up(failed, request.planned)}"],
                "A larger --most-failed goes on with the trials that are left; another --name begins anew.",
            )
        job = send_sweep(self.session, spec, part, before, request)
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
        with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
            return [status for status in threads.map(self._status_if_readable, found) if status is not None]

    def is_sweep(self, name: str) -> bool:
        job = None if trial_named(name) else get_job(self.session.client, name)
        return job is not None and is_sweep(job)

    def sweep_status(self, name: str) -> SweepStatus:
        """How a sweep and its trials stand. Raises `RunFolderError` where there is none."""
        return self._status(self._jobs(name))

    def cancel_sweep(self, name: str) -> SweepStatus:
        """Stops a sweep and its trials, and waits for its end. Raises `UsageError` if it is not running."""
        jobs = self._jobs(name)
        if not jobs.is_active:
            raise UsageError([f"{name}: is not running but {self._status(jobs).state}."])
        cancel(self.session, jobs.jobs[-1].name)
        return self.sweep_status(name)

    def trial_jobs(self, name: str, number: int) -> RunJobs:
        """A trial of a sweep as a run of its own, which has one job. Raises MsgganError where there is none."""
        jobs = self._jobs(name)
        reader = self._reader(jobs)
        children = {trial.number: trial.child.name for trial in reader.begun(jobs, self._details(jobs))}
        job = get_job(self.session.client, children[number]) if number in children else None
        if job is None:
            raise RunFolderError(f"{name}: no trial {number} has begun.", f"See its trials: msggan-aml status {name}")
        return RunJobs(f"{name}/{number}", (job,), trial_folder=reader.place(job.name))

    def download_trial(self, trial: Trial, to: Path, *, force: bool, tell: OnProgress) -> Download:
        """Copies a trial's run folder here. Raises MsgganError where it cannot."""
        store, folder = self.session.folder_at(trial.run_dir)
        return download_run(self.session.client, store, folder, to, weights=False, force=force, on_progress=tell)

    def report(self, status: SweepStatus) -> SweepStatus:
        """Writes the sweep's page into the folder of the runs here; where that cannot be done it is said."""
        return write_page(self.session, status)

    # --- Following ----------------------------------------------------------------------------------------------------

    def _follow(self, jobs: RunJobs) -> None:
        """Tells of each trial that ends, until the sweep's end. Ctrl-C leaves it to itself and says so."""
        job = jobs.jobs[-1].name
        told: set[str] = set()
        try:
            reader = self._reader(jobs)
            request = reader.request
            for details in watch(self.session, job).updates():
                trials = self._newly_ended(jobs, reader, details, told)
                failed = reasons_to_give_up(trials, request)
                if failed and not details.has_ended:
                    self.session.reporter.info(f"{jobs.run} is given up: {why_given_up(failed, request.planned)}")
                    cancel(self.session, job)
        except (KeyboardInterrupt, Terminated) as stop:
            raise stopped(
                type(stop),
                f"Detached: {jobs.run} goes on as job {job}.",
                f"See how it stands: msggan-aml status {jobs.run}. Stop it: msggan-aml cancel {jobs.run}.",
            ) from None
        except MsgganError as error:
            again = f"{jobs.run} goes on. Look: msggan-aml status {jobs.run}"
            error.hint = "\n".join(filter(None, [error.hint, again]))
            raise

    def _newly_ended(self, jobs: RunJobs, reader: SweepReader, newest: Details, told: set[str]) -> list[Trial]:
        """Tells of the trials that have ended since the last look; all trials, where there are such."""
        job = jobs.jobs[-1].name
        try:
            ended = {child.name for child in self.session.history.children(job) if child.has_ended}
            if ended <= told:
                return []
            trials = reader.trials(jobs, newest)
        except AzureServiceError as error:
            if not is_transient(error):
                raise
            return []  # the next look finds them
        request = reader.request
        for trial in trials:
            if trial.job_id in ended - told:
                self.session.reporter.info(trial_line(trial, trials, request.planned, request.objective))
        told |= ended
        return trials

    # --- How it stands ------------------------------------------------------------------------------------------------

    def _jobs(self, name: str) -> RunJobs:
        jobs = find_jobs(self.session.client, name)
        if not jobs.is_sweep:
            where = self.session.client.workspace.workspace_name
            raise RunFolderError(f"No sweep {name!r} in workspace {where}.", "See what there is: msggan-aml list")
        return jobs

    def _details(self, jobs: RunJobs) -> Details:
        return self.session.history.details(jobs.jobs[-1].name)

    def _request(self, jobs: RunJobs) -> SweepRequest:
        """What was asked of a sweep. Raises `RunFolderError` where that is gone."""
        store, folder = self.session.folder_of(jobs)
        path = f"{folder.path.rstrip('/')}/{SWEEP_NOTE}"
        with self.session.client.errors(f"Reading what was asked of {jobs.run}"):
            content = store.read(path)
        if content is None:
            raise RunFolderError(f"{folder.uri}: has no {SWEEP_NOTE}; somebody has removed it.", "Give another --name.")
        return read_request(content, SweepRequest, f"{folder.uri}{SWEEP_NOTE}")

    def _renewed(self, spec: SweepSpec, before: RunJobs) -> SweepRequest:
        """What is asked now. Raises `UsageError` where the name is that of a run, another sweep or one at work."""
        now = SweepRequest.of(spec)
        del now.asked["--data"]  # a path of whoever's machine this is; the images are told apart by their content
        if not before.jobs:
            return now
        if not before.is_sweep:
            raise UsageError([f"--name {spec.name}: is a run, not a sweep."], "Give another --name.")
        there = self._request(before)
        refuse_another_space(spec, there.planned, there.asked)
        refuse_if_running(before)
        return now

    def _reader(self, jobs: RunJobs) -> SweepReader:
        store, folder = self.session.folder_of(jobs)
        return SweepReader(self.session.history, store, folder, self._request(jobs))

    def _status_if_readable(self, jobs: RunJobs) -> SweepStatus | None:
        """None where a sweep cannot be told of, which must not hide the others."""
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
        state, reason = standing(details, trials, request)
        page = page_of(self.session, jobs.run)
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
            report=str(page) if page.exists() and is_copy(page.parent) else None,
            data=data_of(job),
            said=request.said,
            space=request.space,
            planned=request.planned,
            created=created_at(jobs.jobs[0]),
            ended=to_seconds(details.ended) if details.has_ended else None,
        )
        return replace(status, next=next_of_sweep(status, request.again, str(self.session.settings.runs_dir)))


def refuse_on_azure(spec: SweepSpec) -> None:
    """Raises `UsageError` for what the service would refuse, before anything is asked."""
    if problems := azure_problems(spec):
        raise UsageError(problems)
