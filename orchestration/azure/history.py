"""Jobs that were submitted: those of a run, and what the workspace's run history records of each.

The first job of a run is called NAME, those that continue it NAME-2, NAME-3, …; all of them have the tag `msggan.run`.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from azure.core.rest import HttpRequest

from msggan.errors import MsgganError, RunFolderError
from msggan.tracking.metrics_log import newest_values, reports_in
from orchestration.azure.blobs import Store
from orchestration.azure.client import Client
from orchestration.azure.jobs import DATA_INPUT, RUN_OUTPUT, RUN_TAG, SWEEP_TAG, job_name
from orchestration.data_source import DatastorePath, in_datastore

MAX_JOBS = 2000  # read for a list of runs
MAX_RUNS = 50  # listed without a limit
# What to do about errors that only a job has.
HINTS = {
    r"StreamAccess\.Authentication|Failed to mount": (
        "The identity of the job needs the role Storage Blob Data Contributor at the accounts of its run folder and "
        "images: that of the cluster, shown by `az ml compute show --name CLUSTER --query identity`, else your own."
    ),
    r"Failed to pull Docker image": (
        "The identity of the cluster, shown by `az ml compute show --name CLUSTER --query identity`, needs the role "
        "AcrPull at the workspace's container registry."
    ),
}
# The last few hundred reports: the newest value of every metric is among them, also of those measured now and then.
LAST_BYTES = 256 << 10
READ_CLUSTER_EVERY_S = 60  # while a job waits for its machines

# A duration as .NET writes it: days, hours, minutes and seconds.
DURATION = re.compile(r"(?:(\d+)\.)?(\d+):(\d+):(\d+(?:\.\d+)?)")

# The service's states → ours. An unknown one counts as running: a run that costs money must not pass for ended.
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


def state_of(status: str) -> str:
    """Our state for one of the service's."""
    return STATES.get(status, "running")


def has_ended(status: str) -> bool:
    return state_of(status) in ENDED


# --- The jobs of a run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunJobs:
    """The jobs of a run or of a sweep, the newest last, and the name for its next one.

    trial_folder: the run folder of a sweep's trial, whose job does not record it.
    """

    run: str
    jobs: tuple[Any, ...]
    next_name: str = ""
    trial_folder: DatastorePath | None = None

    @property
    def newest(self) -> Any | None:
        return self.jobs[-1] if self.jobs else None

    @property
    def is_sweep(self) -> bool:
        return self.newest is not None and is_sweep(self.newest)

    @property
    def is_active(self) -> bool:
        """Whether the newest job has not ended yet."""
        return self.newest is not None and not has_ended(self.newest.status)

    @property
    def folder(self) -> DatastorePath | None:
        """The run folder of the newest job, None if the job records none that can be read."""
        output = (self.newest.outputs or {}).get(RUN_OUTPUT) if self.newest is not None else None
        if self.trial_folder or output is None or not output.path:
            return self.trial_folder
        return in_datastore(f"{str(output.path).rstrip('/')}/")

    def open_folder(self, client: Client) -> tuple[Store, str]:
        """The container of the run folder, and its path there, with a slash at the end. Raises MsgganError."""
        if self.folder is None:
            raise RunFolderError(f"The jobs of {self.run} record no run folder.")
        return client.store(self.folder.datastore), self.folder.path


def find_jobs(client: Client, run: str) -> RunJobs:
    """The jobs of a run, empty if there is no such run. Jobs of those names with another tag are skipped."""
    found = []
    for number in itertools.count(1):
        job = get_job(client, job_name(run, number))
        if job is None:
            break
        if run_of(job) == run:
            found.append(job)
    return RunJobs(run, tuple(found), job_name(run, number))


def require_jobs(client: Client, run: str) -> RunJobs:
    """The jobs of a run or a sweep. Raises RunFolderError if there are none."""
    jobs = find_jobs(client, run)
    if jobs.newest is None:
        where = client.workspace.workspace_name
        raise RunFolderError(f"No run {run!r} in workspace {where}.", "List the runs: msggan-aml list")
    return jobs


def get_job(client: Client, name: str) -> Any | None:
    """The job of that name, None if it does not exist."""
    return client.find(f"Looking for the job {name}", lambda: client.ml.jobs.get(name))


