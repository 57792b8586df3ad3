"""Submit a run as a job: check, upload, send it once. An error says whether there may be a job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from azure.ai.ml.entities import AmlCompute
from azure.core.exceptions import HttpResponseError

import msggan
from msggan.commands.program import Terminated, stopped
from msggan.config import TrainConfig, decoding_options
from msggan.errors import MsgganError, UsageError
from msggan.runs.folder import RunFolder
from orchestration.azure.blobs import PROJECT_FOLDER, Store
from orchestration.azure.client import Client
from orchestration.azure.compute import identity_of, other_sizes, require_cluster, values_of
from orchestration.azure.data import ensure_data, plan_data, with_mode
from orchestration.azure.environment import NAME, ensure_job_environment, read_recipe
from orchestration.azure.history import RunJobs, environment_of, get_job, run_of
from orchestration.azure.initial import ensure_init, plan_init, without_init
from orchestration.azure.jobs import (
    CONFIGURATION_TAG,
    TO_RESOLVE,
    VAULT_READER,
    JobPlan,
    build_job,
    build_tags,
    configuration_hash,
    environment_variables,
    job_identity,
    reads_secrets,
    run_folder,
    time_limit_problems,
)
from orchestration.azure.records import forget_today, once_a_day
from orchestration.azure.sizes import serverless_size, size_named
from orchestration.errors import UncertainError
from orchestration.settings import Settings
from orchestration.spec import RunSpec

PACKAGE = "msggan"
CODE_FOLDER = f"{PROJECT_FOLDER}/code"  # in the workspace's default datastore
CONFLICT = 409


def planned_job(settings: Settings, scope: str, spec: RunSpec, extra: Sequence[str] = ()) -> JobPlan:
    """The job that `submit` would send. Makes no requests: what only the service knows is `TO_RESOLVE`.

    scope: the workspace's resource ID.
    """
    datastore = settings.datastore or TO_RESOLVE.format("the workspace's default datastore")
    data = plan_data(str(spec.data), datastore, scope, settings.data_mode)
    code = TO_RESOLVE.format("the snapshot of the msggan package")
    recipe = read_recipe(settings.environment)  # raises UsageError if it is not valid
    environment = TO_RESOLVE.format(f"the environment {settings.environment}, or that of the run's last job")
    if settings.source("environment") != "default" and not recipe.curated:
        environment = f"{scope}/environments/{NAME}/versions/{recipe.version}"
    tags = build_tags(spec.name, configuration_hash(spec, data, extra), Path.cwd())
    serverless = settings.instance_type is not None
    machines = settings.identity if serverless else None
    identity = job_identity([data.has_credential, None, not reads_secrets(settings)], machines, serverless=serverless)
    init = plan_init(spec, datastore)
    return JobPlan(spec.name, spec, data, datastore, code, environment, settings, tags, identity, init)


def as_plan(job: JobPlan, command: list[str], body: dict[str, Any], scope: str) -> dict[str, Any]:
    """What `submit --dry-run` prints for a job. command: for people. scope: the workspace's resource ID."""
    return {
        "target": "azure",
        "command": command,
        "env": environment_variables(job),
        "run_dir": job.run_folder.uri,
        "requests": [{"method": "PUT", "path": f"{scope}/jobs/{job.name}", "body": body}],
    }


def read_what_jobs_need(client: Client) -> None:
    """Reads the datastores and the cluster, which every job needs, side by side; the client keeps them."""
    stores = dict.fromkeys([client.settings.datastore, None])
    cluster = [partial(require_cluster, client)] if client.settings.instance_type is None else []
    client.read_together(*(partial(client.store, store) for store in stores), *cluster)


