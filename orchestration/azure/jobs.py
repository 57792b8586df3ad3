"""A run as a job of Azure ML: its body, its names and its tags. Makes no requests."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from azure.ai.ml import Input, Output, command
from azure.ai.ml.entities import (
    Command,
    JupyterLabJobService,
    ManagedIdentityConfiguration,
    QueueSettings,
    SshJobService,
    TensorBoardJobService,
    UserIdentityConfiguration,
    VsCodeJobService,
)

from msggan.errors import UsageError
from msggan.tracking.metrics_log import EVENTS_VARIABLE
from orchestration.azure.blobs import PROJECT_FOLDER
from orchestration.data_source import DatastorePath
from orchestration.pairs import KEY_VAULT, MAX_TAGS, SERVICE_TAGS
from orchestration.settings import Settings
from orchestration.spec import RunSpec

RUN_TAG = "msggan.run"
SWEEP_TAG = "msggan.sweep"  # a sweep has both tags
CONFIGURATION_TAG = "msggan.configuration"

# A job's input and output.
DATA_INPUT = "data"
INIT_INPUT = "init"
RUN_OUTPUT = "run"

RUNS_FOLDER = f"{PROJECT_FOLDER}/runs"  # in the datastore

# In double quotes: a path may contain spaces, and may come as a shell variable.
DATA_PLACEHOLDER = f"${{{{inputs.{DATA_INPUT}}}}}"
INIT_PLACEHOLDER = f"${{{{inputs.{INIT_INPUT}}}}}"
RUN_PLACEHOLDER = f"${{{{outputs.{RUN_OUTPUT}}}}}"

# Azure ML's default is 2 GiB, which several loader processes and NCCL exceed.
SHARED_MEMORY = "8g"
VAULT_READER = "key_vault.py"  # in the snapshot
ENVIRONMENT_VARIABLES = {"PYTHONUNBUFFERED": "1"}  # each line of the log is visible as soon as it is written
# Keeps what was read of a mounted input; Microsoft's page on data in jobs advises it for images read more than once.
MOUNT_VARIABLES = {"DATASET_MOUNT_BLOCK_BASED_CACHE_ENABLED": "true"}

GIT_PROPERTIES = {"msggan.git_commit": "mlflow.source.git.commit", "msggan.git_dirty": "azureml.git.dirty"}
MAX_HOURS_AT_LOW_PRIORITY = 168  # on dedicated machines 504, the range of the setting
# Stands for what only the service knows, in what --dry-run prints.
TO_RESOLVE = "<resolved-at-submit: {}>"
MODE_TO_RESOLVE = TO_RESOLVE.format("Download, or ReadOnlyMount if there are many images or large ones")
GIT_TIMEOUT_S = 5

Kind = Literal["uri_file", "uri_folder"]


@dataclass(frozen=True)
class JobData:
    """The images that the job reads: their URI, and whether it is of a file or a folder.

    has_credential: whether their datastore holds a credential, so that no identity is needed; None: not known yet.
    asset_id: the resource ID of a data asset, which a job's body has in place of its URI. size: in bytes; None: not
    known, for the reason `unsized`. mode: download, mount or `MODE_TO_RESOLVE`.
    """

    uri: str
    kind: Kind
    has_credential: bool | None = None
    asset_id: str | None = None
    size: int | None = None
    unsized: str = "their size is not known"
    mode: str = "download"


@dataclass(frozen=True)
class JobPlan:
    """All that a job consists of. datastore: for its run folder. code, environment: IDs of a snapshot and environment.

    identity: as `job_identity` returns it. init: the weights that the run starts from, None for random ones.
    """

    name: str
    spec: RunSpec
    data: JobData
    datastore: str
    code: str
    environment: str
    settings: Settings
    tags: Mapping[str, str] = field(default_factory=dict)
    identity: str | None = None
    init: JobData | None = None

    def command(self, run_dir: str) -> list[str]:
        """The command of the run. run_dir: a placeholder, possibly with shell variables."""
        init_file = INIT_PLACEHOLDER if self.init else ""
        return self.spec.command(data=DATA_PLACEHOLDER, run_dir=run_dir, init_file=init_file)

    @property
    def run_folder(self) -> DatastorePath:
        return run_folder(self.datastore, self.spec.name)

    @property
    def compute(self) -> str | None:
        """The name of the cluster, None for serverless."""
        return self.settings.compute if self.settings.instance_type is None else None


# --- The body ---------------------------------------------------------------------------------------------------------


def build_job(plan: JobPlan) -> Command:
    """The job for the SDK. Raises UsageError for what the service would refuse after the upload."""
    problems = plan_problems(plan)
    if problems:
        raise UsageError(problems)
    settings, serverless, size = plan.settings, plan.compute is None, plan.settings.instance_type
    return command(
        name=plan.name,
        display_name=plan.name,
        description=settings.description,
        experiment_name=settings.experiment,
        code=plan.code,
        command=command_line(plan),
        environment=plan.environment,
        environment_variables=environment_variables(plan),
        compute=plan.compute,
        instance_type=TO_RESOLVE.format(f"the first of {size} with quota") if size and "," in size else size,
        instance_count=1 if serverless else None,
        shm_size=SHARED_MEMORY,
        timeout=seconds(settings.timeout_hours),
        inputs={name: build_input(data) for name, data in ((DATA_INPUT, plan.data), (INIT_INPUT, plan.init)) if data},
        outputs={RUN_OUTPUT: Output(type="uri_folder", path=plan.run_folder.uri, mode="rw_mount")},
        tags={**settings.tags, **plan.tags},
        # The commit under the names that the portal shows; without them the SDK would add the repository's URL.
        properties={name: plan.tags[tag] for tag, name in GIT_PROPERTIES.items() if tag in plan.tags},
        queue_settings=QueueSettings(job_tier="spot") if serverless and settings.low_priority else None,
        identity=build_identity(plan.identity),
        services=build_services(settings) or None,
    )


def build_body(plan: JobPlan, scope: str) -> dict[str, Any]:
    """The request body for `build_job`. scope: the workspace's resource ID."""
    return rest_body(build_job(plan)._to_job(), plan, scope)


