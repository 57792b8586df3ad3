"""The run history service: a job's status, logs, outputs and artifacts."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from . import bodies, hosts
from .cloud import Cloud
from .jobs import find_job, output_uri_of
from .jobs_state import Job
from .messages import Reply, Request, ServiceError, json_reply
from .routing import WORKSPACE, Routes
from .runner import artifact_location
from .shapes import boolean, list_of, record, text

routes = Routes()
HISTORY = "/history/v1.0" + WORKSPACE
LARGEST_PAGE = 50  # of a run's children
CHANGED_RUN = record(
    runId=text(), displayName=text(), description=text(), tags=bodies.STRINGS, properties=bodies.STRINGS, hidden=boolean
)
ARTIFACTS = HISTORY + "/experiments/{experiment}/runs/{run}/artifacts"


@routes.add("GET", HISTORY + "/runs/{run}", hosts.API)
def get_run(cloud: Cloud, request: Request, run: str, **where: str) -> Reply:
    return json_reply(metadata(cloud, find_job(cloud, run)))


@routes.add("PATCH", HISTORY + "/experiments/{experiment}/runs/{run}", hosts.API)
def change_run(cloud: Cloud, request: Request, run: str, **where: str) -> Reply:
    """The SDK calls this before it submits a job that exists already."""
    sent = request.json
    bodies.check(CHANGED_RUN, sent)
    job = find_job(cloud, run)
    for name in ("displayName", "description"):
        if sent.get(name) is not None:
            job.properties[name] = sent[name]
    if sent.get("hidden") is not None:  # how the SDK archives a job
        job.properties["isArchived"] = sent["hidden"]
    job.add_tags(sent.get("tags") or {})
    job.properties["tags"] = {**(job.properties.get("tags") or {}), **(sent.get("tags") or {})}
    return json_reply(metadata(cloud, job))


@routes.add("GET", HISTORY + "/runs/{run}/details", hosts.API)
def get_details(cloud: Cloud, request: Request, run: str, **where: str) -> Reply:
    job = find_job(cloud, run)
    waiting = cloud.queue_reason is not None and job.status == "Queued"
    return json_reply(
        {
            "runId": job.name,
            "target": (job.properties.get("computeId") or "serverless").split("/")[-1],
            **used_compute(cloud, job),
            "status": job.status,
            "startTimeUtc": job.started,
            "endTimeUtc": job.ended,
            "error": {"error": job.error} if job.error else None,
            "warnings": [{"source": "Scheduler", "message": cloud.queue_reason}] if waiting else [],
            "tags": job.tags,
            "properties": job.all_properties,
            "inputDatasets": [],
            "outputDatasets": [],
            "logFiles": log_files(cloud, job),
        }
    )


@routes.add("GET", HISTORY + "/runs/{run}/children", hosts.API)
def list_children(cloud: Cloud, request: Request, run: str, **where: str) -> Reply:
    """Newest first. The next page is given by a continuation token, which the SDK does not follow."""
    query = {name.removeprefix("$").lower(): value for name, value in request.query.items()}
    bodies.check(record(**{"api-version": text(), "top": text(r"[1-9]\d*"), "continuationtoken": text(r"\d+")}), query)
    trials = cloud.trials(find_job(cloud, run).name)
    end = int(query.get("continuationtoken", len(trials)))
    start = max(end - min(LARGEST_PAGE, cloud.page_size, int(query.get("top", LARGEST_PAGE))), 0)
    children = [metadata(cloud, trial) for trial in reversed(trials[start:end])]
    return json_reply({"value": children, "continuationToken": str(start) if start else None, "nextLink": None})


@routes.add("POST", HISTORY + "/rundata", hosts.API)
def run_data(cloud: Cloud, request: Request, **where: str) -> Reply:
    job = find_job(cloud, request.json["runId"])
    return json_reply({"runMetadata": metadata(cloud, job), "runDefinition": None, "jobSpecification": None})


def metadata(cloud: Cloud, job: Job) -> dict[str, Any]:
    outputs = {
        name: {"assetId": output_asset_id(job, name), "type": "uri_folder"}
        for name in job.properties.get("outputs") or {}
    }
    return {
        "runId": job.name,
        "runUuid": job.name,
        "parentRunId": job.parent,
        "rootRunId": job.parent or job.name,
        "experimentId": job.experiment,
        "status": job.status,
        "displayName": job.properties.get("displayName") or job.name,
        "createdUtc": job.created,
        "startTimeUtc": job.started,
        "endTimeUtc": job.ended,
        "error": {"error": job.error} if job.error else None,
        "tags": job.tags,
        "properties": job.all_properties,
        "target": (job.properties.get("computeId") or "serverless").split("/")[-1],
        **used_compute(cloud, job),
        "runType": "azureml.sdk." + job.properties["jobType"].lower(),
        "computeRequest": {"nodeCount": 1},
        "inputs": {},
        "outputs": outputs,
    }


def used_compute(cloud: Cloud, job: Job) -> dict[str, Any]:
    """The machine of a job that has started, and for how long, as far as the service tells."""
    if not cloud.tells_compute or job.started is None or job.properties["jobType"] == "Sweep":
        return {}
    target = (job.properties.get("computeId") or "serverless").split("/")[-1]
    resources = job.properties.get("resources") or {}
    nested = cloud.computes.get(target, {}).get("properties", {}).get("properties", {})
    compute = {
        "target": target,
        "targetType": "amlcompute",
        "vmSize": nested.get("vmSize") or resources.get("instanceType"),
        "instanceCount": resources.get("instanceCount") or 1,
        "priority": nested.get("vmPriority") or "Dedicated",
    }
    ended = datetime.fromisoformat(job.ended.replace("Z", "+00:00")) if job.ended else datetime.now(timezone.utc)
    seconds = (ended - datetime.fromisoformat(job.started.replace("Z", "+00:00"))).total_seconds()
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}.{seconds % 1 * 1e7:07.0f}"
    return {"compute": compute, "computeDuration": f"{days}.{clock}" if days else clock}


def output_asset_id(job: Job, output: str) -> str:
    return f"azureml://locations/eastus/workspaces/local/data/azureml_{job.name}_output_data_{output}/versions/1"


@routes.add("POST", "/data/v1.0" + WORKSPACE + "/dataversion/batchGetResolvedUris", hosts.API)
def resolve_uris(cloud: Cloud, request: Request, **where: str) -> Reply:
    sent = request.json
    bodies.check(record("values", values=list_of(text())), sent)
    known = {
        output_asset_id(job, name): output_uri_of(cloud, job, name)
        for job in list(cloud.jobs.values())
        for name in job.properties.get("outputs") or {}
    }
    found = {asset: {"uri": known[asset], "type": "uri_folder"} for asset in sent["values"] if asset in known}
    return json_reply({"values": found})


def log_files(cloud: Cloud, job: Job) -> dict[str, str]:
    """Maps the name of each log to a URL that is valid for one day."""
    location = artifact_location(cloud, job.name)
    found = {}
    for blob, name in location.files(cloud.blobs):
        if name.split("/")[0] in ("user_logs", "system_logs", "azureml-logs", "logs"):
            found[name] = cloud.blobs.signed_blob_url(location.account, location.container, blob)
    return found


# Artifacts, as azureml-mlflow writes and reads them


@routes.add("GET", ARTIFACTS, hosts.API)
def list_artifacts(cloud: Cloud, request: Request, run: str, **where: str) -> Reply:
    location = artifact_location(cloud, find_job(cloud, run).name)
    return json_reply({"value": [artifact(run, name) for _, name in location.files(cloud.blobs)]})


@routes.add("POST", ARTIFACTS + "/batch/metadata", hosts.API)
def create_artifacts(cloud: Cloud, request: Request, run: str, **where: str) -> Reply:
    sent = request.json
    bodies.check(record("paths", paths=list_of(record("path", path=text(r"[^/].*")))), sent)
    find_job(cloud, run)
    names = [given["path"] for given in sent["paths"]]
    return json_reply(
        {
            "artifacts": {name: artifact(run, name) for name in names},
            "artifactContentInformation": {name: content(cloud, run, name, "rcw") for name in names},
            "errors": {},
        }
    )


@routes.add("GET", ARTIFACTS + "/contentinfo", hosts.API)
def artifact_content(cloud: Cloud, request: Request, run: str, **where: str) -> Reply:
    name = request.query.get("path", "")
    location = artifact_location(cloud, find_job(cloud, run).name)
    if not any(known == name for _, known in location.files(cloud.blobs)):
        raise ServiceError(404, "NotFound", f"The artifact {name} of run {run} was not found.")
    return json_reply(content(cloud, run, name, "r"))


def artifact(run: str, name: str) -> dict[str, Any]:
    return {
        "artifactId": f"ExperimentRun/dcid.{run}/{name}",
        "origin": "ExperimentRun",
        "container": f"dcid.{run}",
        "path": name,
        "etag": None,
    }


def content(cloud: Cloud, run: str, name: str, permission: str) -> dict[str, Any]:
    location = artifact_location(cloud, run)
    url = cloud.blobs.signed_blob_url(location.account, location.container, location.below(name), permission)
    return {"contentUri": url, "origin": "ExperimentRun", "container": f"dcid.{run}", "path": name}


def artifact_uri(cloud: Cloud, job: Job) -> str:
    return f"azureml://{cloud.api_host}/mlflow/v2.0{cloud.scope}/experiments/{job.experiment}/runs/{job.name}/artifacts"