def submit(
    client: Client,
    spec: RunSpec,
    run: RunJobs,
    *,
    build: Callable[[JobPlan], Any] = build_job,
    extra: Sequence[str] = (),
    job_hours: float | None = None,
) -> RunJobs:
    """The run with its new job, or unchanged if nothing is left to train. Raises MsgganError.

    build(plan): the job for the SDK. extra: what the configuration contains beyond the run's own command. job_hours:
    the time limit, by default that of the settings.
    """
    refuse_if_running(run)
    settings, newest = client.settings, run.newest
    store = client.store(settings.datastore)
    started = _read_started(client, spec, store)
    if newest and started and _is_trained(client, run, *started, store):
        return run
    # First, because it is what may be refused. A run that has started does not need it any more.
    spec, init = (without_init(spec), None) if started else ensure_init(spec, store, client)
    serverless = settings.instance_type is not None
    if not serverless:
        cluster = _checked_cluster(client)
        machines, machine = identity_of(cluster), (str(cluster.size), str(cluster.location))
    else:
        machine = (serverless_size(client).name, str(client.about["location"]))
        machines, settings = settings.identity, replace(settings, instance_type=machine[0])
    # The environment may be refused: create it before a hundred thousand images are packed.
    is_resumed = newest is not None and (started is not None or run.is_sweep)
    environment = ensure_job_environment(client, environment_of(newest) if is_resumed else "")
    packed = spec
    if started:  # the images are packed as they were when the run started
        stored, _ = started
        packed = replace(spec, config=replace(spec.config, **decoding_options(stored)))
    data = with_mode(ensure_data(packed, store, client), client, lambda: size_named(client, *machine).disk_bytes)
    tags = build_tags(spec.name, configuration_hash(spec, data, extra), Path.cwd())
    if newest and newest.status == "Completed" and newest.tags.get(CONFIGURATION_TAG) == tags[CONFIGURATION_TAG]:
        return run
    code = ensure_code(client)
    settings = replace(settings, timeout_hours=job_hours or settings.timeout_hours)
    credentials = [data.has_credential, not store.identity_based, not reads_secrets(settings)]
    identity = job_identity(credentials, machines, serverless=serverless)
    plan = JobPlan(run.next_name, spec, data, store.datastore, code, environment, settings, tags, identity, init)
    job = _send(client, plan, build)
    client.reporter.info(f"Submitted job {job.name}: {job.studio_url or None}")
    return RunJobs(run.run, (*run.jobs, job))


def _checked_cluster(client: Client) -> AmlCompute:
    """The cluster to train on. Raises UsageError if it does not exist or differs from what is set."""
    settings, cluster = client.settings, require_cluster(client)
    if problems := time_limit_problems(settings, low_priority=values_of(cluster)["low_priority"]):
        raise UsageError(problems, "Set --timeout-hours 168.")
    for line in other_sizes(settings, cluster):
        client.reporter.info(line)
    return cluster


def refuse_if_running(run: RunJobs) -> None:
    if run.is_active:
        raise UsageError([f"{run.run}: already running as job {run.jobs[-1].name}."], _follow_hint(run.run))


def _read_started(client: Client, spec: RunSpec, store: Store) -> tuple[TrainConfig, TrainConfig] | None:
    """The configuration of a run that has started and the one that resumes it, None for a new run.

    Raises RunFolderError if they conflict.
    """
    folder = run_folder(store.datastore, spec.name)
    with client.errors(f"Reading {folder.uri}"):
        content = store.read(f"{folder.path}config.json")
    if content is None:
        return None
    with TemporaryDirectory(prefix="msggan-config-") as name:
        local = RunFolder(Path(name) / spec.name)
        local.path.mkdir()
        local.config.write_bytes(content)
        stored, resumed = local.load_config(), local.continued(spec.config)
    return (stored, resumed) if stored and resumed else None


def _is_trained(client: Client, run: RunJobs, stored: TrainConfig, resumed: TrainConfig, store: Store) -> bool:
    """Whether a checkpoint has as many images as the run is to see, so that a new job would change nothing."""
    if run.jobs[-1].status != "Completed" and resumed.kimg >= stored.kimg:
        return False
    folder = run_folder(store.datastore, run.run)
    with client.errors(f"Listing {folder.uri}"):
        names = [blob.name for blob in store.list_blobs(f"{folder.path}checkpoints/")]
    images = [int(stem) for stem, _, kind in (name.partition(".") for name in names) if kind == "json"]
    return max(images, default=-1) >= 1000 * resumed.kimg


