"""MLflow's REST API: jobs as runs, with metrics, parameters and tags within Azure's limits."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from . import bodies, hosts
from .cloud import Cloud, now
from .history import artifact_uri
from .jobs_state import Job, Metric
from .messages import Reply, Request, ServiceError, json_reply
from .routing import WORKSPACE, Routes
from .runner import experiment_id
from .shapes import anything, list_of, record, text

routes = Routes()
API = "/mlflow/v2.0" + WORKSPACE + "/api/2.0/mlflow"
STATUSES = {
    "Completed": "FINISHED",
    "Failed": "FAILED",
    "Canceled": "KILLED",
    "Running": "RUNNING",
    "Finalizing": "RUNNING",
}
MOST_METRIC_NAMES, MOST_ROWS, MOST_TAGS, LONGEST = 50, 250, 50, 1000
METRIC = record(
    "key value",
    key=bodies.NONEMPTY,
    value=anything,
    timestamp=anything,
    step=anything,
    dataset_name=text(),
    dataset_digest=text(),
    model_id=text(),
)

PAIR = record("key value", key=bodies.NONEMPTY, value=text())


def milliseconds(iso: str | None) -> int | None:
    return None if iso is None else int(datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp() * 1000)


def invalid(message: str) -> ServiceError:
    return ServiceError(400, "INVALID_PARAMETER_VALUE", message)


def run_of(cloud: Cloud, request: Request, given: dict[str, Any]) -> Job:
    name = given.get("run_id") or given.get("run_uuid")
    if not isinstance(name, str) or name not in cloud.jobs:
        raise ServiceError(404, "RESOURCE_DOES_NOT_EXIST", f"Run {name} was not found.")
    if request.method != "GET" and request.token.get("run", name) != name:
        raise ServiceError(403, "PERMISSION_DENIED", f"This token is not for run {name}.")
    return cloud.jobs[name]


@routes.add("GET", API + "/runs/get", hosts.API)
def get_run(cloud: Cloud, request: Request, **where: str) -> Reply:
    return json_reply({"run": run_resource(cloud, run_of(cloud, request, request.query))})


@routes.add("POST", API + "/runs/update", hosts.API)
def update_run(cloud: Cloud, request: Request, **where: str) -> Reply:
    """The service determines a job's status: the status that the process sends is ignored."""
    return json_reply({"run_info": info(cloud, run_of(cloud, request, request.json))})


@routes.add("POST", API + "/runs/log-metric", hosts.API)
def log_metric(cloud: Cloud, request: Request, **where: str) -> Reply:
    given = request.json
    job = run_of(cloud, request, given)
    keep(job, metrics=[without_run(given)])
    return json_reply({})


@routes.add("POST", API + "/runs/log-parameter", hosts.API)
def log_parameter(cloud: Cloud, request: Request, **where: str) -> Reply:
    given = request.json
    job = run_of(cloud, request, given)
    keep(job, parameters=[without_run(given)])
    return json_reply({})


@routes.add("POST", API + "/runs/set-tag", hosts.API)
def set_tag(cloud: Cloud, request: Request, **where: str) -> Reply:
    given = request.json
    job = run_of(cloud, request, given)
    keep(job, tags=[without_run(given)])
    return json_reply({})


@routes.add("POST", API + "/runs/delete-tag", hosts.API)
def delete_tag(cloud: Cloud, request: Request, **where: str) -> Reply:
    given = request.json
    run_of(cloud, request, given).tags.pop(given["key"], None)
    return json_reply({})


@routes.add("POST", API + "/runs/log-batch", hosts.API)
def log_batch(cloud: Cloud, request: Request, **where: str) -> Reply:
    given = request.json
    job = run_of(cloud, request, given)
    keep(job, given.get("metrics") or [], given.get("params") or [], given.get("tags") or [])
    return json_reply({})


@routes.add("GET", API + "/metrics/get-history", hosts.API)
def metric_history(cloud: Cloud, request: Request, **where: str) -> Reply:
    job = run_of(cloud, request, request.query)
    found = [vars(metric) for metric in job.metrics if metric.key == request.query["metric_key"]]
    return json_reply({"metrics": found})


@routes.add("GET", API + "/experiments/get", hosts.API)
def get_experiment(cloud: Cloud, request: Request, **where: str) -> Reply:
    return experiment_reply(cloud, lambda name: experiment_id(name) == request.query.get("experiment_id"))


@routes.add("GET", API + "/experiments/get-by-name", hosts.API)
def get_experiment_by_name(cloud: Cloud, request: Request, **where: str) -> Reply:
    return experiment_reply(cloud, lambda name: name == request.query.get("experiment_name"))


