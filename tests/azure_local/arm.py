"""Azure Resource Manager's response formats: resources, pages of lists, and asynchronous operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .cloud import REGION, Cloud, now
from .messages import Reply, Request, ServiceError, json_reply
from .routing import Routes

routes = Routes()
OPERATIONS = "/subscriptions/{subscription}/providers/Microsoft.MachineLearningServices/locations/{location}"
SOON = {"retry-after-ms": "100"}  # with Retry-After: 0 the client waits for its default of 30 s


def resource(
    cloud: Cloud, kind: str, name: str, properties: dict[str, Any], created: str | None = None
) -> dict[str, Any]:
    """The envelope of a resource. `kind` is as in the path: "environments/NAME/versions" for a version."""
    words = kind.split("/")
    return {
        "id": f"{cloud.scope}/{kind}/{name}",
        "name": name,
        "type": "Microsoft.MachineLearningServices/workspaces/" + "/".join(words[::2]),
        "properties": properties,
        "systemData": {
            "createdAt": created or now(),
            "createdBy": "a person",
            "createdByType": "User",
            "lastModifiedAt": created or now(),
            "lastModifiedBy": "a person",
            "lastModifiedByType": "User",
        },
    }


def page(cloud: Cloud, request: Request, items: Sequence[dict[str, Any]]) -> Reply:
    """One page of a list, with the link to the next page."""
    start = int(request.query.get("$skip", "0"))
    body: dict[str, Any] = {"value": list(items[start : start + cloud.page_size])}
    if start + cloud.page_size < len(items):
        query = {**dict(parse_qsl(request.raw_query)), "$skip": str(start + cloud.page_size)}
        body["nextLink"] = f"https://{request.host}{request.path}?{urlencode(query)}"
    return json_reply(body)


def accepted(cloud: Cloud, body: Any = None, status: int = 201, *, how: str = "Azure-AsyncOperation") -> Reply:
    """The response to an asynchronous operation: the client polls the URL in the header `how` until it is done."""
    number = next(cloud.counter)
    base = OPERATIONS.format(subscription=cloud.subscription, location=REGION)
    kind = "mfeOperationResults" if how == "Location" else "computeOperationsStatus"
    url = f"https://{cloud.hosts.management}{base}/{kind}/{number}?api-version=2023-04-01"
    headers = {how: url, **SOON}
    return json_reply(body, status, headers) if body is not None else Reply(status, b"", headers)


@routes.add("GET", OPERATIONS + "/computeOperationsStatus/{number}")
def operation_status(cloud: Cloud, request: Request, number: str, **where: str) -> Reply:
    return json_reply({"id": number, "name": number, "status": "Succeeded"})


@routes.add("GET", OPERATIONS + "/mfeOperationResults/{number}")
def operation_result(cloud: Cloud, request: Request, number: str, **where: str) -> Reply:
    return Reply(204)


def missing(kind: str, name: str) -> ServiceError:
    return ServiceError(404, "ResourceNotFound", f"{kind} {name} was not found.")
