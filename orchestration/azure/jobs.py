"""What is a run as a job of Azure ML? Its body, its names, and what its states mean. Asks nobody."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from azure.ai.ml import Input, Output, command
from azure.ai.ml.entities import Command, QueueSettings, UserIdentityConfiguration

from msggan.errors import UsageError
from orchestration.data_source import DatastorePath
from orchestration.spec import RunSpec

RUN_TAG = "msggan.run"
SWEEP_TAG = "msggan.sweep"  # beside the other, which says whose name is taken
CONFIGURATION_TAG = "msggan.configuration"

# Where things lie in the datastore.
DATA_FOLDER = "msggan/data"
RUNS_FOLDER = "msggan/runs"

DATA_INPUT = "data"
RUN_OUTPUT = "run"
# In double quotes: a path may have spaces, and may come as a shell variable.
DATA_PLACEHOLDER = f"${{{{inputs.{DATA_INPUT}}}}}"
RUN_PLACEHOLDER = f"${{{{outputs.{RUN_OUTPUT}}}}}"

# Docker gives 2 GiB of shared memory unless asked, which several loader processes and NCCL outgrow.
SHARED_MEMORY = "8g"
ENVIRONMENT_VARIABLES = {"PYTHONUNBUFFERED": "1"}  # a line of the log is to be seen when it is written

LONGEST_TAG = 256
MOST_TAGS = 50

# The service's states → ours. One that is not here goes on: a run must not pass for ended while it costs money.
STATES = {
    "NotStarted": "queued",
    "Queued": "queued",
    "Provisioning": "queued",
    "Scheduled": "queued",
    "Paused": "queued",
    "Starting": "preparing",
    "Preparing": "preparing",
    "Running": "running",
    "Finalizing": "running",
    "CancelRequested": "running",
    "Completed": "completed",
    "Failed": "failed",
    "Canceled": "cancelled",
    "NotResponding": "interrupted",
}
ENDED = ("completed", "failed", "cancelled", "interrupted")


Kind = Literal["uri_file", "uri_folder"]


@dataclass(frozen=True)
class JobData:
    """What the job reads: an address, and whether it is of one file or of a folder."""

    uri: str
    kind: Kind


@dataclass(frozen=True)
class JobPlan:
    """Everything that a job is made of. code: a snapshot's id. environment: its id.

    compute: a cluster's name, None for serverless on machines of `instance_type`. as_user: the job reads and writes
    as who submits it.
    """

    name: str
    spec: RunSpec
    data: JobData
    run_folder: DatastorePath
    code: str
    environment: str
    compute: str | None
    instance_type: str | None
    low_priority: bool
    timeout_hours: float
    experiment: str
    tags: Mapping[str, str] = field(default_factory=dict)
    as_user: bool = False


def build_job(plan: JobPlan) -> Command:
    """The job as the SDK takes it. Raises UsageError for what the service would refuse after the upload."""
    problems = plan_problems(plan)
    if problems:
        raise UsageError(problems)
    serverless = plan.compute is None
    return command(
        name=plan.name,
        display_name=plan.name,
        experiment_name=plan.experiment,
        code=plan.code,
        command=command_line(plan.spec),
        environment=plan.environment,
        environment_variables=dict(ENVIRONMENT_VARIABLES),
        compute=plan.compute,
        instance_type=plan.instance_type if serverless else None,
        instance_count=1 if serverless else None,
        shm_size=SHARED_MEMORY,
        timeout=max(1, round(plan.timeout_hours * 3600)),
        inputs={DATA_INPUT: Input(type=plan.data.kind, path=plan.data.uri, mode="download")},
        outputs={RUN_OUTPUT: Output(type="uri_folder", path=plan.run_folder.uri, mode="rw_mount")},
        tags=dict(plan.tags),
        properties=dict(_git_properties(plan.tags)),
        queue_settings=QueueSettings(job_tier="spot") if serverless and plan.low_priority else None,
        identity=UserIdentityConfiguration() if plan.as_user else None,
    )


def build_body(plan: JobPlan, scope: str) -> dict[str, Any]:
    """The body that would be sent for `build_job`. scope: the workspace's path in the resource manager."""
    job = build_job(plan)._to_job()
    if plan.compute is not None:
        job.compute = f"{scope}/computes/{plan.compute}"
    body: dict[str, Any] = job._to_rest_object().as_dict()
    return {"properties": body["properties"]}


def command_line(spec: RunSpec, run_dir: str = RUN_PLACEHOLDER) -> str:
    """The command of the run, as the job's shell reads it. run_dir: a placeholder, and what the shell expands."""
    words = spec.command(data=DATA_PLACEHOLDER, run_dir=run_dir)
    places = {DATA_PLACEHOLDER, run_dir}
    return " ".join(f'"{word}"' if word in places else shlex.quote(word) for word in words)


def plan_problems(plan: JobPlan) -> list[str]:
    """What the SDK does not look at, and the service only when everything is uploaded."""
    problems = []
    if (plan.compute is None) == (plan.instance_type is None):
        problems.append("A job trains on --compute or, serverless, on machines of --instance-type: one of the two.")
    if plan.instance_type is not None and not re.fullmatch(r"[A-Za-z]+_[A-Za-z0-9_]+", plan.instance_type):
        problems.append(f"--instance-type {plan.instance_type}: is not a size such as Standard_NC4as_T4_v3.")
    if len(plan.tags) > MOST_TAGS or any(len(value) > LONGEST_TAG for value in plan.tags.values()):
        problems.append(f"A job may have {MOST_TAGS} tags of {LONGEST_TAG} characters.")
    return problems


# --- Names ------------------------------------------------------------------------------------------------------------


def job_name(run: str, number: int) -> str:
    """The name of a run's first, second … job: NAME, NAME-2 …"""
    return run if number == 1 else f"{run}-{number}"


def run_folder(datastore: str, run: str) -> DatastorePath:
    return DatastorePath(datastore, f"{RUNS_FOLDER}/{run}/")


def configuration_hash(spec: RunSpec, data: JobData, also: Sequence[str] = ()) -> str:
    """The same for the same command on the same images, whatever they are called here. also: what else was asked."""
    asked = {"command": [*spec.command(data=data.uri, run_dir=""), *also], "name": spec.name}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


# --- States -----------------------------------------------------------------------------------------------------------


def state_of(status: str) -> str:
    """Our word for the state of a job."""
    return STATES.get(status, "running")


def has_ended(status: str) -> bool:
    return state_of(status) in ENDED


def exit_code_of(error: str) -> int | None:
    """The exit code of the job's process, where the service's error tells it."""
    found = re.search(r"(?:status|exit) ?code:? ?(-?\d+)", error, re.IGNORECASE)
    return int(found[1]) if found else None


def is_timeout(error: str) -> bool:
    """Whether a job was ended because its time was up; the service calls it cancelled."""
    return (
        re.search(r"time ?limit|time ?out|timed out|max(imum)? ?(run|execution) ?(duration|time)", error, re.I)
        is not None
    )


def _git_properties(tags: Mapping[str, str]) -> dict[str, str]:
    """The checkout under the names that the portal shows. Without them the SDK would add the repository's address."""
    named = {"msggan.git_commit": "mlflow.source.git.commit", "msggan.git_dirty": "azureml.git.dirty"}
    return {there: tags[here] for here, there in named.items() if here in tags}
