"""How does a run become a job: looked at, brought there, sent once? An error says whether a job may exist."""

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
from orchestration.azure.client import Client
from orchestration.azure.compute import read_cluster, read_size
from orchestration.azure.data import OpenStore, bring_data, planned_data
from orchestration.azure.jobs import CONFIGURATION_TAG, JobData, JobPlan, build_job, configuration_hash, run_folder
from orchestration.azure.run_jobs import RunJobs, get_job, run_of
from orchestration.azure.snapshot import ensure_code, staged
from orchestration.azure.tags import build_tags
from orchestration.errors import UncertainError
from orchestration.reporter import Reporter
from orchestration.settings import Settings
from orchestration.spec import RunSpec

TO_RESOLVE = "<resolved-at-submit: {}>"

Environment = Callable[[], str]
Build = Callable[[JobPlan], Any]


@dataclass(frozen=True)
class Begun:
    """The configuration that a run has, and the one that it would go on with."""

    stored: TrainConfig
    continued: TrainConfig

    def as_begun(self, spec: RunSpec) -> RunSpec:
        """The run with its resolution and background as when it began."""
        config = replace(spec.config, resolution=self.stored.resolution, background=self.stored.background)
        return replace(spec, config=config)


@dataclass(frozen=True)
class Submission:
    """What is needed to send a run. environment(): resolves the job's environment to its id."""

    client: Client
    settings: Settings
    reporter: Reporter
    open_store: OpenStore
    environment: Environment

    def send(self, spec: RunSpec, run: RunJobs, *, build: Build = build_job, also: Sequence[str] = ()) -> Any:
        """The run's new job; its newest one, where nothing is left to train. Raises MsgganError.

        build(plan): the job as the SDK takes it. also: what was asked beyond the run's own command.
        """
        refuse_if_running(run)
        as_user = self._check_machines()
        store = self.open_store(self.settings.datastore)
        begun = self._begun(spec, store)
        as_begun = spec if begun is None else begun.as_begun(spec)
        environment = self.environment()  # which may be refused, before a hundred thousand images are packed
        data = bring_data(as_begun, store, self.client, self.open_store, self.reporter)
        tags = build_tags(spec.name, configuration_hash(spec, data, also), Path.cwd())
        if is_done(run, tags[CONFIGURATION_TAG]) or (begun and self._is_trained(run, begun, store)):
            return run.newest
        with staged() as snapshot:
            self.reporter.info(f"Code: the msggan package, {snapshot}; nothing else of this folder goes.")
            code = ensure_code(snapshot, self.open_store(None), self.client)
        plan = build_plan(
            self.settings,
            spec,
            data,
            name=run.next_name,
            datastore=store.datastore,
            code=code,
            environment=environment,
            tags=tags,
            as_user=as_user and store.identity_based,
        )
        return self._put(plan, build)

    def _check_machines(self) -> bool:
        """Whether jobs there have no identity of their own. Raises UsageError where there are no such machines."""
        if self.settings.instance_type is not None:
            read_size(self.client, self.settings)
            return True
        cluster = self._cluster()
        kind = str(cluster.type).lower()
        if kind != "amlcompute":
            raise UsageError(
                [f"--compute {self.settings.compute}: is no cluster but of the kind {kind}."],
                "Name a cluster, or make one: msggan-aml provision --compute NAME",
            )
        identity = getattr(cluster, "identity", None)
        return identity is None or str(identity.type).lower() == "none"

    def _cluster(self) -> Any:
        name = self.settings.compute
        cluster = read_cluster(self.client, name)
        if cluster is None:
            where = self.client.workspace.workspace_name
            raise UsageError(
                [f"No cluster {name!r} in workspace {where!r}."],
                "Make it: msggan-aml provision. Or train serverless: --instance-type SIZE",
            )
        return cluster

    def _begun(self, spec: RunSpec, store: Store) -> Begun | None:
        """The configurations of a run that has begun, None for a new one. Raises RunFolderError for another one."""
        folder = run_folder(store.datastore, spec.name)
        with self.client.errors(f"Looking into {folder.uri}"):
            content = store.read(f"{folder.path}config.json")
        if content is None:
            return None
        with TemporaryDirectory(prefix="msggan-config-") as name:
            here = RunFolder(Path(name) / spec.name)
            here.path.mkdir()
            here.config.write_bytes(content)
            stored, continued = here.load_config(), here.continued(spec.config)
        return Begun(stored, continued) if stored and continued else None

    def _is_trained(self, run: RunJobs, begun: Begun, store: Store) -> bool:
        """Whether the run has a checkpoint as far as it is asked to train, and no job would change what it is."""
        if run.newest is None or not (run.newest.status == "Completed" or begun.continued.kimg < begun.stored.kimg):
            return False
        folder = run_folder(store.datastore, run.run)
        with self.client.errors(f"Looking into {folder.uri}"):
            names = [blob.name for blob in store.walk(f"{folder.path}checkpoints/")]
        reached = [int(stem) for stem, _, kind in (name.partition(".") for name in names) if kind == "json"]
        return max(reached, default=-1) >= 1000 * begun.continued.kimg

    def _put(self, plan: JobPlan, build: Build) -> Any:
        """Sends the job. After an error it is looked for: there is one job, or none, or who reads it knows no more."""
        try:
            # The SDK prints notes to itself there.
            with self.client.errors(f"Submitting {plan.name}"), redirect_stderr(StringIO()):
                return self.client.ml.jobs.create_or_update(build(plan))
        except MsgganError as error:
            job = self._look_for(plan, error)
            if job is not None:
                return job
            error.message += " No job was made."
            raise
        except (KeyboardInterrupt, Terminated) as stop:
            message = f"Stopped while {plan.name} was being submitted: it may exist. {how_to_look(plan.spec.name)}"
            raise stopped(type(stop), message) from None

    def _look_for(self, plan: JobPlan, error: MsgganError) -> Any | None:
        """The job, if it was made although the answer was an error or none came. Raises UncertainError if unknown."""
        try:
            job = get_job(self.client, plan.name)
        except MsgganError as second:
            raise UncertainError(
                f"{error.message} {plan.name} may exist: {second.message}", how_to_look(plan.spec.name)
            ) from error
        if job is None:
            return None
        if run_of(job) == plan.spec.name and job.tags.get(CONFIGURATION_TAG) == plan.tags[CONFIGURATION_TAG]:
            return job
        raise UsageError(
            [f"{plan.name}: another command has just submitted a job of this name."], how_to_follow(plan.spec.name)
        )


