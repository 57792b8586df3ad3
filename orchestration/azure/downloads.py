"""Copy a run folder between a datastore and this machine. A download resumes where an earlier one ended.

The SDK's `jobs.download` neither resumes nor notices that a file changes meanwhile, and may fetch nothing without an
error. Here each file is completed from one version of its blob, by its ETag.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

from msggan.errors import CheckpointError
from msggan.runs.files import atomic_replace, sync
from orchestration.azure.blobs import Blob, OnProgress, Store
from orchestration.azure.client import Client
from orchestration.copies import NOTE, CopyFolder
from orchestration.errors import AzureServiceError
from orchestration.status import Download

GENERATOR = "generator.safetensors"
PARTS = "*.0x*.part"  # their names end with the ETag, so that a part is completed from the same version only
EXCLUDED = ("run.lock", NOTE)
MAX_VERSIONS = 5  # of a file that changes while it is downloaded


def is_result(name: str) -> bool:
    """Whether a blob of a run folder is worth a copy: not the lock, a partial or a hidden file; `..` is none either."""
    is_visible = not any(part.startswith(".") or not part for part in name.split("/"))
    return is_visible and name not in EXCLUDED and not name.endswith(".part")


def download_run(
    client: Client, store: Store, folder: str, to: Path, *, weights: bool, force: bool, on_progress: OnProgress
) -> Download:
    """Copies a run folder at a path of the datastore, or with `weights` just its generator. Raises MsgganError.

    The same download again keeps the files that are complete and resumes the rest.
    """
    with client.errors(f"Listing {folder}"):
        blobs = [blob for blob in store.list_blobs(folder) if is_result(blob.name)]
    if weights:
        blobs = [blob for blob in blobs if blob.name == GENERATOR]
    if not blobs:
        what = "no generator.safetensors" if weights else "no files"
        hint = "A run has files once it has started, and its generator after its first checkpoint."
        raise CheckpointError(f"{folder} has {what} yet.", hint)
    return _RunDownload(client, store, folder, to=to, blobs=blobs, on_progress=on_progress).run(force=force)


def upload_run(store: Store, folder: Path, to: str, on_progress: OnProgress) -> None:
    """Uploads a run folder to a path of the datastore; config.json, which marks a run as started, comes last."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == "config.json")
    sizes = [path.stat().st_size for path in files]
    for path, before in zip(files, accumulate([0, *sizes]), strict=False):
        store.upload(
            path,
            f"{to}{path.relative_to(folder).as_posix()}",
            lambda done, _, before=before: on_progress(before + done, sum(sizes)),  # type: ignore[misc]  # of a default
        )


class _RunDownload:
    """One download, which may resume an earlier one."""

    def __init__(
        self, client: Client, store: Store, folder: str, *, to: Path, blobs: list[Blob], on_progress: OnProgress
    ) -> None:
        self.client, self.store, self.folder, self.to, self.blobs = client, store, folder.rstrip("/"), to, blobs
        self.copy = CopyFolder(to, f"{store.account}/{store.container.container_name}/{folder}")
        self.on_progress = on_progress
        self.done = 0
        self.total = sum(blob.size for blob in blobs)

    def run(self, *, force: bool) -> Download:
        self.copy.prepare({blob.name: blob.etag for blob in self.blobs}, force=force)
        with self.copy.recording():
            sizes = [size for blob in self.blobs if (size := self._ensure(blob)) is not None]
        for part in self.to.rglob(PARTS):  # of a version, or of a file, that is no longer in the run
            part.unlink()
        return Download(len(sizes), sum(sizes), str(self.to))

    def _ensure(self, blob: Blob) -> int | None:
        """The size of the downloaded file, None where the run has removed it meanwhile."""
        path = self.to / blob.name
        if self.copy.has(blob.name, blob.etag):
            self._advance(blob.size)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = self._download(blob, path)
            if found is None:
                return None
            self.copy.add(blob.name, found.etag)
        return path.stat().st_size

    def _download(self, blob: Blob, path: Path) -> Blob | None:
        """Downloads a blob to a partial file, then moves that to `path`. Starts again with a newer version of the blob.

        Returns the version that was downloaded, None where there is none any more.
        """
        for _ in range(MAX_VERSIONS):
            part = path.with_name(f"{path.name}.{blob.etag.strip(chr(34))}.part")
            before = self.done
            try:
                self._complete(part, blob)
                atomic_replace(part, path)
                return blob
            except AzureServiceError as error:
                if not isinstance(error.__cause__, ResourceModifiedError | ResourceNotFoundError):
                    raise
                part.unlink(missing_ok=True)
                self.done = before
                newer = next((found for found in self.store.list_blobs(self.folder) if found.name == blob.name), None)
                if newer is None:
                    return None
                blob = newer
        raise AzureServiceError(f"{blob.name}: changes faster than it can be downloaded.", "Download it again later.")

    def _complete(self, part: Path, blob: Blob) -> None:
        """Downloads what a partial file lacks."""
        with self.client.errors(f"Downloading {blob.name}"), part.open("ab") as file:
            self._advance(file.tell())
            self.store.download_rest(file, f"{self.folder}/{blob.name}", blob, self._advance)
            file.flush()
            sync(file.fileno())
        size = part.stat().st_size
        if size != blob.size:
            part.unlink()
            raise AzureServiceError(f"{blob.name}: received {size} bytes instead of {blob.size}.", "Download it again.")

    def _advance(self, count: int) -> None:
        self.done += count
        self.on_progress(min(self.done, self.total), self.total)
