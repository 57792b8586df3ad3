"""Copy a run folder between a datastore and this machine, several files at once. A download resumes an earlier one.

The SDK's `jobs.download` neither resumes nor notices that a file changes meanwhile, and may fetch nothing without an
error. Here each file is completed from one version of its blob, by its ETag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from threading import Lock

from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

from msggan.errors import CheckpointError
from msggan.runs.files import atomic_replace, sync, write_whole
from orchestration.azure.blobs import Blob, OnProgress, Store
from orchestration.azure.client import Client
from orchestration.copies import COPY_FILE, DOWNLOAD_FILE, CopyFolder
from orchestration.errors import AzureServiceError
from orchestration.status import Download

CONCURRENT_FILES = 8
PARTS = "*.0x*.part"  # their names end with the ETag, so that a part is completed from the same version only
EXCLUDED = ("run.lock", DOWNLOAD_FILE)
MAX_VERSIONS = 5  # of a file that changes while it is downloaded


def download_run(
    client: Client,
    store: Store,
    folder: str,
    to: Path,
    *,
    force: bool,
    on_progress: OnProgress,
    only: Sequence[str] = (),
) -> Download:
    """Copies a run folder at a path of the datastore, or `only` some files of it. Raises MsgganError.

    The same download again keeps the files that are complete and resumes the rest. folder: with a slash at the end.
    """
    with client.errors(f"Listing {folder}"):
        blobs = [blob for blob in store.list_blobs(folder) if _is_result(blob.name)]
    if only:
        blobs = [blob for blob in blobs if blob.name in only]
    if not blobs:
        what = f"no {only[0] if only else 'files'}"
        hint = "A run has files once it has started, and its generator after its first checkpoint."
        raise CheckpointError(f"{folder} has {what} yet.", hint)
    copy = CopyFolder(to, f"{store.account}/{store.container.container_name}/{folder}")
    copy.prepare({blob.name: blob.etag for blob in blobs}, force=force)
    progress = Progress({blob.name: blob.size for blob in blobs}, on_progress)
    missing = []
    for blob in blobs:
        if copy.has(blob.name, blob.etag):
            progress.report(blob.name, blob.size)
        else:
            missing.append(blob)
    with copy.recording(), ThreadPoolExecutor(CONCURRENT_FILES) as threads:
        download = partial(_download, client, store, folder, to=to, progress=progress)
        downloads = {threads.submit(download, blob): blob for blob in missing}
        try:
            for ended in as_completed(downloads):
                version = ended.result()
                if version is None:  # the run has removed the file in the meantime
                    blobs.remove(downloads[ended])
                else:
                    copy.add(version.name, version.etag)
        except BaseException:
            progress.stop()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    sizes = [(to / blob.name).stat().st_size for blob in blobs]
    for part in to.rglob(PARTS):  # of a version, or of a file, that is no longer in the run
        part.unlink()
    return Download(len(sizes), sum(sizes), str(to))


@dataclass
class Progress:
    """The bytes of the files of a download, which its threads report. sizes: by file."""

    sizes: Mapping[str, int]
    on_progress: OnProgress
    _done: dict[str, int] = field(default_factory=dict)
    _is_stopped: bool = False
    _lock: Lock = field(default_factory=Lock)

    def report(self, name: str, downloaded: int) -> None:
        """Reports the bytes of all files. Raises `CancelledError` after `stop`: what is downloaded stays in parts."""
        with self._lock:
            if self._is_stopped:
                raise CancelledError
            self._done[name] = min(downloaded, self.sizes[name])
            self.on_progress(sum(self._done.values()), sum(self.sizes.values()))

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True


def _is_result(name: str) -> bool:
    """Whether to copy a blob of a run folder: not its lock, and no unfinished, hidden or `..` file."""
    is_visible = not any(part.startswith(".") or not part for part in name.split("/"))
    return is_visible and name not in EXCLUDED and not name.endswith(".part")


def _download(client: Client, store: Store, folder: str, blob: Blob, *, to: Path, progress: Progress) -> Blob | None:
    """Downloads a blob to a partial file, then moves that to its name. Starts again with a newer version of the blob.

    Returns the version that was downloaded, None if the blob does not exist any more.
    """
    path, report = to / blob.name, partial(progress.report, blob.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(MAX_VERSIONS):
        part = path.with_name(f"{path.name}.{blob.etag.strip(chr(34))}.part")
        try:
            with client.errors(f"Downloading {blob.name}"), part.open("ab") as file:
                store.download_rest(file, f"{folder}{blob.name}", blob, report)
                file.flush()
                sync(file.fileno())
        except AzureServiceError as error:
            if not isinstance(error.__cause__, ResourceModifiedError | ResourceNotFoundError):
                raise
            part.unlink(missing_ok=True)
            with client.errors(f"Listing {folder}"):
                newer = next((found for found in store.list_blobs(folder) if found.name == blob.name), None)
            if newer is None:
                return None
            blob = newer
            continue
        if (size := part.stat().st_size) != blob.size:
            part.unlink()
            raise AzureServiceError(f"{blob.name}: received {size} bytes instead of {blob.size}.", "Download it again.")
        atomic_replace(part, path)
        return blob
    raise AzureServiceError(f"{blob.name}: changes faster than it can be downloaded.", "Download it again later.")


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


# --- Copies of weights ------------------------------------------------------------------------------------------------


def record_copy(folder: Path, client: Client, name: str, *, etag: str | None = None) -> None:
    """Marks a folder as a copy of a run or sweep on Azure. etag: of the generator in it; empty during the download."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"scope": client.workspace_key, "run": name, "etag": etag}
    write_whole(folder / COPY_FILE, json.dumps(record).encode())


def copied_etag(folder: Path) -> str | None:
    """The ETag of the generator in a copy, None if the folder is none."""
    try:
        return str(json.loads((folder / COPY_FILE).read_bytes())["etag"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
