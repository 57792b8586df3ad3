"""The images of a job: packed and uploaded once from this machine, or checked where they are in Azure."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from msggan.commands.options import PACK_SUFFIX
from msggan.errors import DataError
from orchestration.azure.blobs import Store
from orchestration.azure.client import Client
from orchestration.azure.jobs import MODE_TO_RESOLVE, TO_RESOLVE, JobData, Kind
from orchestration.azure.packs import ensure_pack, pack_path
from orchestration.data_source import DataAsset, DatastorePath, StoragePath, is_remote, read_address
from orchestration.errors import AuthError, AzureServiceError, UnreachableError
from orchestration.settings import Settings
from orchestration.spec import RunSpec, is_file

# What msggan.data reads in a job. Not HEIC: the environments do not have its plug-in.
IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_SUFFIXES = (*IMAGES, ".zip", PACK_SUFFIX)
MAX_LISTED = 100_000  # files of a folder: twenty requests
SMALL_BYTES = 4 << 30  # downloaded to any machine


def plan_data(data: str, datastore: str, scope: str, mode: str) -> JobData:
    """The images that the job will read, as far as they are known without a request. scope: the workspace's ID.

    mode: the setting `data_mode`.
    """
    return replace(_planned(data, datastore, scope), mode=MODE_TO_RESOLVE if mode == "auto" else mode)


def _planned(data: str, datastore: str, scope: str) -> JobData:
    if not is_remote(data):
        return JobData(pack_path(TO_RESOLVE.format("SHA-256 of the packed images"), datastore).uri, "uri_file")
    address = read_address(data)
    kind: Kind = "uri_file" if is_file(data) else "uri_folder"
    if isinstance(address, DataAsset):
        version = address.version or TO_RESOLVE.format(f"the latest version of {address.name}")
        return _asset_data(data, address, version, scope, kind)
    return JobData(data, kind, has_credential=False if isinstance(address, StoragePath) else None)


def ensure_data(spec: RunSpec, store: Store, client: Client) -> JobData:
    """The images that the job will read: packed and uploaded to `store`, or found in Azure. Raises MsgganError."""
    data = str(spec.data)
    if not is_remote(data):
        pack = ensure_pack(data, spec, store, client)
        uri, has_credential = pack.path(store.datastore).uri, not store.identity_based
        return JobData(uri, "uri_file", has_credential=has_credential, size=pack.size)
    address = read_address(data)
    if isinstance(address, DataAsset):
        return _check_asset(data, address, client)
    if address is None:
        raise DataError(f"--data {data}: is not an address that a job can read.")
    return _check_path(data, address, client)


# --- Download or mount ------------------------------------------------------------------------------------------------


def with_mode(data: JobData, client: Client, disk_bytes: Callable[[], int]) -> JobData:
    """The images with how the job gets them, which is reported. disk_bytes: of the machine, 0 if not known.

    What fits into half of the disk is downloaded, at least 4 GiB. A folder of 100,000 files or more is mounted: a job
    that starts again after a preemption would download them all before its first step.
    """
    settings = client.settings
    if settings.data_mode != "auto":
        mode, reason = settings.data_mode, settings.source("data_mode")
    elif data.size is None:
        mode, reason = "mount", data.unsized
    else:
        limit = SMALL_BYTES if data.size <= SMALL_BYTES else max(SMALL_BYTES, disk_bytes() // 2)
        mode = "download" if data.size <= limit else "mount"
        reason = f"{data.size / 2**30:.2f} GiB; up to {limit / 2**30:.3g} GiB are downloaded to this machine"
    client.reporter.info(f"The job {mode}s the images ({reason}).")
    return replace(data, mode=mode)


def planned_mode(settings: Settings) -> str:
    """What a plan says of how the job gets the images."""
    if settings.data_mode == "auto":
        return "The job downloads the images, or mounts them if they are many or large (--data-mode auto)."
    return f"The job {settings.data_mode}s the images ({settings.source('data_mode')})."


# --- Data assets ------------------------------------------------------------------------------------------------------


def _asset_data(data: str, asset: DataAsset, version: str, scope: str, kind: Kind) -> JobData:
    """A version of an asset as the job gets it. scope: the workspace's resource ID."""
    if asset.registry:  # its files are the registry's own, which opens them to the job
        return JobData(data, kind, has_credential=True)
    owner = asset.workspace.scope if asset.workspace else scope
    asset_id = f"{owner}/data/{asset.name}/versions/{version}"
    uri = f"azureml:{asset.name}:{version}" if owner.lower() == scope.lower() else f"azureml:{asset_id}"
    return JobData(uri, kind, asset_id=asset_id)


