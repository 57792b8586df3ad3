"""Blobs of a datastore's container: list, read, write, upload and download them.

Small folders are uploaded here too, by the hash of their content: the SDK's own uploader hangs if the response to one
of its requests is lost.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

from azure.core import MatchConditions
from azure.core.exceptions import ResourceNotFoundError
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import RetryPolicy
from azure.core.rest import HttpRequest, HttpResponse
from azure.storage.blob import BlobBlock, BlobClient, BlobProperties, ContainerClient, LocationMode

OnProgress = Callable[[int, int], None]  # bytes done, bytes in total

RETRIES = 4
STORAGE_OPTIONS = ("hosts", "location_mode", "retry_hook", "retry_to_secondary")  # of the storage SDK's own retries
PROJECT_FOLDER = "msggan"  # in a container: all that is written to it
CONCURRENT_UPLOADS = 8
CONCURRENT_BLOCKS = 4  # each in memory
BLOCK_BYTES = 8 << 20
MAX_BLOCKS = 50_000  # of a blob


@dataclass(frozen=True)
class Blob:
    """A blob: its name below the listed folder, its size in bytes, and an ETag that changes with its content."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class Store:
    """The container of a datastore. identity_based: it holds no key, so that jobs need an identity too.

    Its methods raise the SDK's errors.
    """

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
        """The size of a blob in bytes, None if it does not exist."""
        try:
            found = self.container.get_blob_client(path).get_blob_properties()
        except ResourceNotFoundError:
            return None
        return None if _is_folder(found) else int(found.size)

    def read(self, path: str, *, last_bytes: int | None = None) -> bytes | None:
        """The content of a blob, or only its end; None if it does not exist."""
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
        """Writes a file; the blob appears when all of it is uploaded. Blocks that an earlier upload left are kept.

        The service keeps blocks of a blob for a week after the last one. The SDK's `upload_blob` sends all of them
        again, 4 MiB each, of which at most 195 GiB fit into a blob.
        """
        size = file.stat().st_size
        if size <= BLOCK_BYTES:
            self.write(path, file.read_bytes())
            on_progress(size, size)
            return
        blob, length = self.container.get_blob_client(path), block_bytes(size)
        stored, lock, done = _stored_blocks(blob), Lock(), 0

        def ensure_block(number: int) -> BlobBlock:
            nonlocal done
            with file.open("rb") as content:
                content.seek(number * length)
                block = content.read(length)
            block_id = build_block_id(number, block)
            if stored.get(block_id) != len(block):
                blob.stage_block(block_id, block, length=len(block))
            with lock:
                done += len(block)
                on_progress(done, size)
            return BlobBlock(block_id)

        with ThreadPoolExecutor(CONCURRENT_BLOCKS) as threads:
            blocks = list(threads.map(ensure_block, range(-(-size // length))))
        blob.commit_block_list(blocks)

    def upload_files(self, folder: str, files: Mapping[str, bytes]) -> str:
        """Uploads the files that do not exist yet. Returns the URL of their folder, without a slash at its end.

        folder: the parent of all such uploads. Each content has a folder of its own below it, so two people who upload
        the same at the same time write the same blobs.
        """
        target = f"{folder}/{hash_files(files)}"
        sizes = {blob.name: blob.size for blob in self.list_blobs(target)}
        missing = [path for path, content in files.items() if sizes.get(path) != len(content)]
        with ThreadPoolExecutor(CONCURRENT_UPLOADS) as threads:
            list(threads.map(lambda path: self.write(f"{target}/{path}", files[path]), missing))
        return f"https://{self.container.primary_hostname}/{self.container.container_name}/{target}"

    def download_rest(self, file: IO[bytes], path: str, blob: Blob, report: Callable[[int], None]) -> None:
        """Appends to `file` what it lacks of a blob. Raises ResourceModifiedError if the blob's ETag has changed.

        report: called with the size of the file.
        """
        offset = file.seek(0, os.SEEK_END)
        report(offset)
        if offset >= blob.size:
            return
        client = self.container.get_blob_client(path)
        stream = client.download_blob(offset=offset, etag=blob.etag, match_condition=MatchConditions.IfNotModified)
        for chunk in stream.chunks():
            file.write(chunk)
            report(file.tell())


def block_bytes(size: int) -> int:
    """The size of the blocks of a file of this size: larger ones where it would have more than 50,000."""
    return max(BLOCK_BYTES, -(-size // (MAX_BLOCKS << 20)) << 20)


def build_block_id(number: int, content: bytes) -> str:
    """The ID of a block by its position and content, so that a block with this ID need not be sent again.

    A blob's block IDs must be equally long. These are as long as those of the SDK, which may have left some.
    """
    return f"{number:05}-{hashlib.sha256(content).hexdigest()[:40]}"


def _stored_blocks(blob: BlobClient) -> dict[str, int]:
    """The sizes by ID of the blocks that the service has of a blob, in bytes."""
    try:
        return {block.id: block.size for blocks in blob.get_block_list("all") for block in blocks}
    except ResourceNotFoundError:
        return {}


def _is_folder(blob: BlobProperties) -> bool:
    """Whether a blob is the empty one by which a mount keeps a folder; only its metadata tells it from a file."""
    return bool((blob.metadata or {}).get("hdi_isfolder"))


def hash_files(files: Mapping[str, bytes], *others: bytes) -> str:
    """The SHA-256 of files by path, in any order, and of other values before them; each preceded by its length."""
    digest = hashlib.sha256()
    for part in (*others, *(part for path in sorted(files) for part in (path.encode(), files[path]))):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def build_container(account: str, name: str, credential: Any, wait_factor_s: float, suffix: str) -> ContainerClient:
    """The client of a container. Makes no requests.

    credential: an account key, a SAS or a token credential. suffix: the domain of the cloud's storage accounts.
    """
    url = f"https://{account}.blob.{suffix}"
    return ContainerClient(url, name, credential=credential, retry_policy=retry_policy(wait_factor_s))


class BlobRetry(RetryPolicy[HttpRequest, HttpResponse]):
    """azure.core's retries for a client of blobs: those of the storage SDK leave out 429, and ignore Retry-After."""

    def configure_retries(self, options: dict[str, Any]) -> dict[str, Any]:
        for name in STORAGE_OPTIONS:
            options.pop(name, None)
        return super().configure_retries(options)

    def send(self, request: PipelineRequest[HttpRequest]) -> PipelineResponse[HttpRequest, HttpResponse]:
        response = super().send(request)
        response.http_response.location_mode = LocationMode.PRIMARY  # type: ignore[attr-defined] # read by the SDK
        return response


def retry_policy(wait_factor_s: float) -> BlobRetry:
    """The retries of a client of blobs. wait_factor_s: the pause before the second retry is twice as long."""
    return BlobRetry(retry_total=RETRIES, retry_status=RETRIES, retry_backoff_factor=wait_factor_s)
