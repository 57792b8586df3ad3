"""Which blobs does a URI mean? azureml:// paths, data assets, and https URLs of blobs."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from .blobs import Place
from .cloud import Cloud, account_key

DATASTORE = re.compile(
    r"azureml://(?:subscriptions/[^/]+/resource[Gg]roups/[^/]+/(?:providers/[^/]+/)?workspaces/[^/]+/)?"
    r"datastores/(?P<store>[^/]+)(?:/paths)?/(?P<path>.*)"
)
ASSET = re.compile(
    r"(?:azureml:)?/?/?(?:subscriptions/.+/workspaces/[^/]+/)?data/(?P<name>[^/]+)/versions/(?P<version>[^/]+)"
)


class PlaceError(Exception):
    """A place that the job cannot read or write, in the words of the job's error."""


def find_place(cloud: Cloud, uri: str) -> Place:
    """PlaceError where there is no such datastore or asset, or its account will not open."""
    if match := DATASTORE.fullmatch(uri):
        return place_in_datastore(cloud, match["store"], unquote(match["path"]))
    if match := ASSET.fullmatch(uri):
        asset = cloud.data.get((match["name"], match["version"]))
        if asset is None:
            raise PlaceError(f"Data asset {match['name']}:{match['version']} was not found.")
        return find_place(cloud, asset.properties["dataUri"])
    split = urlsplit(uri)
    if split.scheme == "https" and split.netloc.endswith(".blob.core.windows.net"):
        container, _, path = split.path.lstrip("/").partition("/")
        return opened(cloud, Place(split.netloc.split(".")[0], container, unquote(path)), "None")
    raise PlaceError(f"The local Azure cannot resolve {uri}")


def place_in_datastore(cloud: Cloud, store: str, path: str) -> Place:
    found = cloud.datastores.get(store)
    if found is None:
        raise PlaceError(f"Datastore {store} was not found.")
    place = Place(found["accountName"], found["containerName"], path)
    credentials = found["credentials"]
    kind = credentials["credentialsType"]
    if kind == "AccountKey" and credentials["secrets"]["key"] != account_key(found["accountName"]):
        raise PlaceError(f"ScriptExecution.StreamAccess.Authentication: the key of datastore {store} is wrong.")
    return opened(cloud, place, kind)


def opened(cloud: Cloud, place: Place, credentials: str) -> Place:
    """The place, if its account is there and lets this kind of credential in."""
    if place.account not in cloud.blobs.keys:
        raise PlaceError(f"No such host is known: {place.account}.blob.core.windows.net")
    if credentials in ("AccountKey", "Sas") and not cloud.shared_keys:
        raise PlaceError("KeyBasedAuthenticationNotPermitted: key based authentication is not permitted.")
    if credentials == "None" and cloud.blob_role is None:
        raise PlaceError("ScriptExecution.StreamAccess.Authentication: AuthorizationPermissionMismatch")
    if not cloud.blobs.exists(place.account, place.container):
        if place.account == cloud.account:
            cloud.blobs.container(place.account, place.container)
        else:
            raise PlaceError(f"ContainerNotFound: {place.account}/{place.container}")
    return place
