"""The addresses in Azure that --data takes, and their parts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote

FORMS = (
    "On Azure, use azureml://datastores/DATASTORE/paths/PATH, azureml:ASSET:VERSION, azureml:ASSET@latest, "
    "azureml://registries/REGISTRY/data/ASSET/versions/VERSION, https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH, "
    "wasbs://CONTAINER@ACCOUNT.blob.core.windows.net/PATH or abfss://FILESYSTEM@ACCOUNT.dfs.core.windows.net/PATH."
)

_WORKSPACE = (
    r"/subscriptions/(?P<subscription>[^/]+)/resource[Gg]roups/(?P<group>[^/]+)/(?:providers/[^/]+/)?"
    r"workspaces/(?P<workspace>[^/]+)"
)
_NAME, _VERSION = r"(?P<name>[A-Za-z0-9][\w.-]*)", r"(?P<version>[A-Za-z0-9][\w.-]*)"
_ACCOUNT = r"(?P<account>[a-z0-9]{3,24})"
_SUFFIX = r"(?P<suffix>[a-z0-9-]+(?:\.[a-z0-9-]+)+)"
_CONTAINER = r"(?P<container>\$web|[a-z0-9](?:-?[a-z0-9]){2,62})"

DATASTORE_PATH = re.compile(rf"azureml:/(?:{_WORKSPACE})?/datastores/(?P<datastore>[^/]+)/paths/(?P<path>.+)")
DATA_ASSETS = (
    re.compile(rf"azureml:{_NAME}(?::{_VERSION}|@latest)"),
    re.compile(rf"azureml:/?{_WORKSPACE}/data/{_NAME}/versions/{_VERSION}"),
    re.compile(rf"azureml://registries/(?P<registry>[A-Za-z0-9][\w-]*)/data/{_NAME}/versions/{_VERSION}"),
)
STORAGE_PATHS = (
    re.compile(rf"https://{_ACCOUNT}\.(?:blob|dfs)\.{_SUFFIX}/{_CONTAINER}/(?P<path>.+)"),
    re.compile(rf"wasbs://{_CONTAINER}@{_ACCOUNT}\.blob\.{_SUFFIX}/(?P<path>.+)"),
    re.compile(rf"abfss://{_CONTAINER}@{_ACCOUNT}\.dfs\.{_SUFFIX}/(?P<path>.+)"),
)
# What stands before @ in these is a container, not a password.
CONTAINER_BEFORE_HOST = re.compile(rf"((?:wasb|abfs)s?)://{_CONTAINER}@(?=[^/@]+(?:/|$))")


@dataclass(frozen=True)
class WorkspaceName:
    """A workspace by its names."""

    subscription_id: str
    resource_group: str
    workspace_name: str

    @property
    def scope(self) -> str:
        """Its resource ID, which is also the scope of role assignments."""
        return (
            f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.workspace_name}"
        )


@dataclass(frozen=True)
class DatastorePath:
    """A path in a datastore. workspace: None where the address names none."""

    datastore: str
    path: str
    workspace: WorkspaceName | None = None

    @property
    def uri(self) -> str:
        """The address in the workspace itself."""
        return f"azureml://datastores/{self.datastore}/paths/{self.path}"


@dataclass(frozen=True)
class DataAsset:
    """A data asset. version: None is the latest. registry, workspace: None where the address names none."""

    name: str
    version: str | None
    registry: str | None = None
    workspace: WorkspaceName | None = None


@dataclass(frozen=True)
class StoragePath:
    """A path in a storage account, by its URL. suffix: the domain of its cloud's storage, as core.windows.net."""

    account: str
    suffix: str
    container: str
    path: str


Address = DatastorePath | DataAsset | StoragePath


def is_remote(data: str) -> bool:
    """Whether --data is an address and not a path on this machine."""
    return not os.path.exists(data) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|azureml:", data) is not None


def read_address(data: str) -> Address | None:
    """The parts of an address in Azure, None for other texts."""
    if found := DATASTORE_PATH.fullmatch(data):
        return DatastorePath(found["datastore"], unquote(found["path"]), _workspace(found))
    for form in DATA_ASSETS:
        if found := form.fullmatch(data):
            parts = found.groupdict()
            return DataAsset(parts["name"], parts["version"], parts.get("registry"), _workspace(found))
    for form in STORAGE_PATHS:
        if found := form.fullmatch(data):
            return StoragePath(found["account"], found["suffix"], found["container"], unquote(found["path"]))
    return None


def _workspace(found: re.Match[str]) -> WorkspaceName | None:
    parts = found.groupdict()
    if not parts.get("workspace"):
        return None
    return WorkspaceName(parts["subscription"], parts["group"], parts["workspace"])


def in_datastore(uri: str) -> DatastorePath | None:
    """The datastore path of an address, without its workspace; None for other addresses."""
    address = read_address(uri)
    return DatastorePath(address.datastore, address.path) if isinstance(address, DatastorePath) else None