def _check_asset(data: str, asset: DataAsset, client: Client) -> JobData:
    try:
        found = _read_asset(data, asset, client)
    except (AuthError, UnreachableError) as error:
        if asset.version is None or not (asset.registry or client.of(asset.workspace) is not client):
            raise  # the service looks for it here when the job is submitted
        unchecked = _unchecked(data, error, client)
        return replace(_asset_data(data, asset, asset.version, client.scope, unchecked.kind), has_credential=False)
    if found.type not in ("uri_file", "uri_folder"):
        raise DataError(f"--data {data}: is of type {found.type}.", "Use an asset of type uri_folder or uri_file.")
    images = _asset_data(data, asset, str(found.version), client.scope, found.type)
    if asset.registry:
        return images
    path = read_address(str(found.path))
    if isinstance(path, DatastorePath) and path.workspace is None and asset.workspace is not None:
        path = DatastorePath(path.datastore, path.path, asset.workspace)
    if not isinstance(path, DatastorePath | StoragePath):
        return replace(images, has_credential=False)
    checked = _check_path(str(found.path), path, client)
    return replace(images, has_credential=checked.has_credential, size=checked.size, unsized=checked.unsized)


def _read_asset(data: str, asset: DataAsset, client: Client) -> Any:
    """The asset from the service. Raises MsgganError, or DataError if there is none."""
    if asset.registry:
        owner, ml = f"registry {asset.registry}", client.registry(asset.registry)
        where = ["--registry-name", asset.registry]
    else:
        workspace, ml = client.of(asset.workspace).workspace, client.of(asset.workspace).ml
        owner = f"workspace {workspace.workspace_name}"
        where = ["--workspace-name", workspace.workspace_name, "--resource-group", workspace.resource_group]
    version, label = (f"version {asset.version}", None) if asset.version else ("latest version", "latest")
    operation = f"Looking for the data asset {asset.name}, {version}, in the {owner}"
    found = client.find(operation, lambda: ml.data.get(asset.name, asset.version, label=label))
    if found is None:
        listing = shlex.join(["az", "ml", "data", "list", *where])
        raise DataError(f"--data {data}: {owner} has no such data asset.", f"List them: {listing}")
    return found


# --- Paths ------------------------------------------------------------------------------------------------------------


def _check_path(data: str, path: DatastorePath | StoragePath, client: Client) -> JobData:
    """Whether an address is of a file or a folder. Raises DataError if there are no images."""
    has_credential = False
    try:
        store = _open(path, client)
        has_credential = not store.identity_based
        return replace(_measured(data, store, path.path, client), has_credential=has_credential)
    except (AuthError, UnreachableError) as error:  # the job may be in another network, or have another identity
        return _unchecked(data, error, client, has_credential=has_credential)


def _open(path: DatastorePath | StoragePath, client: Client) -> Store:
    if isinstance(path, DatastorePath):
        return client.of(path.workspace).store(path.datastore)
    return Store("", path.account, client.container(path.account, path.container, None), identity_based=True)


def _measured(data: str, store: Store, path: str, client: Client) -> JobData:
    """Whether a path is of a file or a folder, and its size if that decides how the job gets the images."""
    hint = "See what is there in Azure ML Studio: Data, Datastores, Browse."
    nothing = DataError(f"--data {data}: there is nothing at this path.", hint)
    count, size, has_images = 0, 0, False
    try:
        with client.errors(f"Listing {data}"):
            if not path.endswith("/") and (found := store.size_of(path)) is not None:
                return JobData(data, "uri_file", size=found)
            for blob in itertools.islice(store.list_blobs(path), MAX_LISTED):
                count += 1
                size += blob.size
                has_images = has_images or blob.name.lower().endswith(IMAGE_SUFFIXES)
                if has_images and client.settings.data_mode != "auto":
                    return JobData(data, "uri_folder")
    except AzureServiceError as error:
        if error.is_missing:  # there is no such container
            raise nothing from error
        raise
    if count == 0:
        raise nothing
    if count == MAX_LISTED:
        if not has_images:
            first = f"None of the first {count} files at {data} is an image."
            client.reporter.info(f"{first} The job looks at the others too.")
        return JobData(data, "uri_folder", unsized=f"they are {MAX_LISTED:,} files or more")
    if not has_images:
        raise DataError(f"--data {data}: none of the files there is an image.", hint)
    return JobData(data, "uri_folder", size=size)


def _unchecked(
    data: str, error: AuthError | UnreachableError, client: Client, *, has_credential: bool = False
) -> JobData:
    """Images that this machine cannot read. The job gets an identity unless their datastore has a credential."""
    client.reporter.info(f"{data} was not checked. {error.message} The job may be able to read it.")
    return JobData(data, "uri_file" if is_file(data) else "uri_folder", has_credential)
