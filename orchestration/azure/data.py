"""The images of a job: packed and uploaded once from this machine, or checked where they are in Azure."""

from __future__ import annotations

import itertools

from msggan.commands.options import PACK_SUFFIX
from msggan.errors import DataError
from orchestration.azure.blobs import Store
from orchestration.azure.client import Client
from orchestration.azure.jobs import JobData, Kind
from orchestration.azure.packs import ensure_pack, pack_path
from orchestration.errors import AuthError
from orchestration.spec import DATA_ASSET, DatastorePath, RunSpec, in_datastore, is_file, is_remote

# What msggan.data reads in a job. Not HEIC: the environments do not have its plug-in.
IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_SUFFIXES = (*IMAGES, ".zip", PACK_SUFFIX)
MAX_LISTED = 1000


def plan_data(data: str, datastore: str) -> JobData:
    """The images that the job will read, as far as they are known without a request."""
    if not is_remote(data):
        return JobData(pack_path("<resolved-at-submit: SHA-256 of the packed images>", datastore).uri, "uri_file")
    return JobData(data, _kind_by_name(data))


def ensure_data(spec: RunSpec, store: Store, client: Client) -> JobData:
    """The images that the job will read: packed and uploaded to `store`, or found in Azure. Raises MsgganError."""
    data = str(spec.data)
    if not is_remote(data):
        return JobData(ensure_pack(data, spec, store, client).path(store.datastore).uri, "uri_file")
    if asset := DATA_ASSET.fullmatch(data):
        return _check_asset(data, asset["name"], asset["version"], client)
    if path := in_datastore(data):
        return JobData(data, _check_path(path, client))
    return plan_data(data, store.datastore)  # a blob of another account: only the job knows whether it may read it


def _kind_by_name(address: str) -> Kind:
    return "uri_file" if is_file(address) else "uri_folder"


# --- Already in Azure -------------------------------------------------------------------------------------------------


def _check_asset(data: str, name: str, version: str, client: Client) -> JobData:
    with client.errors(f"Looking for the data asset {name}, version {version}"):
        asset = client.ml.data.get(name, version)
    if asset.type not in ("uri_file", "uri_folder"):
        raise DataError(f"--data {data}: is of type {asset.type}.", "Use an asset of type uri_folder or uri_file.")
    if path := in_datastore(str(asset.path)):
        _check_path(path, client)
    return JobData(data, asset.type)


def _check_path(path: DatastorePath, client: Client) -> Kind:
    """Whether a path of a datastore is a file or a folder. Raises DataError if it has no images."""
    try:
        store = client.store(path.datastore)
        with client.errors(f"Listing {path.uri}"):
            if not path.path.endswith("/") and store.size_of(path.path) is not None:
                return "uri_file"
            names = [blob.name for blob in itertools.islice(store.list_blobs(path.path), MAX_LISTED)]
    except AuthError:  # the job may have access that this person does not have
        client.reporter.info(f"{path.uri} was not checked: the signed-in identity may not read it.")
        return _kind_by_name(path.path)
    hint = "See what is there in Azure ML Studio: Data, Datastores, Browse."
    if not names:
        raise DataError(f"--data {path.uri}: there is nothing at this path.", hint)
    if not any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        raise DataError(f"--data {path.uri}: none of the files there is an image.", hint)
    return "uri_folder"
