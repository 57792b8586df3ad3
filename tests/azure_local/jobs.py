"""Jobs: validated, started, listed, cancelled and deleted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from . import bodies, runner, sweeps
from .arm import accepted, missing, page, resource
from .assets import environment_exists
from .cloud import Cloud, now
from .jobs_state import ENDED, Job
from .messages import Reply, Request, ServiceError, json_reply
from .routing import WORKSPACE, Routes
from .shapes import mapping_of, text
from .sweep_rules import wrong_sweep

routes = Routes()
JOBS = WORKSPACE + "/jobs"


@routes.add("GET", JOBS)
def list_jobs(cloud: Cloud, request: Request, **where: str) -> Reply:
    """Newest first, without the trials of sweeps."""
    bodies.check(mapping_of(text(), r"api-version|\$skip|listViewType|jobType|tag"), request.query)
    view = request.query.get("listViewType", "ActiveOnly")
    jobs = [job for job in reversed(list(cloud.jobs.values())) if listed(job, request.query, view)]
    return page(cloud, request, [job_resource(cloud, job) for job in jobs])


def listed(job: Job, query: dict[str, str], view: str) -> bool:
    if job.parent is not None:
        return False
    archived = bool(job.properties.get("isArchived"))
    if view != "All" and archived != (view == "ArchivedOnly"):
        return False
    if query.get("jobType") and query["jobType"] != job.properties["jobType"]:
        return False
    name, equals, value = query.get("tag", "").partition("=")
    tags = job.properties.get("tags") or {}
    return not name or (name in tags and (not equals or tags[name] == value))


@routes.add("GET", JOBS + "/{name}")
def get_job(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    return json_reply(job_resource(cloud, find_job(cloud, name)))


@routes.add("PUT", JOBS + "/{name}")
def put_job(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    sent = request.json
    bodies.check(bodies.JOBS, sent)
    properties = {key: value for key, value in sent["properties"].items() if value is not None}
    if properties["jobType"] == "Sweep" and cloud.sweep_resources != "accept":
        sent_resources = properties.pop("resources", None)
        if sent_resources and cloud.sweep_resources == "refuse":
            raise ServiceError(400, "ValidationError", "body.properties.resources: is unknown")
    with cloud.lock:
        if name in cloud.jobs:
            return change_job(cloud, cloud.jobs[name], properties)
        bodies.refuse(wrong_job(cloud, name, properties))
        is_sweep = properties["jobType"] == "Sweep"
        if is_sweep:
            sweeps.refuse_unknown(properties)
        job = Job(name, properties, properties.get("experimentName", "Default"), now())
        job.tags = dict(properties.get("tags") or {})
        cloud.jobs[name] = job
    accepted_body = job_resource(cloud, job)
    (sweeps if is_sweep else runner).start(cloud, job)
    return json_reply(accepted_body, 201)


def change_job(cloud: Cloud, job: Job, wanted: dict[str, Any]) -> Reply:
    """Applies the properties of an existing job that can be updated; any other difference is a conflict."""
    may_change = {"tags", "displayName", "description", "isArchived", "properties"}
    read_only = {"status", "services"}
    known = job_resource(cloud, job)["properties"]
    keys = (wanted.keys() | job.properties.keys()) - read_only
    differing = {key for key in keys if wanted.get(key) not in (job.properties.get(key), known.get(key))}
    if differing - may_change:
        raise ServiceError(
            409, "JobPropertyImmutable", f"A job {job.name} exists; its {', '.join(sorted(differing))} differ."
        )
    job.properties.update({key: wanted[key] for key in may_change if key in wanted})
    job.add_tags(wanted.get("tags") or {})
    return json_reply(job_resource(cloud, job))


@routes.add("POST", JOBS + "/{name}/cancel")
def cancel_job(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    job = find_job(cloud, name)
    if job.status in ENDED:
        raise ServiceError(400, "JobAlreadyEnded", f"The job {name} is {job.status}: it cannot be cancelled.")
    runner.cancel(job)
    return accepted(cloud, status=202, how="Location")


@routes.add("DELETE", JOBS + "/{name}")
def delete_job(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    job = find_job(cloud, name)
    if job.status not in ENDED:
        raise ServiceError(409, "JobNotEnded", f"The job {name} is {job.status}: only a job that has ended is deleted.")
    for gone in (*cloud.trials(name), job):
        del cloud.jobs[gone.name]
    return accepted(cloud, status=202, how="Location")


def find_job(cloud: Cloud, name: str) -> Job:
    if name not in cloud.jobs:
        raise missing("Job", name)
    return cloud.jobs[name]


def wrong_job(cloud: Cloud, name: str, wanted: dict[str, Any]) -> Iterator[str]:
    """All reasons why the service rejects this job."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}", name):
        yield f"{name!r} is not a legal job name"
    for output in (wanted.get("outputs") or {}).values():
        if output["jobOutputType"] != "uri_folder" or output.get("mode") == "Direct":
            raise ServiceError(501, "NotImplementedHere", f"The local Azure does not know the output {output}")
    inputs = dict(wanted.get("inputs") or {})
    work = wanted
    if wanted["jobType"] == "Sweep":
        yield from wrong_sweep(wanted)
        work = wanted["trial"]
        yield from bodies.wrong_placeholders(
            re.sub(
                r"\$\{\{search_space\.(\w+)\}\}",
                lambda m: "" if m[1] in wanted["searchSpace"] else m[0],
                work["command"],
            ),
            inputs,
            wanted.get("outputs") or {},
        )
    else:
        yield from bodies.wrong_placeholders(work["command"], inputs, wanted.get("outputs") or {})
    if not environment_exists(cloud, work["environmentId"]):
        yield f"the environment {work['environmentId']} was not found"
    code = re.search(r"/codes/([^/]+)/versions/([^/]+)$", work.get("codeId") or "")
    if work.get("codeId") and (code is None or (code[1], code[2]) not in cloud.codes):
        yield f"the code {work['codeId']} was not found"
    yield from wrong_compute(cloud, wanted, work.get("resources") or wanted.get("resources") or {})


