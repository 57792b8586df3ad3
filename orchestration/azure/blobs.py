"""How is a datastore's storage read and written from here? By the key it lends, or else as who is signed in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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

Tell = Callable[[int, int], None]  # bytes done, bytes in all

REPETITIONS = 4
KEYS_REFUSED = "KeyBasedAuthenticationNotPermitted"


@dataclass(frozen=True)
class Blob:
    """A blob: its name below the folder that was asked for, its size and a mark that changes with its content."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class Store:
    """The container behind a datastore. identity_based: it has no key, and jobs too must say who they are."""

    datastore: str
    account: str
    container: ContainerClient
    identity_based: bool

    def find(self, folder: str) -> list[Blob]:
        """All blobs below a folder, in order of their names; the folder is cut off them."""
        return sorted(self.walk(folder), key=lambda blob: blob.name)

    def walk(self, folder: str) -> Iterator[Blob]:
        """The same as they come, a page at a time."""
        prefix = folder if not folder or folder.endswith("/") else f"{folder}/"
        for found in self.container.list_blobs(name_starts_with=prefix, include=["metadata"]):
            name = found.name.removeprefix(prefix)
            if name and not _is_folder(found):
                yield Blob(name, found.size, found.etag)

    def size_of(self, path: str) -> int | None:
        """How many bytes a blob has, None where there is none."""
        try:
            found = self.container.get_blob_client(path).get_blob_properties()
        except ResourceNotFoundError:
            return None
        return None if _is_folder(found) else int(found.size)

    def read(self, path: str, *, last_bytes: int | None = None) -> bytes | None:
        """A blob's content, or just its end; None where there is none."""
        blob = self.container.get_blob_client(path)
        try:
            offset = None
            if last_bytes is not None:
                offset = max(0, blob.get_blob_properties().size - last_bytes)
            content: bytes = blob.download_blob(offset=offset or None).readall()
        except ResourceNotFoundError:
            return None
        return content

    def upload(self, file: Path, path: str, tell: Tell) -> None:
        """Writes a file; the blob is there when all of it is, and not before."""
        total = file.stat().st_size
        with file.open("rb") as content:
            self.container.get_blob_client(path).upload_blob(
                content,
                length=total,
                overwrite=True,
                max_concurrency=4,
                progress_hook=lambda done, whole: tell(done, whole or total),
            )

    def write(self, path: str, content: bytes) -> None:
        """The same for a few bytes at hand, by one request."""
        self.container.get_blob_client(path).upload_blob(content, overwrite=True)

    def url_of(self, path: str) -> str:
        """The address of a blob or folder, without the signature that may open it."""
        return f"https://{self.container.primary_hostname}/{self.container.container_name}/{path}"

    def append_to(self, file: IO[bytes], folder: str, blob: Blob, tell: Callable[[int], None]) -> None:
        """Writes what `file` lacks of a blob. Raises ResourceModifiedError where the blob has changed since."""
        client = self.container.get_blob_client(f"{folder.rstrip('/')}/{blob.name}")
        offset = file.seek(0, os.SEEK_END)
        if offset >= blob.size:
            return
        stream = client.download_blob(offset=offset, etag=blob.etag, match_condition=MatchConditions.IfNotModified)
        for chunk in stream.chunks():
            file.write(chunk)
            tell(len(chunk))


def _is_folder(blob: BlobProperties) -> bool:
    """Whether a blob is the empty one that a mount keeps for a folder, which only its metadata tells from a file."""
    return bool((blob.metadata or {}).get("hdi_isfolder"))


def open_store(client: Client, datastore: str | None) -> Store:
    """The container of a datastore, the workspace's default one for None. Raises MsgganError where it does not open."""
    named = f"the datastore {datastore}" if datastore else "the workspace's default datastore"
    found = client.find(f"Looking for {named}", lambda: _get(client, datastore))
    if found is None:
        where = client.workspace.workspace_name
        what = f"datastore {datastore}" if datastore else "default datastore"
        raise UsageError([f"No {what} in workspace {where!r}."], "Name another, or make it: msggan-aml provision")
    account, name = getattr(found, "account_name", None), getattr(found, "container_name", None)
    if account is None or name is None:
        raise AzureServiceError(
            f"The datastore {found.name} is not of blobs, where images and runs are kept.",
            "Name another: --datastore NAME.",
        )
    container = build_container(client, account, name, _key_of(found))
    return Store(
        found.name, account, container, identity_based=isinstance(found.credentials, NoneCredentialConfiguration)
    )


def build_container(client: Client, account: str, name: str, key: str | None) -> ContainerClient:
    """A container, opened by an account key or a SAS, or else by who is signed in; nothing is asked yet."""
    return ContainerClient(
        f"https://{account}.blob.core.windows.net",
        name,
        credential=key or client.credential,
        retry_policy=retry_policy(client.wait_factor_s),
    )


def retry_policy(wait_factor_s: float) -> LinearRetry:
    """The storage client's own would wait a quarter of a minute before its first repetition."""
    pause = max(2 * wait_factor_s, 0.01)
    return LinearRetry(backoff=pause, retry_total=REPETITIONS, random_jitter_range=0)  # type: ignore[arg-type]


def _get(client: Client, datastore: str | None) -> Any:
    """The datastore with its secrets, or without them where who asks may not have them."""
    stores = client.ml.datastores
    for include_secrets in (True, False):
        try:
            if datastore is None:
                return stores.get_default(include_secrets=include_secrets)
            return stores.get(datastore, include_secrets=include_secrets)
        except ResourceNotFoundError:
            raise
        except HttpResponseError as error:
            if not include_secrets or error.status_code != 403 or error_code(error) == KEYS_REFUSED:
                raise
    raise AssertionError("both ways return or raise")


def _key_of(datastore: Any) -> str | None:
    for name in ("account_key", "sas_token"):
        if key := getattr(datastore.credentials, name, None):
            return str(key)
    return None
