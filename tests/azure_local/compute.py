"""Compute clusters: created, updated within the service's limits, listed and deleted."""

from __future__ import annotations

import json
import re
from typing import Any

from . import bodies
from .arm import accepted, missing, page, resource
from .cloud import REGION, Cloud, now
from .jobs_state import Job
from .messages import Reply, Request, ServiceError, json_reply
from .routing import WORKSPACE, Routes
from .workspace import quota

routes = Routes()
COMPUTES = WORKSPACE + "/computes"


@routes.add("GET", COMPUTES)
def list_computes(cloud: Cloud, request: Request, **where: str) -> Reply:
    return page(cloud, request, [with_nodes(cloud, name, cloud.computes[name]) for name in sorted(cloud.computes)])


@routes.add("GET", COMPUTES + "/{name}")
def get_compute(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    return json_reply(with_queue(cloud, with_nodes(cloud, name, find_compute(cloud, name))))


@routes.add("PUT", COMPUTES + "/{name}")
def put_compute(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    sent = request.json
    bodies.check(bodies.COMPUTE, sent)
    wanted = sent["properties"]["properties"]
    bodies.refuse(wrong_cluster(cloud, name, wanted))
    check_policy(cloud, name, sent.get("tags") or {})
    there = cloud.computes.get(name)
    check_quota(cloud, wanted, there, sent.get("location") or REGION)
    if there is not None and there["properties"]["computeType"] != "AmlCompute":
        raise ServiceError(
            400,
            "ComputeTypeMismatch",
            f"A compute '{name}' of type {there['properties']['computeType']} already exists.",
        )
    made = amlcompute(cloud, name, sent)
    if there is not None:  # like the service, ignores properties that cannot be updated
        for fixed in ("vmSize", "vmPriority"):
            made["properties"]["properties"][fixed] = there["properties"]["properties"][fixed]
        made["properties"]["createdOn"] = there["properties"]["createdOn"]
    cloud.computes[name] = made
    size = cloud.size(wanted["vmSize"])
    if wanted.get("vmPriority") == "LowPriority" and size is not None and not size.low_priority:
        message = f"The VM size {size.name} is not allowed for LowPriority. Please convert to Dedicated."
        cloud.cluster_errors[name] = ("UnsupportedVMSizeForLowPriority", message)
    if wanted["vmSize"] in cloud.out_of_capacity and made["properties"]["properties"]["scaleSettings"]["minNodeCount"]:
        cloud.cluster_errors[name] = ("OutOfCapacity", f"There is no capacity for {wanted['vmSize']}.")
    return accepted(cloud, made, 201 if there is None else 200)


@routes.add("DELETE", COMPUTES + "/{name}")
def delete_compute(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    if request.query.get("underlyingResourceAction") not in ("Delete", "Detach"):
        raise ServiceError(400, "MissingUnderlyingResourceAction", "underlyingResourceAction must be Delete or Detach.")
    find_compute(cloud, name)
    del cloud.computes[name]
    cloud.cluster_errors.pop(name, None)
    return accepted(cloud, status=202)


def find_compute(cloud: Cloud, name: str) -> dict[str, Any]:
    if name not in cloud.computes:
        raise missing("Compute", name)
    return cloud.computes[name]


def wrong_cluster(cloud: Cloud, name: str, wanted: dict[str, Any]) -> list[str]:
    complaints = []
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]", name):
        complaints.append(f"the name {name!r} must have 3 to 24 letters, digits and hyphens, a letter first")
    scale = wanted["scaleSettings"]
    if (scale.get("minNodeCount") or 0) > scale["maxNodeCount"]:
        complaints.append(f"minNodeCount {scale['minNodeCount']} is above maxNodeCount {scale['maxNodeCount']}")
    size = cloud.size(wanted["vmSize"])
    if size is None:
        complaints.append(f"the VM size {wanted['vmSize']} is not supported in {REGION}")
    elif wanted.get("vmPriority") == "LowPriority" and not size.low_priority and cloud.checks_low_priority:
        complaints.append(f"the VM size {size.name} has no low priority")
    return complaints


def check_policy(cloud: Cloud, name: str, tags: dict[str, str]) -> None:
    """A policy that requires tags is checked before the request reaches Azure ML."""
    if missing_tags := cloud.required_tags - tags.keys():
        at = f"/subscriptions/{cloud.subscription}/providers/Microsoft.Authorization/policyAssignments"
        policies = [
            {"policyAssignment": {"name": f"Require the tag {tag}", "id": f"{at}/require-{tag.replace(' ', '-')}"}}
            for tag in sorted(missing_tags)
        ]
        message = f"Resource '{name}' was disallowed by policy. Policy identifiers: '{json.dumps(policies)}'."
        raise ServiceError(403, "RequestDisallowedByPolicy", message)


def check_quota(cloud: Cloud, wanted: dict[str, Any], there: dict[str, Any] | None, location: str) -> None:
    """A new cluster needs quota for all its nodes, one that grows for those that are added."""
    size = cloud.size(wanted["vmSize"])
    assert size is not None
    existing = there["properties"]["properties"]["scaleSettings"]["maxNodeCount"] if there else 0
    needed = size.cores * (wanted["scaleSettings"]["maxNodeCount"] - existing)
    used, limit = cloud.cores_used.get(size.family, 0), quota(cloud, size.family, location)
    if needed > 0 and used + needed > limit:
        if cloud.quota_by_node:
            raise ServiceError(
                400,
                "ClusterMinNodesExceedCoreQuota",
                f"The specified subscription has a {size.family} vCPU quota of {limit} and cannot accomodate for at "
                f"least 1 requested managed compute nodes which maps to {size.cores} vCPUs.",
            )
        raise ServiceError(
            400,
            "ClusterCoreQuotaReached",
            "Operation results in exceeding quota limits of Core. "
            f"Maximum allowed: {limit}, Current in use: {used}, Additional requested: {needed}. "
            f"Family: {size.family}.",
        )


def amlcompute(cloud: Cloud, name: str, sent: dict[str, Any]) -> dict[str, Any]:
    wanted = sent["properties"]["properties"]
    scale = wanted["scaleSettings"]
    properties = {
        "osType": "Linux",
        "vmPriority": "Dedicated",
        "isolatedNetwork": False,
        "remoteLoginPortPublicAccess": "NotSpecified",
        "enableNodePublicIp": True,
        **{key: value for key, value in wanted.items() if value is not None},
        "scaleSettings": {
            "maxNodeCount": scale["maxNodeCount"],
            "minNodeCount": scale.get("minNodeCount") or 0,
            "nodeIdleTimeBeforeScaleDown": scale.get("nodeIdleTimeBeforeScaleDown") or "PT120S",
        },
        "allocationState": "Steady",
        "allocationStateTransitionTime": now(),
        "errors": None,
        "currentNodeCount": 0,
        "targetNodeCount": 0,
        "nodeStateCounts": dict.fromkeys(
            (f"{state}NodeCount" for state in ("preparing", "running", "idle", "unusable", "leaving", "preempted")), 0
        ),
    }
    made = resource(
        cloud,
        "computes",
        name,
        {
            "computeType": "AmlCompute",
            "computeLocation": sent["properties"].get("computeLocation") or REGION,
            "description": sent["properties"].get("description"),
            "provisioningState": "Succeeded",
            "provisioningErrors": None,
            "createdOn": now(),
            "modifiedOn": now(),
            "isAttachedCompute": False,
            "disableLocalAuth": sent["properties"].get("disableLocalAuth", False),
            "properties": properties,
        },
    )
    identity = sent.get("identity")
    if identity and "systemassigned" in identity["type"].lower():
        identity = {**identity, "principalId": cloud.object_id, "tenantId": cloud.tenant}
    return made | {"location": sent.get("location") or REGION, "tags": sent.get("tags") or {}, "identity": identity}


def compute_instance(cloud: Cloud, name: str) -> dict[str, Any]:
    """A compute instance, which occupies its name."""
    properties = {
        "computeType": "ComputeInstance",
        "computeLocation": REGION,
        "provisioningState": "Succeeded",
        "createdOn": now(),
        "modifiedOn": now(),
        "isAttachedCompute": False,
        "properties": {"vmSize": "Standard_DS3_v2", "state": "Running", "applicationSharingPolicy": "Personal"},
    }
    return resource(cloud, "computes", name, properties) | {"location": REGION, "tags": {}}


def with_nodes(cloud: Cloud, name: str, compute: dict[str, Any]) -> dict[str, Any]:
    """A cluster with its nodes: one for each job that runs on it, and those that are idle."""
    if compute["properties"]["computeType"] != "AmlCompute":
        return compute
    nested = compute["properties"]["properties"]
    busy = [job.status for job in list(cloud.jobs.values()) if runs_on(job, name)]
    preparing, running = busy.count("Preparing"), len(busy) - busy.count("Preparing")
    idle = cloud.idle_nodes.get(name, max(nested["scaleSettings"]["minNodeCount"] - len(busy), 0))
    counts = {"preparingNodeCount": preparing, "runningNodeCount": running, "idleNodeCount": idle}
    nodes = {"currentNodeCount": len(busy) + idle, "targetNodeCount": len(busy) + idle}
    nested = {**nested, **nodes, "nodeStateCounts": {**nested["nodeStateCounts"], **counts}}
    return {**compute, "properties": {**compute["properties"], "properties": nested}}


def runs_on(job: Job, cluster: str) -> bool:
    is_sweep = job.properties.get("jobType") == "Sweep"
    return is_sent_to(job, cluster) and not is_sweep and job.status in ("Preparing", "Running", "Finalizing")


def is_sent_to(job: Job, cluster: str) -> bool:
    return str(job.properties.get("computeId") or "").split("/")[-1] == cluster


def with_queue(cloud: Cloud, compute: dict[str, Any]) -> dict[str, Any]:
    """A cluster that cannot allocate nodes to a queued job reports the reason."""
    if compute["properties"]["computeType"] != "AmlCompute":
        return compute
    is_needed = any(job.status == "Queued" and is_sent_to(job, compute["name"]) for job in list(cloud.jobs.values()))
    reasons = [("AllocationFailed", cloud.queue_reason)] if cloud.queue_reason is not None and is_needed else []
    if compute["name"] in cloud.cluster_errors:
        reasons.append(cloud.cluster_errors[compute["name"]])
    if not reasons:
        return compute
    errors = [{"error": {"code": code, "message": message}} for code, message in reasons]
    nested = {**compute["properties"]["properties"], "errors": errors, "allocationState": "Resizing"}
    return {**compute, "properties": {**compute["properties"], "properties": nested}}