def build_input(data: JobData) -> Input:
    mode = "ro_mount" if data.mode == "mount" else "download"
    return Input(type=data.kind, path=data.asset_id or data.uri, mode=mode)


def rest_body(job: Any, plan: JobPlan, scope: str) -> dict[str, Any]:
    """The request body for a job of the SDK."""
    if plan.compute is not None:
        job.compute = f"{scope}/computes/{plan.compute}"
    body: dict[str, Any] = job._to_rest_object().as_dict()
    if plan.identity == IDENTITY_TO_RESOLVE:
        body["properties"]["identity"] = {"identityType": IDENTITY_TO_RESOLVE}
    if plan.data.mode == MODE_TO_RESOLVE:
        body["properties"]["inputs"][DATA_INPUT]["mode"] = MODE_TO_RESOLVE
    return {"properties": body["properties"]}


def environment_variables(plan: JobPlan) -> dict[str, str]:
    """The variables of a job, without those that Azure ML sets."""
    events = {EVENTS_VARIABLE: EVENTS_FOLDER} if "tensorboard" in (plan.settings.services or "").split(",") else {}
    mount = MOUNT_VARIABLES if plan.data.mode == "mount" else {}
    return {**ENVIRONMENT_VARIABLES, **events, **mount, **plan.settings.env}


def reads_secrets(settings: Settings) -> bool:
    """Whether a variable has the address of a secret in place of its value.

    The job reads it as Microsoft's page on secrets in jobs describes: see `key_vault`. `secretsConfiguration` of a job,
    which no page describes and the SDK lacks, is not used.
    """
    return any(value.startswith(KEY_VAULT) for value in settings.env.values())


def command_line(plan: JobPlan, run_dir: str = RUN_PLACEHOLDER) -> str:
    """The command of the run for the job's shell. run_dir: as for `JobPlan.command`."""
    args = plan.command(run_dir)
    args = ["python", VAULT_READER, *args] if reads_secrets(plan.settings) else args
    expanded = {DATA_PLACEHOLDER, INIT_PLACEHOLDER, run_dir}
    return " ".join(f'"{arg}"' if arg in expanded else shlex.quote(arg) for arg in args)


