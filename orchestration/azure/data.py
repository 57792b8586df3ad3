"""The images of a job: packed and uploaded once from this machine, or checked where they are in Azure."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from msggan.commands.options import PACK_SUFFIX, to_argv
from msggan.config import TrainConfig
from msggan.errors import DataError
from msggan.runs.files import sha256_of
from orchestration.azure.blobs import Store
from orchestration.azure.jobs import DATA_FOLDER, JobData, Kind
from orchestration.azure.session import Session
from orchestration.errors import AuthError
from orchestration.local.process import result_of
from orchestration.spec import DATA_ASSET, DatastorePath, RunSpec, in_datastore, is_file, is_remote

PACK_MARK = b'"msggan-pack"'  # in the first bytes of every pack
# What msggan.data reads in a job. Not HEIC: the environments do not have its plug-in.
IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_SUFFIXES = (*IMAGES, ".zip", PACK_SUFFIX)
MAX_LISTED = 1000


def plan_data(data: str, datastore: str) -> JobData:
    """The images that the job will read, as far as they are known without a request."""
    if not is_remote(data):
        return JobData(_pack_path("<resolved-at-submit: SHA-256 of the packed images>", datastore).uri, "uri_file")
    return JobData(data, "uri_file" if is_file(data) else "uri_folder")


def ensure_data(spec: RunSpec, store: Store, session: Session) -> JobData:
    """The images that the job will read: packed and uploaded to `store`, or found in Azure. Raises MsgganError."""
    data = str(spec.data)
    if not is_remote(data):
        return _ensure_local(data, spec, store, session)
    if asset := DATA_ASSET.fullmatch(data):
        return _check_asset(data, asset["name"], asset["version"], session)
    if path := in_datastore(data):
        return JobData(data, _check_path(path, session))
    return plan_data(data, store.datastore)  # a blob of another account: only the job knows whether it may read it


# --- From this machine ------------------------------------------------------------------------------------------------


def _ensure_local(data: str, spec: RunSpec, store: Store, session: Session) -> JobData:
    if data.lower().endswith(PACK_SUFFIX) and Path(data).is_file():
        _check_pack(data)
        return _ensure_pack(Path(data), store, session)
    with tempfile.TemporaryDirectory(prefix="msggan-pack-") as folder:
        pack = Path(folder) / f"images{PACK_SUFFIX}"
        config = TrainConfig(resolution=spec.config.resolution, background=spec.config.background)
        args = ["--data", data, "--out", str(pack), *to_argv(config)]
        args += ["--workers", str(spec.hardware.workers)] if spec.hardware.workers else []
        hint = "Run the same command again; it packs the images again."
        result = result_of("msggan.pack", args, expects="path", process="packing", hint=hint)
        session.reporter.info(f"Packed {result['images']} images at {result['resolution']} px.")
        return _ensure_pack(pack, store, session)


def _check_pack(data: str) -> None:
    with open(data, "rb") as file:
        if PACK_MARK not in file.read(256):
            raise DataError(f"--data {data}: is not a pack of images.", "Create one: msggan-aml pack FOLDER OUT")


def _ensure_pack(file: Path, store: Store, session: Session) -> JobData:
    """Uploads a pack unless the datastore has it."""
    path = _pack_path(sha256_of(file), store.datastore)
    size = file.stat().st_size
    with session.client.errors(f"Uploading the images to the datastore {store.datastore}"):
        if store.size_of(path.path) == size:
            session.reporter.info(
                f"The images are already in the datastore {store.datastore} ({size / 2**20:.1f} MiB)."
            )
        else:
            session.reporter.info(f"Uploading {size / 2**20:.1f} MiB of images to the datastore {store.datastore}.")
            store.upload(file, path.path, lambda done, total: session.reporter.progress("Uploading", done, total))
    return JobData(path.uri, "uri_file")


def _pack_path(digest: str, datastore: str) -> DatastorePath:
    return DatastorePath(datastore, f"{DATA_FOLDER}/{digest}{PACK_SUFFIX}")


# --- Already in Azure -------------------------------------------------------------------------------------------------


def _check_asset(data: str, name: str, version: str, session: Session) -> JobData:
    with session.client.errors(f"Looking for the data asset {name}, version {version}"):
        asset = session.client.ml.data.get(name, version)
    if asset.type not in ("uri_file", "uri_folder"):
        raise DataError(f"--data {data}: is of type {asset.type}.", "Use an asset of type uri_folder or uri_file.")
    if path := in_datastore(str(asset.path)):
        _check_path(path, session)
    return JobData(data, asset.type)


def _check_path(path: DatastorePath, session: Session) -> Kind:
    """Whether a path of a datastore is a file or a folder. Raises DataError if it has no images."""
    try:
        store = session.store(path.datastore)
        with session.client.errors(f"Listing {path.uri}"):
            return _kind_of(path, store)
    except AuthError:  # the job may read what this person may not
        session.reporter.info(f"{path.uri} was not checked: the signed-in identity may not read it.")
        return "uri_file" if is_file(path.path) else "uri_folder"


def _kind_of(path: DatastorePath, store: Store) -> Kind:
    if not path.path.endswith("/") and store.size_of(path.path) is not None:
        return "uri_file"
    names = [blob.name for blob in itertools.islice(store.list_blobs(path.path), MAX_LISTED)]
    hint = "See what is there in Azure ML Studio: Data, Datastores, Browse."
    if not names:
        raise DataError(f"--data {path.uri}: there is nothing at this path.", hint)
    if not any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        raise DataError(f"--data {path.uri}: none of the files there is an image.", hint)
    return "uri_folder"
