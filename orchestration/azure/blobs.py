"""Blobs of a datastore: list, read and write them. With the key that the datastore holds, or as the signed-in identity.

Small folders are uploaded here too, by the hash of their content: the SDK's own uploader waits for ever where the
response to one of its requests is lost.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from azure.ai.ml.entities import NoneCredentialConfiguration
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.storage.blob import BlobProperties, ContainerClient, LinearRetry

from msggan.errors import UsageError
from orchestration.azure.client import Client, error_code
from orchestration.errors import AzureServiceError

OnProgress = Callable[[int, int], None]  # bytes done, bytes in all

RETRIES = 4
KEYS_REFUSED = "KeyBasedAuthenticationNotPermitted"
CONCURRENT_UPLOADS = 8


@dataclass(frozen=True)
class Blob:
    """A blob: its name below the listed folder, its size in bytes, and an ETag that changes with its content."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class Store:
    """The container of a datastore. identity_based: it holds no key, so that jobs need an identity too."""

    datastore: str
    account: str
    container: ContainerClient
    identity_based: bool

    def list_blobs(self, folder: str) -> Iterator[Blob]:
        """The blobs below a folder, page by page; their names are relative to the folder."""
        prefix = folder if not folder or folder.endswith("/") else f"{folder}/"
        for found in self.container.list_blobs(name_starts_with=prefix, include=["metadata"]):
            name = found.name.removeprefix(prefix)
            if name and not _is_folder(found):
                yield Blob(name, found.size, found.etag)

    def size_of(self, path: str) -> int | None:
        """The size of a blob in bytes, None where there is none."""
        try:
            found = self.container.get_blob_client(path).get_blob_properties()
        except ResourceNotFoundError:
            return None
        return None if _is_folder(found) else int(found.size)

    def read(self, path: str, *, last_bytes: int | None = None) -> bytes | None:
        """The content of a blob, or only its end; None where there is no such blob."""
        blob = self.container.get_blob_client(path)
        try:
            offset = 0 if last_bytes is None else max(0, blob.get_blob_properties().size - last_bytes)
            content: bytes = blob.download_blob(offset=offset or None).readall()
        except ResourceNotFoundError:
            return None
        return content

    def write(self, path: str, content: bytes) -> None:
        """Writes a small blob, by one request."""
        self.container.upload_blob(path, content, overwrite=True)

    def upload(self, file: Path, path: str, on_progress: OnProgress) -> None:
        """Writes a file; the blob appears when all of it is uploaded."""
        size = file.stat().st_size
        with file.open("rb") as content:
            self.container.upload_blob(
                path,
                content,
                length=size,
                overwrite=True,
                max_concurrency=4,
                progress_hook=lambda done, total: on_progress(done, total or size),
            )

    def download_rest(self, file: IO[bytes], path: str, blob: Blob, on_bytes: Callable[[int], None]) -> None:
        """Appends to `file` what it lacks of a blob. Raises ResourceModifiedError where the blob's ETag has changed."""
        offset = file.seek(0, os.SEEK_END)
        if offset >= blob.size:
            return
        client = self.container.get_blob_client(path)
        stream = client.download_blob(offset=offset, etag=blob.etag, match_condition=MatchConditions.IfNotModified)
        for chunk in stream.chunks():
            file.write(chunk)
            on_bytes(len(chunk))

    def url_of(self, path: str) -> str:
        """The URL of a blob or folder, without a signature."""
        return f"https://{self.container.primary_hostname}/{self.container.container_name}/{path}"


def _is_folder(blob: BlobProperties) -> bool:
    """Whether a blob is the empty one by which a mount keeps a folder; only its metadata tells it from a file."""
    return bool((blob.metadata or {}).get("hdi_isfolder"))


# --- Folders of small files -------------------------------------------------------------------------------------------


def ensure_uploaded(client: Client, store: Store, folder: str, files: Mapping[str, bytes]) -> str:
    """Uploads the files that are not there yet. Returns the URL of their folder, without a slash at its end.

    folder: the parent of all such uploads in the store's container. Each content has a folder of its own below it, so
    two people who upload the same at the same time write the same blobs. Raises MsgganError.
    """
    target = f"{folder}/{hash_files(files)}"
    with client.errors(f"Uploading {len(files)} files to the datastore {store.datastore}"):
        sizes = {blob.name: blob.size for blob in store.list_blobs(target)}
        missing = [path for path, content in files.items() if sizes.get(path) != len(content)]
        with ThreadPoolExecutor(CONCURRENT_UPLOADS) as threads:
            list(threads.map(lambda path: store.write(f"{target}/{path}", files[path]), missing))
    return store.url_of(target)


def hash_files(files: Mapping[str, bytes]) -> str:
    """The SHA-256 of files by path, in any order."""
    return hash_parts(part for path in sorted(files) for part in (path.encode(), files[path]))


def hash_parts(parts: Iterable[bytes]) -> str:
    """The SHA-256 of several byte strings, each preceded by its length in 8 bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


# --- Opening a datastore ----------------------------------------------------------------------------------------------


def open_store(client: Client, datastore: str | None) -> Store:
    """The container of a datastore, None: of the workspace's default one. Raises MsgganError if it cannot be opened."""
    description = f"datastore {datastore}" if datastore else "default datastore"
    found = client.find(f"Looking for the {description}", lambda: _get(client, datastore))
    if found is None:
        raise UsageError(
            [f"No {description} in workspace {client.workspace.workspace_name!r}."],
            "Name another one, or create it: msggan-aml provision",
        )
    account, name = getattr(found, "account_name", None), getattr(found, "container_name", None)
    if account is None or name is None:
        raise AzureServiceError(
            f"The datastore {found.name} is not of blobs, where images and runs are kept.",
            "Name another one: --datastore NAME.",
        )
    key = getattr(found.credentials, "account_key", None) or getattr(found.credentials, "sas_token", None)
    container = build_container(client, account, name, key)
    return Store(found.name, account, container, isinstance(found.credentials, NoneCredentialConfiguration))


def _get(client: Client, datastore: str | None) -> Any:
    """The datastore with its secrets, or without them where the signed-in identity may not read them."""
    stores = client.ml.datastores

    def get(*, include_secrets: bool) -> Any:
        if datastore is None:
            return stores.get_default(include_secrets=include_secrets)
        return stores.get(datastore, include_secrets=include_secrets)

    try:
        return get(include_secrets=True)
    except HttpResponseError as error:
        if error.status_code != 403 or error_code(error) == KEYS_REFUSED:
            raise
        return get(include_secrets=False)


def build_container(client: Client, account: str, name: str, key: str | None) -> ContainerClient:
    """A client of a container. key: an account key or a SAS; None: the signed-in identity. Makes no requests."""
    return ContainerClient(
        f"https://{account}.blob.core.windows.net",
        name,
        credential=key or client.credential,
        retry_policy=retry_policy(client.wait_factor_s),
    )


def retry_policy(wait_factor_s: float) -> LinearRetry:
    """The storage SDK's default waits 15 s before its first retry."""
    pause = max(2 * wait_factor_s, 0.01)
    return LinearRetry(backoff=pause, retry_total=RETRIES, random_jitter_range=0)  # type: ignore[arg-type]