def list_runs(client: Client, limit: int, *, sweeps: bool = False) -> tuple[list[RunJobs], bool]:
    """The newest runs, or sweeps, newest first, each with its jobs; and whether there are more.

    The service does not promise an order, so that jobs are read to the end, or up to `MAX_JOBS`.
    """
    by_run: dict[str, list[Any]] = {}
    with client.errors("Listing the jobs"):
        listed = client.ml.jobs.list(tag=SWEEP_TAG if sweeps else RUN_TAG)
        # The SDK gives None for a job that it cannot read; jobs of others may have a tag that contains ours.
        ours = (job for job in listed if job is not None and is_sweep(job) == sweeps and run_of(job))
        for job in itertools.islice(ours, MAX_JOBS):
            by_run.setdefault(run_of(job), []).append(job)
    runs = [RunJobs(run, tuple(sorted(jobs, key=created_at))) for run, jobs in by_run.items()]
    runs.sort(key=lambda run: created_at(run.jobs[-1]), reverse=True)
    return runs[:limit], len(runs) > limit or sum(map(len, by_run.values())) == MAX_JOBS


def run_of(job: Any) -> str:
    """The run that a job belongs to, empty for a job that is not ours."""
    return str((job.tags or {}).get(RUN_TAG, ""))


def is_sweep(job: Any) -> bool:
    return SWEEP_TAG in (job.tags or {})


