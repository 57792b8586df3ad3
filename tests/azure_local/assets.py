"""Environments, data assets and code snapshots. The content of a version is immutable."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from . import bodies, hosts
from .arm import missing, page, resource
from .cloud import BLOB_CONTAINER, Cloud, Version, now
from .messages import Reply, Request, ServiceError, json_reply
from .routing import WORKSPACE, Routes
from .shapes import Shape

routes = Routes()
PUBLIC_REGISTRY = "azureml"
REGISTRIES = (
    "/mferp/managementfrontend/subscriptions/{subscription}/resource[Gg]roups/{group}"
    "/providers/Microsoft.MachineLearningServices/registries"
)
REGISTRY = f"{REGISTRIES}/{PUBLIC_REGISTRY}"
CURATED = "acpt-pytorch-2.8-cuda12.6"
MAY_CHANGE = {"tags", "description", "properties", "isArchived", "stage", "isAnonymous"}

Kept = dict[tuple[str, str], Version]


def serve_kind(
    kind: str, shape: Shape, kept_in: Callable[[Cloud], Kept], check: Callable[[dict[str, Any]], None]
) -> None:
    """Adds the routes of one kind of asset, such as "environments"."""
    container = f"{WORKSPACE}/{kind}/{{name}}"

    def version_resource(cloud: Cloud, version: Version) -> dict[str, Any]:
        return resource(cloud, f"{kind}/{version.name}/versions", version.version, version.properties, version.created)

    @routes.add("GET", container)
    def get_container(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
        versions = newest_first(kept_in(cloud), name)
        if not versions:
            raise missing(kind, name)
        return json_reply(resource(cloud, kind, name, container_properties(versions), versions[-1].created))

    @routes.add("GET", container + "/versions")
    def list_versions(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
        wanted_hash = request.query.get("hash")
        versions = kept_in(cloud).values() if wanted_hash else newest_first(kept_in(cloud), name)
        versions = [version for version in versions if is_in_view(version, request.query.get("listViewType"))]
        found = [
            version_resource(cloud, version) for version in versions if wanted_hash in (None, content_hash(version))
        ]
        return page(cloud, request, found[: int(request.query.get("$top") or len(found) or 1)])

    @routes.add("GET", container + "/versions/{version}")
    def get_version(cloud: Cloud, request: Request, name: str, version: str, **where: str) -> Reply:
        there = kept_in(cloud).get((name, version))
        if there is None:
            raise missing(kind, f"{name}:{version}")
        return json_reply(version_resource(cloud, there))

    @routes.add("PUT", container + "/versions/{version}")
    def put_version(cloud: Cloud, request: Request, name: str, version: str, **where: str) -> Reply:
        sent = request.json
        bodies.check(shape, sent)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", name) or not re.fullmatch(
            r"[A-Za-z0-9._-]{1,255}", version
        ):
            raise ServiceError(400, "InvalidAssetName", f"{name}:{version} is not a legal name and version.")
        given = {key: value for key, value in sent["properties"].items() if value is not None}
        check(given)
        with cloud.lock:
            there = kept_in(cloud).get((name, version))
            if there is not None and content(there.properties) != content(given):
                raise ServiceError(409, "AssetVersionExists", f"{name}:{version} already exists and cannot be changed.")
            made = there or Version(name, version, {}, now())
            made.properties = {"isAnonymous": False, "isArchived": False, **made.properties, **given}
            made.properties["provisioningState"] = "Succeeded"
            kept_in(cloud)[name, version] = made
        return json_reply(version_resource(cloud, made), 201 if there is None else 200)


def is_in_view(version: Version, view: str | None) -> bool:
    archived = bool(version.properties.get("isArchived"))
    return {"All": True, "ArchivedOnly": archived}.get(view or "ActiveOnly", not archived)


def content(properties: dict[str, Any]) -> dict[str, Any]:
    ignored = MAY_CHANGE | {"provisioningState", "environmentType"}
    return {key: value for key, value in properties.items() if key not in ignored}


def content_hash(version: Version) -> str | None:
    return (version.properties.get("properties") or {}).get("hash_sha256")


def newest_first(kept: Kept, name: str) -> list[Version]:
    return [version for (known, _), version in reversed(kept.items()) if known == name]


def container_properties(versions: list[Version]) -> dict[str, Any]:
    numbers = [int(version.version) for version in versions if version.version.isdigit()]
    return {
        "latestVersion": versions[0].version,
        "nextVersion": str(max(numbers, default=0) + 1),
        "isArchived": False,
        "tags": {},
        "properties": {},
    }


def check_environment(given: dict[str, Any]) -> None:
    if ("image" in given) == ("build" in given):
        raise ServiceError(400, "ValidationError", "An environment has either an image or a build context.")


def no_check(given: dict[str, Any]) -> None:
    """For kinds that the shape describes completely."""


serve_kind("environments", bodies.ENVIRONMENT, lambda cloud: cloud.environments, check_environment)
serve_kind("data", bodies.DATA, lambda cloud: cloud.data, no_check)
serve_kind("codes", bodies.CODE, lambda cloud: cloud.codes, no_check)


@routes.add("POST", WORKSPACE + "/codes/{name}/versions/{version}/startPendingUpload")
def start_pending_upload(cloud: Cloud, request: Request, name: str, version: str, **where: str) -> Reply:
    bodies.check(bodies.PENDING_UPLOAD, request.json)
    blob_uri = cloud.blobs.container_url(cloud.account, BLOB_CONTAINER)
    return json_reply(
        {
            "pendingUploadId": f"{name}-{version}",
            "pendingUploadType": "TemporaryBlobReference",
            "blobReferenceForConsumption": {
                "blobUri": blob_uri,
                "storageAccountArmId": f"{cloud.scope}/storageAccounts/{cloud.account}",
                "credential": {
                    "credentialType": "SAS",
                    "sasUri": cloud.blobs.signed_container_url(cloud.account, BLOB_CONTAINER),
                },
            },
        }
    )


# The public registry, which has the curated environments


@routes.add("GET", "/registrymanagement/v1.0/registries/{registry}/discovery", hosts.API)
def registry_discovery(cloud: Cloud, request: Request, registry: str) -> Reply:
    if registry != PUBLIC_REGISTRY and registry not in {known for known, _, _ in cloud.registry_data}:
        raise missing("Registry", registry)
    return json_reply(
        {
            "registryName": registry,
            "primaryRegion": "eastus",
            "regions": ["eastus"],
            "primaryRegionResourceProviderUri": f"https://{cloud.region_host}/",
            "subscriptionId": "00000000-0000-0000-0000-0000000a2e61",
            "resourceGroup": "registry-builtin",
        }
    )


def curated(cloud: Cloud, version: str) -> dict[str, Any]:
    image = cloud.curated_image and cloud.curated_image.format(version=version)
    made_from = {"image": image} if image else {"build": {"contextUri": "https://registry/context"}}
    return {
        "id": f"azureml://registries/azureml/environments/{CURATED}/versions/{version}",
        "name": version,
        "type": "Microsoft.MachineLearningServices/registries/environments/versions",
        "properties": {
            **made_from,
            "osType": "Linux",
            "environmentType": "Curated",
            "isAnonymous": False,
            "isArchived": False,
            "tags": {},
            "properties": {},
            "description": "PyTorch, made by Azure ML",
        },
        "systemData": {"createdAt": "2026-07-01T00:00:00Z", "createdBy": "Microsoft"},
    }


@routes.add("GET", REGISTRY + "/environments/{name}", hosts.API)
def curated_container(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    if name != CURATED:
        raise missing("environments", name)
    properties = {"latestVersion": cloud.curated_versions[-1], "isArchived": False, "tags": {}, "properties": {}}
    return json_reply({**curated(cloud, "0"), "name": name, "properties": properties})


@routes.add("GET", REGISTRY + "/environments/{name}/versions", hosts.API)
def curated_versions(cloud: Cloud, request: Request, name: str, **where: str) -> Reply:
    if name != CURATED:
        raise missing("environments", name)
    return json_reply({"value": [curated(cloud, version) for version in reversed(cloud.curated_versions)]})


@routes.add("GET", REGISTRY + "/environments/{name}/versions/{version}", hosts.API)
def curated_version(cloud: Cloud, request: Request, name: str, version: str, **where: str) -> Reply:
    if name != CURATED or version not in cloud.curated_versions:
        raise missing("environments", f"{name}:{version}")
    return json_reply(curated(cloud, version))


@routes.add("GET", REGISTRIES + "/{registry}/data/{name}/versions/{version}", hosts.API)
def registry_data(cloud: Cloud, request: Request, registry: str, name: str, version: str, **where: str) -> Reply:
    """A data asset of a registry, which keeps its own copy of the files."""
    if (registry, name, version) not in cloud.registry_data:
        raise missing("data", f"{name}:{version}")
    identifier = f"azureml://registries/{registry}/data/{name}/versions/{version}"
    properties = {"dataType": "uri_folder", "dataUri": cloud.registry_data[registry, name, version]}
    kind = "Microsoft.MachineLearningServices/registries/data/versions"
    return json_reply({"id": identifier, "name": version, "type": kind, "properties": properties})


def environment_exists(cloud: Cloud, environment_id: str) -> bool:
    """Accepts each of the forms in which a job can name its environment."""
    if match := re.fullmatch(
        r"azureml://registries/azureml/environments/([^/]+)/(versions|labels)/([^/]+)", environment_id
    ):
        known = cloud.curated_versions if match[2] == "versions" else ("latest",)
        return match[1] == CURATED and match[3] in known
    match = re.fullmatch(r"(?:azureml:/?/?)?.*/environments/([^/]+)/(versions|labels)/([^/]+)", environment_id)
    if match is None:
        return False
    if match[2] == "labels":
        return match[3] == "latest" and bool(newest_first(cloud.environments, match[1]))
    return (match[1], match[3]) in cloud.environments
