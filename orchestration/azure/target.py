"""An Azure ML workspace as a target: a run is a job, whose run folder is in the workspace's storage."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from msggan.errors import MsgganError, UsageError
from msggan.runs.folder import BEST_GENERATOR, GENERATOR, weights_file
from orchestration.azure.client import WAIT_FACTOR_S, Client, Session
from orchestration.azure.consent import consent_question
from orchestration.azure.data import planned_mode
from orchestration.azure.downloads import copied_etag, download_run, record_copy, upload_run
from orchestration.azure.estimates import (
    estimate_hours,
    estimate_run,
    estimated,
    estimated_settings,
    with_price,
)
from orchestration.azure.following import cancel, detaching, not_running, read_log, unread_error, watch
from orchestration.azure.history import (
    MAX_RUNS,
    Details,
    RunJobs,
    created_at,
    data_of,
    find_jobs,
    list_runs,
    options_of,
    read_details,
    read_progress,
    require_jobs,
)
from orchestration.azure.jobs import (
    RUN_PLACEHOLDER,
    as_yaml,
    build_body,
    connect_command,
    own_services,
    run_folder,
)
from orchestration.azure.provisioning import apply, plan_deletion, plan_provisioning, verify
from orchestration.azure.submission import as_plan, planned_job, read_what_jobs_need, submit
from orchestration.copies import is_copy
from orchestration.costs import CostReport
from orchestration.data_source import StoragePath, read_address
from orchestration.runs import next_command, next_of_trial
from orchestration.settings import Settings, with_keyword
from orchestration.spec import RunSpec, name_of_trial, sweep_hint, trial_named
from orchestration.status import ACTIVE_STATES, Download, ProvisionPlan, Question, Reporter, RunStatus
from orchestration.targets import Target

if TYPE_CHECKING:
    from orchestration.azure.sweeps import AzureSweeps

CONCURRENT_REQUESTS = 8


@dataclass(frozen=True)
class AzureTarget(Target):
    """The workspace in the settings. No requests are made before they are needed."""

    settings: Settings
    reporter: Reporter = field(default_factory=Reporter)
    wait_factor_s: float = WAIT_FACTOR_S
    session: Session = field(default_factory=Session, repr=False)

    name = "azure"

    @classmethod
    def from_settings(cls, settings: Settings, reporter: Reporter) -> AzureTarget:
        return cls(settings, reporter)

    def with_max_cost(self, max_cost: str | float) -> AzureTarget:
        return replace(self, settings=with_keyword(self.settings, "max_cost", max_cost))

    @cached_property
    def client(self) -> Client:
        """The client that the methods share."""
        return Client(self.settings, self.reporter, self.wait_factor_s, self.session)

    @property
    def sweeps(self) -> AzureSweeps:
        """The sweeps in the same workspace."""
        from orchestration.azure.sweeps import AzureSweeps  # imported on first use: it is large

        return AzureSweeps(self.client)

    # --- Train --------------------------------------------------------------------------------------------------------

    def problems(self, data: str | None, name: str | None) -> list[str]:
        """What is wrong with an address in a storage account; `start` checks the jobs of that name and the data."""
        address, cloud = read_address(data or ""), self.client.cloud
        if not isinstance(address, StoragePath) or address.suffix == cloud.storage:
            return []
        return [
            f"--data {data}: is not in the cloud of the workspace, {cloud.name}, whose storage is {cloud.storage}. "
            "Set AZUREML_CURRENT_CLOUD if the workspace is in another cloud."
        ]

    def plan_run(self, spec: RunSpec) -> dict[str, Any]:
        """The request that `start` would send. `<resolved-at-submit: …>` stands for values from the service."""
        return self._plan(spec, self.settings)

    def priced_plan(self, spec: RunSpec) -> dict[str, Any]:
        """`plan_run` with what it costs, and with the time limit that --max-cost sets. Only reads."""
        estimate = estimated(self.client, lambda: estimate_run(self.client, spec))
        plan = self._plan(spec, estimated_settings(self.settings, estimate))
        self.reporter.info(planned_mode(self.settings))
        return plan | {"cost": estimate.as_json()}

    def _plan(self, spec: RunSpec, settings: Settings) -> dict[str, Any]:
        job = planned_job(settings, self.client.scope, spec)
        return as_plan(job, job.command(RUN_PLACEHOLDER), build_body(job, self.client.scope), self.client.scope)

    def question(self, spec: RunSpec) -> Question | None:
        read_what_jobs_need(self.client)
        hours, client = estimate_hours(self.client), self.client
        return consent_question(client, f"{spec.name} trains", hours, lambda: estimate_run(client, spec))

    def start(self, spec: RunSpec) -> RunStatus:
        """Submits the run as a job, and returns once it is accepted.

        Raises MsgganError if there is no job, or UncertainError if there may be one.
        """
        run = self._submit(spec)
        if isinstance(run, RunStatus):
            return run
        job = run.jobs[-1]
        try:
            details = read_details(self.client, job.name)
        except MsgganError:
            details = Details(job.status)  # as the submission returned it
        return self._status(run, details=details, with_progress=False)

    def run(self, spec: RunSpec) -> RunStatus:
        run = self._submit(spec)
        if isinstance(run, RunStatus):
            return run
        following = watch(self.client, run.jobs[-1].name, with_build_log=True)
        with detaching(run, f"Follow it again: msggan-aml logs {run.run} --follow"):
            for line in following.lines():
                self.reporter.info(line)
        if following.unread:
            self.reporter.info(unread_error(self.client, following.job, following.unread).message)
        if following.details.state == "failed":
            self.reporter.info(f"{run.run} failed. {following.details.reason}")
        return self._status(run, details=following.details)

    def _submit(self, spec: RunSpec) -> RunJobs | RunStatus:
        """The run with its new job, or its status if nothing is left to train."""
        read_what_jobs_need(self.client)
        before = find_jobs(self.client, spec.name)
        refuse_sweep(before)
        limited = with_price(self.client, estimate_hours(self.client)) if self.settings.max_cost else None
        run = submit(self.client, spec, before, job_hours=limited.job_hours if limited else None)
        if run is not before:
            return run
        notice = f"Nothing to do: {spec.name} has already been trained this long. Use a larger --kimg."
        self.reporter.info(notice)
        return replace(self._status(run), notice=notice)

    def start_from(self, name: str, copy_run: Callable[[Path], None]) -> None:
        store = self.client.store(self.settings.datastore)
        folder = run_folder(store.datastore, name)
        with self.client.errors(f"Reading {folder.uri}"):
            if store.size_of(f"{folder.path}config.json") is not None:
                return
        with TemporaryDirectory(prefix="msggan-trial-") as local:
            copy_run(Path(local) / name)
            with self.client.errors(f"Copying the trial to {folder.uri}"):
                upload_run(store, Path(local) / name, folder.path, partial(self.reporter.progress, "Uploading"))

    # --- Its runs -----------------------------------------------------------------------------------------------------

    def runs(self, limit: int | None = None) -> list[RunStatus]:
        found, are_more = list_runs(self.client, limit or MAX_RUNS)
        if are_more and limit is None:
            self.reporter.info(f"Only the newest {len(found)} runs on Azure are listed. Use --limit N for more.")
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as threads:
            return list(threads.map(self._status, found))

    def status(self, name: str) -> RunStatus:
        return self._status(self._jobs(name))

    def logs(self, name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """The log lines of all of the run's jobs; with `follow` also those that the newest job writes until its end.

        Raises MsgganError, after the last line, for what could not be read.
        """
        run = self._jobs(name)
        return self._follow_log(run, tail) if follow and run.is_active else self._read_log(run, tail)

    def _read_log(self, run: RunJobs, tail: int | None) -> Iterator[str]:
        unread: list[MsgganError] = []
        lines = self._lines_of(run.jobs, unread)
        yield from lines if tail is None else deque(lines, maxlen=tail)
        raise_all(unread)

    def _follow_log(self, run: RunJobs, tail: int | None) -> Iterator[str]:
        """The last lines of the run's log, then each new line."""
        unread: list[MsgganError] = []
        yield from self._lines_of(run.jobs[:-1] if tail is None else (), unread)
        following = watch(self.client, run.jobs[-1].name, tail=tail)
        yield from following.lines()
        if following.unread:
            unread.append(unread_error(self.client, following.job, following.unread))
        raise_all(unread)

    def _lines_of(self, jobs: Sequence[Any], unread: list[MsgganError]) -> Iterator[str]:
        """The lines of the logs of jobs. unread: what could not be read is appended to it."""
        for job in jobs:
            try:
                yield from read_log(self.client, job.name)
            except MsgganError as error:
                unread.append(error)

    def cancel(self, name: str) -> RunStatus:
        run = self._jobs(name)
        if not run.is_active:
            raise not_running(name, self._status(run, with_progress=False).state)
        cancel(self.client, run.jobs[-1].name)
        return self.status(name)

    def copy_run(self, name: str, to: Path, *, weights: bool, force: bool) -> Download:
        store, folder = self._jobs(name).open_folder(self.client)
        progress = partial(self.reporter.progress, "Copying")
        only = (GENERATOR, BEST_GENERATOR) if weights else ()
        return download_run(self.client, store, folder, to, only=only, force=force, on_progress=progress)

    def weights(self, name: str, *, best: bool = False, at_kimg: float | None = None) -> str:
        """The local folder with these weights of the run, downloaded if necessary."""
        store, folder = self._jobs(name).open_folder(self.client)
        trial = trial_named(name)
        to = Path(self.settings.runs_dir) / (name_of_trial(*trial) if trial else name)
        if to.exists() and not is_copy(to):
            raise UsageError(
                [f"{to}: is a local run, not a copy of the run on Azure."],
                f"Download the run on Azure to another folder: msggan-aml download {name} --target azure --out OTHER",
            )
        with self.client.errors(f"Reading {folder}"):
            etags = {blob.name: blob.etag for blob in store.list_blobs(folder)}
        chosen = weights_file(etags, best=best, at_kimg=at_kimg)
        newest = etags.get(chosen)
        if newest is None or copied_etag(to) != newest or not (to / chosen).is_file():
            if newest is not None:
                record_copy(to, self.client, name, etag="")  # an interrupted copy must not look like a local run
            progress = partial(self.reporter.progress, "Downloading the weights")
            download_run(self.client, store, folder, to, only=[chosen], force=True, on_progress=progress)
            record_copy(to, self.client, name, etag=newest)
        return str(to)

    def job_yaml(self, name: str) -> str:
        run = self._jobs(name) if trial_named(name) else require_jobs(self.client, name)
        return as_yaml(run.newest)

    def costs(self, name: str | None = None) -> CostReport:
        from orchestration.azure.costs import report_costs

        return report_costs(self.client, name)

    # --- What training needs ------------------------------------------------------------------------------------------

    def plan_provision(self, *, delete: bool = False) -> ProvisionPlan:
        """The changes that the settings require. delete: plan to delete what `provision` created, never the data."""
        return plan_deletion(self.client) if delete else plan_provisioning(self.client)

    def provision(self, plan: ProvisionPlan | None = None, *, delete: bool = False) -> ProvisionPlan:
        plan = plan or self.plan_provision(delete=delete)
        if plan.refusal:
            raise plan.refusal
        if plan.to_do:
            plan = apply(plan, self.reporter.info)
            verify(plan, lambda: self.plan_provision(delete=delete))
            self.reporter.info("Done and verified.")
        return plan

    # --- Jobs and their status ----------------------------------------------------------------------------------------

    def _jobs(self, name: str) -> RunJobs:
        if trial := trial_named(name):
            return self.sweeps.trial_jobs(*trial)
        run = require_jobs(self.client, name)
        refuse_sweep(run)
        return run

    def _status(self, run: RunJobs, *, details: Details | None = None, with_progress: bool = True) -> RunStatus:
        """The status of a run, which has at least one job. details: of the newest."""
        job, runs_dir = run.jobs[-1], self.settings.runs_dir
        details = details or read_details(self.client, job.name)
        if trial_named(run.run):
            next_lines = next_of_trial(run.run, runs_dir, details.state)
        else:
            next_lines = next_commands(run.run, data_of(job), details.state, runs_dir, options_of(job))
            if "ssh" in own_services(job) and details.state == "running":
                next_lines.append(connect_command(job.name, self.settings))
        images_total, metrics = self._progress(run) if with_progress else (None, {})
        images_seen = metrics.get("images")
        return RunStatus(
            name=run.run,
            target=self.name,
            state=details.state,
            run_dir=run.folder.uri if run.folder else "",
            job_id=job.name,
            portal_url=job.studio_url or None,
            images_seen=None if images_seen is None else int(images_seen),
            metrics=metrics,
            next=next_lines,
            images_total=images_total,
            created=created_at(run.jobs[0]),
            ended=details.ended_at,
            reason=details.reason,
        )

    def _progress(self, run: RunJobs) -> tuple[int | None, dict[str, float | None]]:
        """`read_progress`; nothing if the run's storage cannot be read, so that the job's status is still shown."""
        try:
            store, folder = run.open_folder(self.client)
            with self.client.errors(f"Reading the progress of {run.run}"):
                return read_progress(store, folder)
        except MsgganError as error:
            self.reporter.info(error.message)
            return None, {}


def raise_all(errors: Sequence[MsgganError]) -> None:
    """Raises the first error with the messages of all; nothing if there is none."""
    if errors:
        errors[0].message = "\n".join(error.message for error in errors)
        raise errors[0]


def next_commands(run: str, data: str, state: str, runs_dir: str, options: Sequence[str]) -> list[str]:
    """The commands to run next: follow or cancel an active run, use a completed one, inspect and resume another.

    options: those of its training, which a run that has not started needs again.
    """
    if state in ACTIVE_STATES:
        verbs = (["logs", run, "--follow"], ["cancel", run])
    elif state == "completed":
        verbs = (["sample", run], ["download", run])
    else:
        verbs = (["logs", run, "--tail", "40"], ["submit", "--data", data, "--name", run, *options])
    return [next_command(runs_dir, *verb) for verb in verbs]


def refuse_sweep(run: RunJobs) -> None:
    """Raises `UsageError` if the name is that of a sweep."""
    if run.is_sweep:
        raise UsageError([f"{run.run}: is a sweep, not a run."], sweep_hint(run.run))