def created_at(job: Any) -> str:
    """When a job was submitted, ISO 8601 in UTC to the second."""
    return str(job.creation_context.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"))


def data_of(job: Any) -> str:
    """The images of a job, as --data takes them."""
    images = (job.inputs or {}).get(DATA_INPUT)
    path = str(getattr(images, "path", None) or "PATH")
    is_asset = re.fullmatch(r"[\w.-]+:[\w.-]+|/subscriptions/.+", path)  # as the SDK writes it
    return f"azureml:{path}" if is_asset else path


def options_of(job: Any) -> list[str]:
    """The training options of a job, which its command has after the run folder."""
    words = shlex.split(getattr(job, "command", None) or "")
    return words[words.index("--run-dir") + 2 :] if "--run-dir" in words else []


def environment_of(job: Any) -> str:
    """The ID of a job's environment, of a sweep that of its trials; empty if the job records none."""
    return str((job.trial if is_sweep(job) else job).environment or "")


def read_progress(store: Store, folder: str) -> tuple[int | None, dict[str, float | None]]:
    """The number of images that a run is to see, None if unknown, and the newest value of each metric.

    folder: its run folder's path in the datastore, with a slash at the end.
    """
    metrics = newest_values(reports_in(store.read(f"{folder}metrics.jsonl", last_bytes=LAST_BYTES) or b""))
    try:
        return int(1000 * json.loads(store.read(f"{folder}config.json") or b"")["kimg"] + 0.5), metrics
    except (ValueError, KeyError, TypeError):
        return None, metrics


# --- The run history --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """The machines of a job: their cluster and size, empty where the service does not tell, and their hours so far."""

    cluster: str
    size: str
    low_priority: bool
    hours: float


@dataclass(frozen=True)
class Details:
    """A job as the run history records it. status: the service's state. logs: by name, a URL that is signed for hours.

    In a list of children the service leaves out logs and warnings.
    """

    status: str
    name: str = ""
    started: str | None = None
    ended: str | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()
    logs: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    machine: Machine | None = None

    @property
    def state(self) -> str:
        """Our state. The service calls a job that reached its time limit cancelled; here it has failed."""
        state = state_of(self.status)
        return "failed" if state == "cancelled" and self.timed_out else state

    @property
    def has_ended(self) -> bool:
        return has_ended(self.status)

    @property
    def ended_at(self) -> str | None:
        """When it ended, ISO 8601 in UTC to the second; None before."""
        return f"{self.ended[:19]}Z" if self.has_ended and self.ended else None

    @property
    def exit_code(self) -> int | None:
        """The exit code of the job's process, where the service's error contains it."""
        found = re.search(r"(?:status|exit) ?code:? ?(-?\d+)", self.error, re.IGNORECASE)
        return int(found[1]) if found else None

    @property
    def timed_out(self) -> bool:
        """Whether the error says that the job reached its time limit."""
        limit = r"time ?limit|time ?out|timed out|max(imum)? ?(run|execution) ?(duration|time)"
        return re.search(limit, self.error, re.IGNORECASE) is not None

    @property
    def reason(self) -> str:
        """Why the job waits or has failed, one reason per line; else empty."""
        if self.state == "queued":
            return "\n".join(self.warnings)
        if self.state != "failed":
            return ""
        exited = f"The process ended with exit code {self.exit_code}." if self.exit_code is not None else ""
        hints = (hint for pattern, hint in HINTS.items() if re.search(pattern, self.error))
        hint = "Increase --timeout-hours." if self.timed_out else next(hints, "")
        return "\n".join(filter(None, [exited, self.error.strip(), hint]))


def read_details(client: Client, job: str) -> Details:
    """The details of a job; of one that waits also the errors of its cluster. Raises MsgganError."""
    with client.errors(f"Reading the state of {job}"):
        response = _get(client, f"runs/{job}/details")
    details, cluster = build_details(response), response.get("target")
    if details.state != "queued" or not cluster:
        return details
    now = int(time.monotonic() // READ_CLUSTER_EVERY_S)
    errors = client.once(("errors of cluster", cluster, now), lambda: _cluster_errors(client, cluster))
    return replace(details, warnings=tuple(dict.fromkeys([*details.warnings, *filter(None, errors)])))


def _cluster_errors(client: Client, cluster: str) -> list[str]:
    """The errors of a cluster, none of what is not a cluster, such as the target of a serverless job."""
    try:
        return [message for _, message in client.cluster_errors(cluster)]
    except MsgganError:
        return []


def read_children(client: Client, job: str) -> list[Details]:
    """The jobs that a sweep job has started, in the order of their numbers. Raises MsgganError.

    The SDK's own list ends with its first page: it ignores the continuation token (azure-sdk-for-python, issue 32440).
    """
    found: dict[str, Details] = {}
    query: dict[str, str] = {}
    with client.errors(f"Listing the trials of {job}"):
        while True:
            page = _get(client, f"runs/{job}/children", **query)
            found |= {child.name: child for child in map(build_details, page.get("value") or [])}
            if not page.get("continuationToken"):
                return sorted(found.values(), key=lambda child: number_of(job, child.name))
            query = {"continuationtoken": page["continuationToken"]}


def _get(client: Client, path: str, **query: str) -> Any:
    url = f"{client.api_url}/history/v1.0{client.scope}/{path}"
    return client.send(HttpRequest("GET", url, params=query)).json()


def number_of(parent: str, child: str) -> int:
    """The number of a child, from 0: the children of NAME are NAME_0, NAME_1, …"""
    ending = child.removeprefix(f"{parent}_")
    return int(ending) if ending.isdecimal() else 0


def build_details(response: Mapping[str, Any]) -> Details:
    """The details in a response of the run history."""
    error = (response.get("error") or {}).get("error") or {}
    warnings = [str(warning.get("message") or "") for warning in response.get("warnings") or []]
    return Details(
        status=str(response.get("status") or ""),
        name=str(response.get("runId") or ""),
        started=response.get("startTimeUtc"),
        ended=response.get("endTimeUtc"),
        error=str(error.get("message") or ""),
        warnings=tuple(filter(None, warnings)),
        logs=response.get("logFiles") or {},
        tags=response.get("tags") or {},
        machine=build_machine(response),
    )


def build_machine(response: Mapping[str, Any]) -> Machine | None:
    """The machine of a job that has started, from a response of the run history; None before."""
    compute = response.get("compute") or {}
    machines = compute.get("instanceCount") or (response.get("computeRequest") or {}).get("nodeCount") or 1
    started, ended = response.get("startTimeUtc"), response.get("endTimeUtc")
    duration = DURATION.fullmatch(response.get("computeDuration") or "")
    if duration:
        days, hours, minutes, seconds = (float(part or 0) for part in duration.groups())
        total_hours = 24 * days + hours + minutes / 60 + seconds / 3600
    elif started:
        until = _time(ended) if ended else datetime.now(timezone.utc)
        total_hours = max(0.0, (until - _time(started)).total_seconds() / 3600)
    else:
        return None
    return Machine(
        str(compute.get("target") or response.get("target") or ""),
        str(compute.get("vmSize") or ""),
        "low" in str(compute.get("priority")).lower(),
        machines * total_hours,
    )


def _time(text: str) -> datetime:
    """A time of the service, which has up to seven digits after the second."""
    return datetime.fromisoformat(f"{text[:19]}+00:00")
