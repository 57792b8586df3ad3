"""How do the images reach the job? What is here is packed and uploaded once; what Azure has already is looked at."""

from __future__ import annotations

import hashlib
import itertools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from msggan.commands.options import to_argv
from msggan.commands.pack_options import PACK_SUFFIX
from msggan.config import TrainConfig
from msggan.errors import DataError
from orchestration.azure.blobs import Store
from orchestration.azure.client import Client
from orchestration.azure.jobs import DATA_FOLDER, JobData, Kind
from orchestration.data_source import DATA_ASSET, DatastorePath, in_datastore, is_file, is_remote
from orchestration.errors import AuthError
from orchestration.local.process import result_of
from orchestration.reporter import Reporter
from orchestration.spec import RunSpec

PACK_MARK = b'"msggan-pack"'  # stands in the first bytes of every pack
# What msggan.data reads in a job. HEIC is not among it: the environments do not have its plug-in.
IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_SUFFIXES = (*IMAGES, ".zip", PACK_SUFFIX)
NAMES_LOOKED_AT = 1000

OpenStore = Callable[[str | None], Store]


def planned_data(data: str, datastore: str) -> JobData:
    """What the job will read, as far as it is known without asking."""
    if not is_remote(data):
        return JobData(_packed("<resolved-at-submit: SHA-256 of the packed images>", datastore).uri, "uri_file")
    return JobData(data, "uri_file" if is_file(data) else "uri_folder")


def bring_data(spec: RunSpec, store: Store, client: Client, open_store: OpenStore, reporter: Reporter) -> JobData:
    """What the job reads, surely there: packed and uploaded into `store`, or found in Azure. Raises MsgganError."""
    data = str(spec.data)
    if not is_remote(data):
        return _bring_local(data, spec, store, client, reporter)
    if named := DATA_ASSET.fullmatch(data):
        return _find_asset(data, named, client, open_store, reporter)
    if place := in_datastore(data):
        return JobData(data, _kind_in(place, client, open_store, reporter))
    return planned_data(data, store.datastore)  # another account's blob: only the job knows whether it may read it


# --- From this machine ------------------------------------------------------------------------------------------------


def _bring_local(data: str, spec: RunSpec, store: Store, client: Client, reporter: Reporter) -> JobData:
    if data.lower().endswith(PACK_SUFFIX) and Path(data).is_file():
        _ensure_pack(data)
        return _upload(Path(data), store, client, reporter)
    with tempfile.TemporaryDirectory(prefix="msggan-pack-") as folder:
        packed = Path(folder) / f"images{PACK_SUFFIX}"
        asked = TrainConfig(resolution=spec.config.resolution, background=spec.config.background)
        words = ["--data", data, "--out", str(packed), *to_argv(asked)]
        words += ["--workers", str(spec.hardware.workers)] if spec.hardware.workers else []
        hint = "Run it again; it packs anew."
        told = result_of("msggan.pack", words, expects="path", process="packing", hint=hint)
        reporter.info(f"Packed {told['images']} images at {told['resolution']} px.")
        return _upload(packed, store, client, reporter)


def _ensure_pack(data: str) -> None:
    with open(data, "rb") as file:
        if PACK_MARK not in file.read(256):
            raise DataError(f"--data {data}: is no pack of images.", "Make one: msggan-aml pack FOLDER OUT")


def _upload(file: Path, store: Store, client: Client, reporter: Reporter) -> JobData:
    """Uploads a pack, unless its content is there already."""
    place = _packed(sha256_of(file), store.datastore)
    size = file.stat().st_size
    with client.errors(f"Uploading the images to the datastore {store.datastore}"):
        if store.size_of(place.path) == size:
            reporter.info(f"The images are in the datastore {store.datastore} already ({size / 2**20:.1f} MiB).")
        else:
            reporter.info(f"Uploading {size / 2**20:.1f} MiB of images to the datastore {store.datastore}.")
            store.upload(file, place.path, lambda done, total: reporter.progress("Uploading", done, total))
    return JobData(place.uri, "uri_file")


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        for part in iter(lambda: content.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def _packed(digest: str, datastore: str) -> DatastorePath:
    return DatastorePath(datastore, f"{DATA_FOLDER}/{digest}{PACK_SUFFIX}")


# --- In Azure already -------------------------------------------------------------------------------------------------


def _find_asset(data: str, named: re.Match[str], client: Client, open_store: OpenStore, reporter: Reporter) -> JobData:
    with client.errors(f"Looking for the data asset {named['name']}, version {named['version']}"):
        asset = client.ml.data.get(named["name"], named["version"])
    if asset.type not in ("uri_file", "uri_folder"):
        raise DataError(f"--data {data}: is of type {asset.type}.", "Give an asset of type uri_folder or uri_file.")
    if place := in_datastore(str(asset.path)):
        _kind_in(place, client, open_store, reporter)
    return JobData(data, asset.type)


def _kind_in(place: DatastorePath, client: Client, open_store: OpenStore, reporter: Reporter) -> Kind:
    """Whether there is a file or a folder at a path of a datastore. Raises DataError where there is no image."""
    try:
        store = open_store(place.datastore)
        with client.errors(f"Looking at {place.uri}"):
            return _look_at(place, store)
    except AuthError:  # the job may well read what this person may not
        reporter.info(f"{place.uri} was not looked at: who is signed in may not read it.")
        return "uri_file" if is_file(place.path) else "uri_folder"


def _look_at(place: DatastorePath, store: Store) -> Kind:
    if not place.path.endswith("/") and store.size_of(place.path) is not None:
        return "uri_file"
    names = [blob.name for blob in itertools.islice(store.walk(place.path), NAMES_LOOKED_AT)]
    hint = "See what is there in Azure ML Studio: Data, Datastores, Browse."
    if not names:
        raise DataError(f"--data {place.uri}: there is nothing at this path.", hint)
    if not any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        raise DataError(f"--data {place.uri}: none of the files there is an image.", hint)
    return "uri_folder"