def planned_job(settings: Settings, spec: RunSpec, also: Sequence[str] = ()) -> JobPlan:
    """The job that `Submission.send` would make. Asks nobody: what only the service knows stands as `TO_RESOLVE`."""
    datastore = settings.datastore or TO_RESOLVE.format("the workspace's default datastore")
    data = planned_data(str(spec.data), datastore)
    return build_plan(
        settings,
        spec,
        data,
        name=spec.name,
        datastore=datastore,
        code=TO_RESOLVE.format("the snapshot of the msggan package"),
        environment=TO_RESOLVE.format(f"the environment {settings.environment}"),
        tags=build_tags(spec.name, configuration_hash(spec, data, also), Path.cwd()),
    )


def build_plan(
    settings: Settings,
    spec: RunSpec,
    data: JobData,
    *,
    name: str,
    datastore: str,
    code: str,
    environment: str,
    tags: dict[str, str],
    as_user: bool = False,
) -> JobPlan:
    """The job of a run, as the settings would have it."""
    serverless = settings.instance_type is not None
    return JobPlan(
        name=name,
        spec=spec,
        data=data,
        run_folder=run_folder(datastore, spec.name),
        code=code,
        environment=environment,
        compute=None if serverless else settings.compute,
        instance_type=settings.instance_type,
        low_priority=settings.low_priority,
        timeout_hours=settings.timeout_hours,
        experiment=settings.experiment,
        tags=tags,
        as_user=as_user,
    )


def refuse_if_running(run: RunJobs) -> None:
    if run.goes_on:
        raise UsageError([f"{run.run}: is running already, as job {run.jobs[-1].name}."], how_to_follow(run.run))


def is_done(run: RunJobs, configuration: str) -> bool:
    """Whether the run's newest job has completed just what is asked."""
    newest = run.newest
    return newest is not None and newest.status == "Completed" and newest.tags.get(CONFIGURATION_TAG) == configuration


def how_to_follow(run: str) -> str:
    return f"Follow it: msggan-aml logs {run} --follow. Stop it: msggan-aml cancel {run}. Or give another --name."


def how_to_look(run: str) -> str:
    return f"Look: msggan-aml status {run}. The same command again makes no second job."