def seconds(hours: float) -> int:
    """A time limit as the service takes it."""
    return max(1, round(hours * 3600))


def plan_problems(plan: JobPlan) -> list[str]:
    """What the SDK does not check, and the service checks only after everything is uploaded."""
    settings = plan.settings
    problems = time_limit_problems(settings, low_priority=settings.low_priority)
    own, others = len(plan.tags) + 1, len(plan.settings.tags)  # a sweep has one more
    if own + others > MAX_TAGS:
        problems.append(f"--tag: there are {others} tags; a job may have {MAX_TAGS}, of which {own} are msggan's own.")
    return problems


def time_limit_problems(settings: Settings, *, low_priority: bool) -> list[str]:
    """What is wrong with the time limit of a job on such machines."""
    hours = settings.timeout_hours
    if not low_priority or hours <= MAX_HOURS_AT_LOW_PRIORITY:
        return []
    return [
        f"timeout_hours {hours:g} ({settings.source('timeout_hours')}): a job at low priority runs for "
        f"{MAX_HOURS_AT_LOW_PRIORITY} hours (7 days) at most; the same command again resumes it."
    ]


def job_name(run: str, number: int) -> str:
    """The name of a run's job, counted from 1: NAME, NAME-2, …"""
    return run if number == 1 else f"{run}-{number}"


def run_folder(datastore: str, run: str) -> DatastorePath:
    return DatastorePath(datastore, f"{RUNS_FOLDER}/{run}/")


# --- Identity ---------------------------------------------------------------------------------------------------------

USER_IDENTITY = "UserIdentity"
IDENTITY_TO_RESOLVE = TO_RESOLVE.format(
    f"none, or {USER_IDENTITY} if a datastore has no credential and the cluster no identity"
)


def job_identity(
    has_credential: Iterable[bool | None], machines: str | None, *, serverless: bool = False
) -> str | None:
    """The identity of a job: None, `USER_IDENTITY`, `IDENTITY_TO_RESOLVE` or the ID of a managed identity.

    A job has one identity for all of its inputs and outputs; where a datastore has a credential, that is used instead.

    | read and written with         | cluster with identity | without         | serverless      | with `identity` ID   |
    |-------------------------------|-----------------------|-----------------|-----------------|----------------------|
    | credentials of datastores     | None                  | None            | None            | ID                   |
    | an identity, at least in part | None: the cluster's   | the submitter's | the submitter's | ID                   |

    has_credential: of the images and of the run folder; None: not known yet; False for secrets in a key vault.
    machines: as the setting `identity` has it, of the cluster that exists or of serverless machines, whose own
    identity ("system") the service does not use; None: not known yet.
    """
    known = list(has_credential)
    if serverless and machines not in (None, "none", "system"):
        return machines
    if all(known) or (not serverless and machines not in (None, "none")):
        return None
    if False in known and (serverless or machines == "none"):
        return USER_IDENTITY
    return IDENTITY_TO_RESOLVE


def build_identity(identity: str | None) -> UserIdentityConfiguration | ManagedIdentityConfiguration | None:
    """The identity for the SDK."""
    if identity == USER_IDENTITY:
        return UserIdentityConfiguration()
    if identity is None or identity == IDENTITY_TO_RESOLVE:
        return None
    return ManagedIdentityConfiguration(resource_id=identity)


# --- Services ---------------------------------------------------------------------------------------------------------

SERVICES = {
    "ssh": SshJobService,
    "vscode": VsCodeJobService,
    "jupyter": JupyterLabJobService,
    "tensorboard": TensorBoardJobService,
}
EVENTS_FOLDER = "tensorboard"  # in the job's working folder: it ends with the machine, and is written anew on the next
PUBLIC_KEY = re.compile(r"(ssh-(rsa|ed25519)|ecdsa-sha2-\S+) [A-Za-z0-9+/=]+( .*)?")