# --- Code -------------------------------------------------------------------------------------------------------------


def build_snapshot() -> dict[str, bytes]:
    """The code of a job by path: the msggan package and what reads secrets. The same each time, byte for byte."""
    files = {VAULT_READER: (Path(__file__).parent / VAULT_READER).read_bytes()}
    for package in map(Path, msggan.__path__):
        for path in sorted(package.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                files[(PACKAGE / path.relative_to(package)).as_posix()] = path.read_bytes()
    # A job installs nothing: this is where Python finds the package's version there.
    metadata = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version(PACKAGE)}\n"
    files[f"{PACKAGE}-{version(PACKAGE)}.dist-info/METADATA"] = metadata.encode()
    return files


def ensure_code(client: Client) -> str:
    """Uploads and registers the snapshot, once for each content. Returns the ID by which a job refers to it."""
    files, store = build_snapshot(), client.store(None)
    size = sum(map(len, files.values()))
    client.reporter.info(f"Using the {PACKAGE} package as the job's code: {len(files)} files, {size / 1024:.0f} KiB.")
    with client.errors(f"Uploading {len(files)} files to the datastore {store.datastore}"):
        url = store.upload_files(CODE_FOLDER, files)
    number = hashlib.sha256(url.encode()).hexdigest()[:16]
    return once_a_day(client, f"code {number}", lambda: _register_code(client, url, number))


def _register_code(client: Client, url: str, number: str) -> str:
    code = f"{client.scope}/codes/{PACKAGE}/versions/{number}"
    properties = {"codeUri": url, "description": f"The {PACKAGE} package {version(PACKAGE)}"}
    with client.errors("Registering the code snapshot"):
        try:
            client.call("PUT", code, content={"properties": properties})
        except HttpResponseError as error:
            if error.status_code != CONFLICT:  # somebody else registered the same content at the same time
                raise
    return code


# --- Sending ----------------------------------------------------------------------------------------------------------


def _send(client: Client, plan: JobPlan, build: Callable[[JobPlan], Any]) -> Any:
    """Sends the job. After an error the job is looked up: it exists, or does not, or the error says that it may."""
    run = plan.spec.name
    try:
        with client.errors(f"Submitting {plan.name}"), redirect_stderr(StringIO()):  # the SDK prints debug notes there
            # The SDK takes a third of a second to validate what is built here, and what the service validates anyway.
            return client.ml.jobs.create_or_update(build(plan), skip_validation=True)
    except MsgganError as error:
        try:
            job = get_job(client, plan.name)
        except MsgganError as second:
            message = f"{error.message} The job {plan.name} may exist: {second.message}"
            raise UncertainError(message, status_hint(run)) from error
        if job is None:
            forget_today(client)  # its code or environment may have been deleted
            if "not found" in error.message:
                error.hint = "If it was deleted today, run the same command again, which creates it."
            error.message += " No job was submitted."
            raise
        if run_of(job) != run or job.tags.get(CONFIGURATION_TAG) != plan.tags[CONFIGURATION_TAG]:
            problem = f"{plan.name}: another command has just submitted a job of this name."
            raise UsageError([problem], _follow_hint(run)) from error
        return job
    except (KeyboardInterrupt, Terminated) as stop:
        message = f"Stopped while submitting {plan.name}: the job may exist. {status_hint(run)}"
        raise stopped(type(stop), message) from None


def _follow_hint(run: str) -> str:
    return f"Follow it: msggan-aml logs {run} --follow. Stop it: msggan-aml cancel {run}. Or use another --name."


def status_hint(run: str) -> str:
    return f"Check: msggan-aml status {run}. The same command again submits no second job."
