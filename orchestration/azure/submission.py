"""Submit a run as a job: check, upload, send it once. An error says whether there may be a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msggan.commands.program import Terminated, stopped
from msggan.config import TrainConfig
from msggan.errors import MsgganError, UsageError
from msggan.runs.folder import RunFolder
from orchestration.azure.blobs import Store
from orchestration.azure.compute import has_identity, read_size, require_cluster
from orchestration.azure.data import ensure_data, plan_data
from orchestration.azure.history import RunJobs, get_job, run_of
from orchestration.azure.jobs import (
    CONFIGURATION_TAG,
    JobPlan,
    build_job,
    build_tags,
    configuration_hash,
    run_folder,
)
from orchestration.azure.session import Session
from orchestration.azure.snapshot import ensure_code
from orchestration.errors import UncertainError
from orchestration.settings import Settings
from orchestration.spec import RunSpec

TO_RESOLVE = "<resolved-at-submit: {}>"


@dataclass(frozen=True)
class StartedRun:
    """The configuration of a run that has started, and the one with which the new job would resume it."""

    stored: TrainConfig
    resumed: TrainConfig


@dataclass(frozen=True)
class Submission:
    """Sends runs as jobs to the session's workspace."""

    session: Session

    def send(
        self,
        spec: RunSpec,
        run: RunJobs,
        *,
        build: Callable[[JobPlan], Any] = build_job,
        extra: Sequence[str] = (),
    ) -> Any:
        """The run's new job, or its newest one where nothing is left to train. Raises MsgganError.

        build(plan): the job for the SDK. extra: what was asked beyond the run's own command.
        """
        refuse_if_running(run)
        session = self.session
        without_identity = self._check_machines()
        store = session.store(session.settings.datastore)
        started = self._read_started(spec, store)
        environment = session.environment()  # which may be refused: before a hundred thousand images are packed
        data = ensure_data(_as_started(spec, started), store, session)
        tags = build_tags(spec.name, configuration_hash(spec, data, extra), Path.cwd())
        if is_complete(run, tags[CONFIGURATION_TAG]) or (started and self._is_trained(run, started, store)):
            return run.newest
        code = ensure_code(session.store(None), session.client, session.reporter)
        as_user = without_identity and store.identity_based
        plan = JobPlan(
            run.next_name, spec, data, store.datastore, code, environment, session.settings, tags, as_user=as_user
        )
        return self._put(plan, build)

    def _check_machines(self) -> bool:
        """Whether jobs there have no identity of their own. Raises UsageError where there are no such machines."""
        settings = self.session.settings
        if settings.instance_type is not None:
            read_size(self.session.client, settings)
            return True
        return not has_identity(require_cluster(self.session.client, settings.compute))

    def _read_started(self, spec: RunSpec, store: Store) -> StartedRun | None:
        """The configurations of a run that has started, None for a new one. Raises RunFolderError if they conflict."""
        folder = run_folder(store.datastore, spec.name)
        with self.session.client.errors(f"Reading {folder.uri}"):
            content = store.read(f"{folder.path}config.json")
        if content is None:
            return None
        with TemporaryDirectory(prefix="msggan-config-") as name:
            here = RunFolder(Path(name) / spec.name)
            here.path.mkdir()
            here.config.write_bytes(content)
            stored, resumed = here.load_config(), here.continued(spec.config)
        return StartedRun(stored, resumed) if stored and resumed else None

    def _is_trained(self, run: RunJobs, started: StartedRun, store: Store) -> bool:
        """Whether a checkpoint is as far as the run shall train, so that a new job would change nothing."""
        is_shorter = started.resumed.kimg < started.stored.kimg
        if run.newest is None or not (run.newest.status == "Completed" or is_shorter):
            return False
        folder = run_folder(store.datastore, run.run)
        with self.session.client.errors(f"Listing {folder.uri}"):
            names = [blob.name for blob in store.list_blobs(f"{folder.path}checkpoints/")]
        images = [int(stem) for stem, _, kind in (name.partition(".") for name in names) if kind == "json"]
        return max(images, default=-1) >= 1000 * started.resumed.kimg

    def _put(self, plan: JobPlan, build: Callable[[JobPlan], Any]) -> Any:
        """Sends the job. After an error the job is looked up: there is one, or none, or the error says it may exist."""
        client = self.session.client
        try:
            # The SDK prints notes to itself there.
            with client.errors(f"Submitting {plan.name}"), redirect_stderr(StringIO()):
                return client.ml.jobs.create_or_update(build(plan))
        except MsgganError as error:
            job = self._look_up(plan, error)
            if job is not None:
                return job
            error.message += " No job was submitted."
            raise
        except (KeyboardInterrupt, Terminated) as stop:
            message = f"Stopped while submitting {plan.name}: the job may exist. {status_hint(plan.spec.name)}"
            raise stopped(type(stop), message) from None

    def _look_up(self, plan: JobPlan, error: MsgganError) -> Any | None:
        """The job, if it was created although its response was an error or lost. Raises UncertainError if unknown."""
        try:
            job = get_job(self.session.client, plan.name)
        except MsgganError as second:
            message = f"{error.message} The job {plan.name} may exist: {second.message}"
            raise UncertainError(message, status_hint(plan.spec.name)) from error
        if job is None:
            return None
        if run_of(job) == plan.spec.name and job.tags.get(CONFIGURATION_TAG) == plan.tags[CONFIGURATION_TAG]:
            return job
        raise UsageError(
            [f"{plan.name}: another command has just submitted a job of this name."], follow_hint(plan.spec.name)
        )


def planned_job(settings: Settings, spec: RunSpec, extra: Sequence[str] = ()) -> JobPlan:
    """The job that `Submission.send` would send. Makes no requests: what only the service knows is `TO_RESOLVE`."""
    datastore = settings.datastore or TO_RESOLVE.format("the workspace's default datastore")
    data = plan_data(str(spec.data), datastore)
    code = TO_RESOLVE.format("the snapshot of the msggan package")
    environment = TO_RESOLVE.format(f"the environment {settings.environment}")
    tags = build_tags(spec.name, configuration_hash(spec, data, extra), Path.cwd())
    return JobPlan(spec.name, spec, data, datastore, code, environment, settings, tags)


def _as_started(spec: RunSpec, started: StartedRun | None) -> RunSpec:
    """The run with the resolution and background that it started with, by which its images are packed."""
    if started is None:
        return spec
    stored = started.stored
    return replace(spec, config=replace(spec.config, resolution=stored.resolution, background=stored.background))


def refuse_if_running(run: RunJobs) -> None:
    if run.is_active:
        raise UsageError([f"{run.run}: already running as job {run.jobs[-1].name}."], follow_hint(run.run))


def is_complete(run: RunJobs, configuration: str) -> bool:
    """Whether the run's newest job has completed this very configuration."""
    newest = run.newest
    return newest is not None and newest.status == "Completed" and newest.tags.get(CONFIGURATION_TAG) == configuration


def follow_hint(run: str) -> str:
    return f"Follow it: msggan-aml logs {run} --follow. Stop it: msggan-aml cancel {run}. Or use another --name."


def status_hint(run: str) -> str:
    return f"Check: msggan-aml status {run}. The same command again submits no second job."