def build_services(settings: Settings) -> dict[str, Any]:
    """How to enter the job, by name."""
    names = settings.services.split(",") if settings.services else []
    options = {"tensorboard": {"log_dir": EVENTS_FOLDER}}
    if "ssh" in names:
        options["ssh"] = {"ssh_public_keys": read_public_key(str(settings.ssh_key))}
    return {name: SERVICES[name](**options.get(name, {})) for name in names}


def read_public_key(path: str) -> str:
    """The one public key in a file. Raises UsageError; what the file contains is not shown."""
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError([f"--ssh-key {path}: cannot be read."], "Create a key: ssh-keygen -t ed25519") from error
    if "PRIVATE KEY" in key:
        raise UsageError([f"--ssh-key {path}: is a private key, which is not sent anywhere. Use {path}.pub."])
    if not PUBLIC_KEY.fullmatch(key):
        raise UsageError([f"--ssh-key {path}: is not one public key of OpenSSH, such as the line of id_ed25519.pub."])
    return key


def own_services(job: Any) -> dict[str, Any]:
    """The services that a job was submitted with; the service adds links to the studio and to MLflow."""
    kinds = tuple(SERVICES.values())
    return {name: service for name, service in (job.services or {}).items() if isinstance(service, kinds)}


def connect_command(job: str, settings: Settings) -> str:
    """The command that opens a shell on the first machine of a running job."""
    key = settings.ssh_key.removesuffix(".pub") if settings.ssh_key else "~/.ssh/id_ed25519"
    workspace = settings.workspace
    where = (
        ["--workspace-name", workspace.workspace_name, "--resource-group", workspace.resource_group]
        if workspace
        else []
    )
    return shlex.join(
        ["az", "ml", "job", "connect-ssh", "--name", job, *where, "--node-index", "0", "--private-key-file-path", key]
    )


# --- YAML -------------------------------------------------------------------------------------------------------------

# What the service adds to a job; neither is part of what was sent.
ADDED_BY_THE_SERVICE = ("creation_context", "id", "status", "services")


def as_yaml(job: Any) -> str:
    """A job from the service as `az ml job create --file` takes it, with what was sent and nothing that was added."""
    job = job._to_job() if hasattr(job, "_to_job") else job
    content = {key: value for key, value in job._to_dict().items() if key not in ADDED_BY_THE_SERVICE}
    names = set(GIT_PROPERTIES.values())
    content["properties"] = {name: value for name, value in (job.properties or {}).items() if name in names}
    content["tags"] = {name: value for name, value in (job.tags or {}).items() if not name.startswith(SERVICE_TAGS)}
    services = own_services(job)
    if services:
        sent = {name: {"type": service.type} for name, service in services.items()}
        for name, service in services.items():
            if isinstance(service, SshJobService):
                sent[name]["ssh_public_keys"] = service.ssh_public_keys
            if isinstance(service, TensorBoardJobService):
                sent[name]["log_dir"] = service.log_dir
        content["services"] = sent
    text = yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False, allow_unicode=True, width=110)
    return f"# Submit it again under another name: az ml job create --file FILE --set name=NAME\n{text}"


# --- Tags -------------------------------------------------------------------------------------------------------------


def build_tags(run: str, configuration: str, folder: Path) -> dict[str, str]:
    """The tags of a job: its run, its configuration, the package's version, and the commit checked out in `folder`.

    Without git, or outside of a checkout, the commit is left out.
    """
    tags = {RUN_TAG: run, CONFIGURATION_TAG: configuration, "msggan.version": version("msggan")}
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return tags
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return tags | {"msggan.git_commit": commit, "msggan.git_dirty": str(changes != "").lower()}


def _git(folder: Path, *args: str) -> str | None:
    """What git prints, None if it fails, is not installed or takes too long."""
    try:
        process = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), *args],  # noqa: S607 - the user's git
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


def configuration_hash(spec: RunSpec, data: JobData, extra: Sequence[str] = ()) -> str:
    """A hash of the command and the images, whatever their path on this machine. extra: further arguments."""
    configuration = {"command": [*spec.command(data=data.uri, run_dir=""), *extra], "name": spec.name}
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]
