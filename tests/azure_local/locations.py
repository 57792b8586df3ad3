"""Resolves URIs to blobs: azureml:// paths, data assets, and https URLs of blobs."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from .blobs import BlobLocation
from .cloud import Cloud, account_key

DATASTORE = re.compile(
    r"azureml://(?:subscriptions/[^/]+/resource[Gg]roups/[^/]+/(?:providers/[^/]+/)?workspaces/[^/]+/)?"
    r"datastores/(?P<store>[^/]+)(?:/paths)?/(?P<path>.*)"
)
ASSET = re.compile(
    r"(?:azureml:)?/?/?(?:subscriptions/.+/workspaces/[^/]+/)?data/(?P<name>[^/]+)/versions/(?P<version>[^/]+)"
)


class LocationError(Exception):
    """A location that the job cannot read or write; the message becomes the job's error."""


def find_location(cloud: Cloud, uri: str) -> BlobLocation:
    """Raises LocationError if there is no such datastore or asset, or its account denies access."""
    if match := DATASTORE.fullmatch(uri):
        return location_in_datastore(cloud, match["store"], unquote(match["path"]))
    if match := ASSET.fullmatch(uri):
        asset = cloud.data.get((match["name"], match["version"]))
        if asset is None:
            raise LocationError(f"Data asset {match['name']}:{match['version']} was not found.")
        return find_location(cloud, asset.properties["dataUri"])
    split = urlsplit(uri)
    if split.scheme == "https" and split.netloc.endswith(".blob.core.windows.net"):
        container, _, path = split.path.lstrip("/").partition("/")
        return opened(cloud, BlobLocation(split.netloc.split(".")[0], container, unquote(path)), "None")
    raise LocationError(f"The local Azure cannot resolve {uri}")


def location_in_datastore(cloud: Cloud, store: str, path: str) -> BlobLocation:
    found = cloud.datastores.get(store)
    if found is None:
        raise LocationError(f"Datastore {store} was not found.")
    location = BlobLocation(found["accountName"], found["containerName"], path)
    credentials = found["credentials"]
    kind = credentials["credentialsType"]
    if kind == "AccountKey" and credentials["secrets"]["key"] != account_key(found["accountName"]):
        raise LocationError(f"ScriptExecution.StreamAccess.Authentication: the key of datastore {store} is wrong.")
    return opened(cloud, location, kind)


def opened(cloud: Cloud, location: BlobLocation, credentials: str) -> BlobLocation:
    """The location, if its account exists and accepts this kind of credential."""
    if location.account not in cloud.blobs.keys:
        raise LocationError(f"No such host is known: {location.account}.blob.core.windows.net")
    if credentials in ("AccountKey", "Sas") and not cloud.shared_keys:
        raise LocationError("KeyBasedAuthenticationNotPermitted: key based authentication is not permitted.")
    if credentials == "None" and cloud.blob_role is None:
        raise LocationError("ScriptExecution.StreamAccess.Authentication: AuthorizationPermissionMismatch")
    if not cloud.blobs.exists(location.account, location.container):
        if location.account == cloud.account:
            cloud.blobs.container(location.account, location.container)
        else:
            raise LocationError(f"ContainerNotFound: {location.account}/{location.container}")
    return location