def experiment_reply(cloud: Cloud, wanted: Any) -> Reply:
    for job in list(cloud.jobs.values()):
        if wanted(job.experiment):
            return json_reply(
                {
                    "experiment": {
                        "experiment_id": experiment_id(job.experiment),
                        "name": job.experiment,
                        "artifact_location": "",
                        "lifecycle_stage": "active",
                    }
                }
            )
    raise ServiceError(404, "RESOURCE_DOES_NOT_EXIST", "The experiment was not found.")


@routes.add("POST", API + "/runs/search", hosts.API)
def search_runs(cloud: Cloud, request: Request, **where: str) -> Reply:
    """Searches by experiment; filters are not supported."""
    given = request.json
    if given.get("filter"):
        raise ServiceError(501, "NotImplementedHere", f"The local Azure does not know the filter {given['filter']!r}")
    wanted = set(given.get("experiment_ids") or [])
    runs = [
        run_resource(cloud, job)
        for job in reversed(list(cloud.jobs.values()))
        if experiment_id(job.experiment) in wanted
    ]
    return json_reply({"runs": runs})


def without_run(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in ("run_id", "run_uuid")}


def keep(
    job: Job,
    metrics: list[dict[str, Any]] = [],  # noqa: B006 - never changed
    parameters: list[dict[str, Any]] = [],  # noqa: B006
    tags: list[dict[str, Any]] = [],  # noqa: B006
) -> None:
    """Stores the whole batch or nothing: INVALID_PARAMETER_VALUE if it is malformed or exceeds a limit."""
    complaints = [
        *list_of(METRIC)(metrics, "metrics"),
        *list_of(PAIR)(parameters, "params"),
        *list_of(PAIR)(tags, "tags"),
    ]
    if complaints:
        raise invalid("; ".join(complaints))
    rows = len(metrics) + len(parameters) + len(tags)
    if rows > MOST_ROWS:
        raise invalid(f"A batch has {rows} rows, and may have {MOST_ROWS}.")
    with job.changed:
        names = {metric.key for metric in job.metrics} | {metric["key"] for metric in metrics}
        if len(names) > MOST_METRIC_NAMES:
            raise invalid(f"The run would have {len(names)} metric names, and may have {MOST_METRIC_NAMES}.")
        new_tags = {**job.tags, **{tag["key"]: tag["value"] for tag in tags}}
        if len(new_tags) > MOST_TAGS or any(len(pair["value"]) > LONGEST for pair in [*tags, *parameters]):
            raise invalid(f"A run may have {MOST_TAGS} tags, and a value {LONGEST} characters.")
        for parameter in parameters:
            known = job.parameters.get(parameter["key"], parameter["value"])
            if known != parameter["value"]:
                raise invalid(
                    f"Parameter {parameter['key']} is {known} already, and cannot become {parameter['value']}."
                )
        job.tags = new_tags
        job.parameters.update({parameter["key"]: parameter["value"] for parameter in parameters})
        job.metrics.extend(read_metric(metric) for metric in metrics)


def read_metric(given: dict[str, Any]) -> Metric:
    stamp = int(given.get("timestamp") or time.time() * 1000)
    return Metric(given["key"], float(given["value"]), stamp, int(given.get("step") or 0))


def run_resource(cloud: Cloud, job: Job) -> dict[str, Any]:
    latest: dict[str, Metric] = {}
    for metric in job.metrics:
        if metric.key not in latest or metric.step >= latest[metric.key].step:
            latest[metric.key] = metric
    parent = {} if job.parent is None else {"mlflow.parentRunId": job.parent}
    return {
        "info": info(cloud, job),
        "data": {
            "metrics": [vars(metric) for metric in latest.values()],
            "params": [{"key": key, "value": value} for key, value in job.parameters.items()],
            "tags": [{"key": key, "value": value} for key, value in (parent | job.tags).items()],
        },
    }


def info(cloud: Cloud, job: Job) -> dict[str, Any]:
    return {
        "run_id": job.name,
        "run_uuid": job.name,
        "run_name": job.properties.get("displayName") or job.name,
        "experiment_id": experiment_id(job.experiment),
        "user_id": cloud.object_id,
        "status": STATUSES.get(job.status, "SCHEDULED"),
        "start_time": milliseconds(job.started or now()),
        "end_time": milliseconds(job.ended),
        "artifact_uri": artifact_uri(cloud, job),
        "lifecycle_stage": "active",
    }
