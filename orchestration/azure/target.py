"""An Azure ML workspace as a target: a run is a job, whose run folder is in the workspace's storage."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msggan.commands.program import StoppedError, Terminated, stopped
from msggan.errors import MsgganError, RunFolderError, UsageError
from msggan.runs.files import write_whole
from orchestration.azure.client import configured_workspace, workspace_scope
from orchestration.azure.downloads import GENERATOR, download_run, upload_run
from orchestration.azure.following import JOB_LOG, LogReader, cancel, log_url, watch
from orchestration.azure.history import Details, RunJobs, find_jobs, list_runs, portal_url
from orchestration.azure.jobs import DATA_PLACEHOLDER, RUN_PLACEHOLDER, build_body, run_folder
from orchestration.azure.provisioning import apply, plan_deletion, plan_provisioning, verify
from orchestration.azure.session import Session
from orchestration.azure.status import Progress, build_status, read_progress, reason_of
from orchestration.azure.submission import Submission, planned_job, status_hint
from orchestration.azure.sweeps import AzureSweeps
from orchestration.copies import COPY_FILE, is_copy
from orchestration.settings import Settings
from orchestration.spec import RunSpec, name_of_trial, sweep_hint, trial_named
from orchestration.status import Download, ProvisionPlan, Reporter, RunStatus
from orchestration.targets import Target

ASKED_AT_ONCE = 8


@dataclass(frozen=True)
class AzureTarget(Target):
    """The workspace in the settings. No requests are made before they are needed."""

    settings: Settings
    reporter: Reporter = field(default_factory=Reporter)
    wait_factor_s: float | None = None

    name = "azure"

    @classmethod
    def from_settings(cls, settings: Settings, reporter: Reporter) -> AzureTarget:
        return cls(settings, reporter)

    @cached_property
    def session(self) -> Session:
        """The client and stores that the methods share."""
        return Session(self.settings, self.reporter, self.wait_factor_s)

    @property
    def sweeps(self) -> AzureSweeps:
        """The sweeps in the same workspace."""
        return AzureSweeps(self.session)

    # --- Train --------------------------------------------------------------------------------------------------------

    def problems(self, data: str | None, name: str | None) -> list[str]:
        return []  # `start` checks the jobs of that name and the data

    def plan_run(self, spec: RunSpec) -> dict[str, Any]:
        """The request that `start` would send. `<resolved-at-submit: …>` stands for values from the service."""
        scope = workspace_scope(configured_workspace(self.settings))
        job = planned_job(self.settings, spec)
        body = build_body(job, scope)
        return {
            "target": self.name,
            "command": spec.command(data=DATA_PLACEHOLDER, run_dir=RUN_PLACEHOLDER),
            "env": body["properties"]["environmentVariables"],
            "run_dir": job.run_folder.uri,
            "requests": [{"method": "PUT", "path": f"{scope}/jobs/{job.name}", "body": body}],
        }

    def question(self, spec: RunSpec) -> str | None:
        """The question before the first run in this folder: it costs money."""
        return self.session.agreement.question(f"{spec.name} trains")

    def start(self, spec: RunSpec) -> RunStatus:
        """Submits the run as a job, and returns once it is accepted.

        Raises MsgganError if there is no job, or UncertainError if there may be one.
        """
        sent = self._send(spec)
        if isinstance(sent, RunStatus):
            return sent
        return self._status(sent, details=self._details_or_less(sent.jobs[-1]), with_progress=False)

    def run(self, spec: RunSpec) -> RunStatus:
        sent = self._send(spec)
        return sent if isinstance(sent, RunStatus) else self._follow(sent)

    def _send(self, spec: RunSpec) -> RunJobs | RunStatus:
        """The run with its new job, or its status if nothing is left to train."""
        before = find_jobs(self.session.client, spec.name)
        refuse_sweep(before)
        job = Submission(self.session).send(spec, before)
        if job is before.newest:
            notice = f"Nothing to do: {spec.name} has already been trained this long. Use a larger --kimg."
            self.reporter.info(notice)
            return replace(self._status(before), notice=notice)
        self.session.agreement.give()
        self.reporter.info(f"Submitted job {job.name}: {portal_url(job)}")
        return RunJobs(spec.name, (*before.jobs, job))

    def start_from(self, name: str, copy_run: Callable[[Path], None]) -> None:
        store = self.session.store(self.settings.datastore)
        folder = run_folder(store.datastore, name)
        with self.session.client.errors(f"Reading {folder.uri}"):
            if store.size_of(f"{folder.path}config.json") is not None:
                return
        with TemporaryDirectory(prefix="msggan-trial-") as here:
            copy_run(Path(here) / name)
            with self.session.client.errors(f"Copying the trial to {folder.uri}"):
                upload_run(store, Path(here) / name, folder.path, partial(self.reporter.progress, "Uploading"))

    # --- Its runs -----------------------------------------------------------------------------------------------------

    def runs(self) -> list[RunStatus]:
        """The newest runs, the newest first."""
        found, are_more = list_runs(self.session.client)
        if are_more:
            self.reporter.info(f"Only the newest {len(found)} runs are listed; older ones are in the portal.")
        if not found:
            return []
        with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
            return list(threads.map(self._status, found))

    def status(self, name: str) -> RunStatus:
        """The status of a run. Raises `RunFolderError` if there is none."""
        return self._status(self._jobs(name))

    def logs(self, name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """The log lines of all of the run's jobs; with `follow` also those that the newest job writes until its end."""
        run = self._jobs(name)
        if follow and run.is_active:
            return self._follow_log(run, tail)
        lines: deque[str] = deque(maxlen=tail)
        for job in run.jobs:
            lines.extend(self._lines_so_far(job.name))
        return iter(lines)

    def cancel(self, name: str) -> RunStatus:
        """Stops a run and waits until it has ended. Raises `UsageError` if it is not running."""
        run = self._jobs(name)
        if not run.is_active:
            raise UsageError([f"{name}: is not running; its state is {self._status(run, with_progress=False).state}."])
        cancel(self.session, run.jobs[-1].name)
        return self.status(name)

    def copy_run(self, name: str, to: Path, *, weights: bool, force: bool) -> Download:
        store, folder = self.session.folder_of(self._jobs(name))
        copying = partial(self.reporter.progress, "Copying")
        return download_run(
            self.session.client, store, folder.path, to, weights=weights, force=force, on_progress=copying
        )

    def weights(self, name: str) -> str:
        """The local folder with the run's newest generator, downloaded if necessary."""
        store, place = self.session.folder_of(self._jobs(name))
        folder = place.path
        trial = trial_named(name)
        to = Path(self.settings.runs_dir) / (name_of_trial(*trial) if trial else name)
        if to.exists() and not is_copy(to):
            raise UsageError(
                [f"{to}: is a local run, not a copy of the run on Azure."],
                f"Download the run on Azure to another folder: msggan-aml download {name} --target azure --out OTHER",
            )
        with self.session.client.errors(f"Reading {folder}"):
            newest = next((blob.etag for blob in store.list_blobs(folder) if blob.name == GENERATOR), None)
        if newest is None or _etag_of_copy(to) != newest or not (to / GENERATOR).is_file():
            if newest is not None:
                self._record_copy(to, name, etag="")  # so that an interrupted copy is not taken for a local run
            download_run(
                self.session.client,
                store,
                folder,
                to,
                weights=True,
                force=True,
                on_progress=lambda done, total: self.reporter.progress("Downloading the weights", done, total),
            )
            self._record_copy(to, name, etag=newest)
        return str(to)

    def _record_copy(self, folder: Path, name: str, *, etag: str | None) -> None:
        """Marks a folder as a copy of a run on Azure. etag: of the generator in it; empty during the download."""
        folder.mkdir(parents=True, exist_ok=True)
        note = {"scope": self.session.agreement.scope, "run": name, "etag": etag}
        write_whole(folder / COPY_FILE, json.dumps(note).encode())

    # --- What training needs ------------------------------------------------------------------------------------------

    def plan_provision(self, *, delete: bool = False) -> ProvisionPlan:
        """The changes that the settings require. delete: plan to delete what `provision` created, never the data."""
        plan = plan_deletion if delete else plan_provisioning
        return plan(self.session.client, self.settings)

    def provision(self, plan: ProvisionPlan | None = None, *, delete: bool = False) -> ProvisionPlan:
        plan = plan or self.plan_provision(delete=delete)
        if plan.refusal:
            raise plan.refusal
        if plan.to_do:
            apply(plan, self.reporter.info)
            verify(plan, lambda: self.plan_provision(delete=delete))
            self.reporter.info("Done and verified.")
        return plan

    # --- Following ----------------------------------------------------------------------------------------------------

    def _follow(self, run: RunJobs) -> RunStatus:
        """Prints the log of the run's newest job to its end. Ctrl-C detaches from the job."""
        following = watch(self.session, run.jobs[-1].name, with_build_log=True)
        try:
            for line in following.lines():
                self.reporter.info(line)
        except (KeyboardInterrupt, Terminated) as stop:
            raise _detached(run, stop) from None
        except MsgganError as error:
            error.hint = "\n".join(filter(None, [error.hint, f"{run.run} continues. {status_hint(run.run)}"]))
            raise
        if following.details.state == "failed":
            self.reporter.info(f"{run.run} failed. {reason_of(following.details)}")
        return self._status(run, details=following.details)

    def _follow_log(self, run: RunJobs, tail: int | None) -> Iterator[str]:
        """The last lines of the run's log, then each new line."""
        for job in run.jobs[:-1]:
            yield from () if tail is not None else self._lines_so_far(job.name)
        yield from watch(self.session, run.jobs[-1].name, tail=tail).lines()

    def _lines_so_far(self, job: str) -> list[str]:
        url = log_url(self.session.history.details(job), JOB_LOG)
        return [] if url is None else list(LogReader(self.session.client.wait_factor_s).lines(url, final=True))

    def _details_or_less(self, job: Any) -> Details:
        """The details of a job. If they cannot be read, only the status that its submission returned."""
        try:
            return self.session.history.details(job.name)
        except MsgganError:
            return Details(job.status)

    # --- Jobs and progress --------------------------------------------------------------------------------------------

    def _jobs(self, name: str) -> RunJobs:
        if trial := trial_named(name):
            return self.sweeps.trial_jobs(*trial)
        run = find_jobs(self.session.client, name)
        if run.newest is None:
            where = self.session.client.workspace.workspace_name
            raise RunFolderError(f"No run {name!r} in workspace {where}.", "List the runs: msggan-aml list")
        refuse_sweep(run)
        return run

    def _status(self, run: RunJobs, *, details: Details | None = None, with_progress: bool = True) -> RunStatus:
        details = details or self.session.history.details(run.jobs[-1].name)
        progress = self._progress(run) if with_progress else Progress()
        return build_status(run, details, progress, self.settings.runs_dir)

    def _progress(self, run: RunJobs) -> Progress:
        """The progress of a run; empty if its storage cannot be read, so that the job's status is still shown."""
        try:
            store, folder = self.session.folder_of(run)
            with self.session.client.errors(f"Reading the progress of {run.run}"):
                return read_progress(store, folder.path)
        except MsgganError as error:
            self.reporter.info(error.message)
            return Progress()


def refuse_sweep(run: RunJobs) -> None:
    """Raises `UsageError` if the name is that of a sweep."""
    if run.is_sweep:
        raise UsageError([f"{run.run}: is a sweep, not a run."], sweep_hint(run.run))


def _detached(run: RunJobs, stop: BaseException) -> StoppedError:
    return stopped(
        type(stop),
        f"Detached: {run.run} continues as job {run.jobs[-1].name}.",
        f"Follow it again: msggan-aml logs {run.run} --follow. Stop it: msggan-aml cancel {run.run}.",
    )


def _etag_of_copy(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / COPY_FILE).read_bytes())["etag"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
