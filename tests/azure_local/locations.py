"""Resolves URIs to blobs: azureml:// paths, data assets, and https URLs of blobs."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from .blobs import BlobLocation
from .cloud import Cloud, account_key

DATASTORE = re.compile(
    r"azureml://(?:subscriptions/[^/]+/resource[Gg]roups/[^/]+/(?:providers/[^/]+/)?workspaces/(?P<workspace>[^/]+)/)?"
    r"datastores/(?P<store>[^/]+)(?:/paths)?/(?P<path>.*)"
)
ASSET = re.compile(
    r"(?:azureml:)?/?/?(?:subscriptions/.+/workspaces/(?P<workspace>[^/]+)/)?data/(?P<name>[^/]+)/versions/(?P<version>[^/]+)"
)
REGISTRY_ASSET = re.compile(
    r"azureml://registries/(?P<registry>[^/]+)/data/(?P<name>[^/]+)/versions/(?P<version>[^/]+)"
)
# wasbs://CONTAINER@ACCOUNT.blob.… and abfss://FILESYSTEM@ACCOUNT.dfs.…
WITH_CONTAINER_FIRST = re.compile(r"(?:wasbs|abfss)://(?P<container>[^@/]+)@(?P<host>[^/]+)/(?P<path>.*)")
SERVICE, USER, COMPUTE = "service", "user", "compute"  # whose identity reads what no credential opens


class LocationError(Exception):
    """A location that the job cannot read or write; the message becomes the job's error."""


def find_location(cloud: Cloud, uri: str, identity: str | None = SERVICE) -> BlobLocation:
    """Raises LocationError if there is no such datastore or asset, or its account denies access.

    identity: of the job, SERVICE, USER, COMPUTE or None: it has none.
    """
    if match := DATASTORE.fullmatch(uri):
        owner = workspace_of(cloud, match["workspace"])
        return location_in_datastore(owner, match["store"], unquote(match["path"]), identity)
    if match := REGISTRY_ASSET.fullmatch(uri):
        return found_asset(cloud, cloud.registry_data.get((match["registry"], match["name"], match["version"])), uri)
    if match := ASSET.fullmatch(uri):
        owner = workspace_of(cloud, match["workspace"])
        asset = owner.data.get((match["name"], match["version"]))
        return found_asset(owner, asset.properties["dataUri"] if asset else None, uri, identity)
    if match := WITH_CONTAINER_FIRST.fullmatch(uri):
        place = BlobLocation(match["host"].split(".")[0], match["container"], unquote(match["path"]))
        return opened(cloud, place, "None", identity)
    split = urlsplit(uri)
    if split.scheme == "https" and re.fullmatch(r"[a-z0-9]+\.(blob|dfs)\..+", split.netloc):
        container, _, path = split.path.lstrip("/").partition("/")
        return opened(cloud, BlobLocation(split.netloc.split(".")[0], container, unquote(path)), "None", identity)
    raise LocationError(f"The local Azure cannot resolve {uri}")


def workspace_of(cloud: Cloud, name: str | None) -> Cloud:
    """The workspace that a URI names, or the job's own."""
    if name in (None, cloud.workspace):
        return cloud
    if name not in cloud.workspaces:
        raise LocationError(f"ScriptExecution.StreamAccess.NotFound: there is no workspace {name}")
    return cloud.workspaces[name]


def found_asset(cloud: Cloud, data_uri: str | None, uri: str, identity: str | None = SERVICE) -> BlobLocation:
    if data_uri is None:
        raise LocationError(f"Data asset {uri} was not found.")
    return find_location(cloud, data_uri, identity)


def location_in_datastore(cloud: Cloud, store: str, path: str, identity: str | None) -> BlobLocation:
    found = cloud.datastores.get(store)
    if found is None:
        raise LocationError(f"Datastore {store} was not found.")
    location = BlobLocation(found["accountName"], found.get("containerName") or found["filesystem"], path)
    credentials = found["credentials"]
    kind = credentials["credentialsType"]
    if kind == "AccountKey" and credentials["secrets"]["key"] != account_key(found["accountName"]):
        raise LocationError(f"ScriptExecution.StreamAccess.Authentication: the key of datastore {store} is wrong.")
    return opened(cloud, location, kind, identity)


def opened(cloud: Cloud, location: BlobLocation, credentials: str, identity: str | None) -> BlobLocation:
    """The location, if its account exists and accepts this kind of credential, or this identity where there is none."""
    if location.account not in cloud.blobs.keys:
        raise LocationError(f"No such host is known: {location.account}.blob.core.windows.net")
    if credentials in ("AccountKey", "Sas") and not cloud.shared_keys:
        raise LocationError("KeyBasedAuthenticationNotPermitted: key based authentication is not permitted.")
    if credentials == "None" and (location.account, location.container) not in cloud.public_containers:
        if identity is None:
            raise LocationError("ScriptExecution.StreamAccess.Authentication: the job has no identity to read with.")
        if (cloud.compute_blob_role if identity == COMPUTE else cloud.blob_role) is None:
            raise LocationError("ScriptExecution.StreamAccess.Authentication: AuthorizationPermissionMismatch")
    if not cloud.blobs.exists(location.account, location.container):
        if location.account == cloud.account:
            cloud.blobs.container(location.account, location.container)
        else:
            raise LocationError(f"ContainerNotFound: {location.account}/{location.container}")
    return location