def wrong_compute(cloud: Cloud, wanted: dict[str, Any], resources: dict[str, Any]) -> Iterator[str]:
    compute = wanted.get("computeId")
    if compute:
        name = compute.split("/")[-1]
        if name not in cloud.computes:
            yield f"the compute {name} was not found"
        elif cloud.computes[name]["properties"]["computeType"] == "AmlCompute":
            most = cloud.computes[name]["properties"]["properties"]["scaleSettings"]["maxNodeCount"]
            if (resources.get("instanceCount") or 1) > most:
                yield f"{resources['instanceCount']} nodes are asked for, and {name} has at most {most}"
    elif not resources.get("instanceType"):
        yield "without a compute, resources.instanceType is needed"
    elif cloud.size(resources["instanceType"]) is None:
        yield f"the VM size {resources['instanceType']} is not supported"
    if compute and wanted.get("queueSettings", {}).get("jobTier") not in (None, "Null"):
        yield "queueSettings are for serverless compute"


def job_resource(cloud: Cloud, job: Job) -> dict[str, Any]:
    studio = f"https://{cloud.hosts.studio}/runs/{job.name}?wsid={cloud.scope}"
    own = job.properties.get("services") or {}
    services = {
        **{name: {**service, "status": job.status} for name, service in own.items()},
        "Tracking": {"endpoint": cloud.tracking_uri, "jobServiceType": "Tracking"},
        "Studio": {"endpoint": studio, "jobServiceType": "Studio"},
    }
    outputs = {
        name: {**given, "uri": runner.output_uri(job.name, name, given), "mode": given.get("mode") or "ReadWriteMount"}
        for name, given in (job.properties.get("outputs") or {}).items()
    }
    properties = {
        "displayName": job.name,
        "isArchived": False,
        "inputs": {},
        **job.properties,
        "tags": {**(job.properties.get("tags") or {}), **job.tags},
        "properties": job.all_properties,
        "experimentName": job.experiment,
        "status": job.status,
        "services": services,
        "outputs": outputs,
    }
    return resource(cloud, "jobs", job.name, properties, job.created)


def output_uri_of(cloud: Cloud, job: Job, name: str) -> str:
    """The long form of an output's URI, as the data plane returns it."""
    short = runner.output_uri(job.name, name, job.properties["outputs"][name])
    return short.replace(
        "azureml://datastores/",
        f"azureml://subscriptions/{cloud.subscription}/resourcegroups/{cloud.group}"
        f"/workspaces/{cloud.workspace}/datastores/",
    )
