"""Online endpoints and their deployments: listed only, with those that a test adds."""

from __future__ import annotations

from typing import Any

from .arm import page, resource
from .cloud import REGION, Cloud, now
from .messages import Reply, Request
from .routing import WORKSPACE, Routes

routes = Routes()
ENDPOINTS = WORKSPACE + "/onlineEndpoints"


@routes.add("GET", ENDPOINTS)
def list_endpoints(cloud: Cloud, request: Request, **where: str) -> Reply:
    properties = {"authMode": "Key", "properties": {}, "provisioningState": "Succeeded", "traffic": {}}
    return page(cloud, request, [tracked(cloud, "onlineEndpoints", name, properties) for name in cloud.endpoints])


@routes.add("GET", ENDPOINTS + "/{endpoint}/deployments")
def list_deployments(cloud: Cloud, request: Request, endpoint: str, **where: str) -> Reply:
    deployments = [
        tracked(
            cloud,
            f"onlineEndpoints/{endpoint}/deployments",
            name,
            {"endpointComputeType": "Managed", "instanceType": size, "scaleSettings": {"scaleType": "Default"}},
        )
        | {"sku": {"name": "Default", "capacity": count}}
        for name, (size, count) in cloud.endpoints.get(endpoint, {}).items()
    ]
    return page(cloud, request, deployments)


def tracked(cloud: Cloud, kind: str, name: str, properties: dict[str, Any]) -> dict[str, Any]:
    return resource(cloud, kind, name, properties, now()) | {"location": REGION, "tags": {}}
