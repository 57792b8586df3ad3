"""Copy a run folder between a datastore and this machine. A download resumes where an earlier one ended.

The SDK's `jobs.download` neither resumes nor notices that a file changes meanwhile, and may fetch nothing without an
error. Here each file is completed from one version of its blob, by its ETag.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

from msggan.errors import CheckpointError
from msggan.runs.files import atomic_replace, sync, write_whole
from orchestration.azure.blobs import Blob, OnProgress, Store
from orchestration.azure.client import Client
from orchestration.copies import COPY_FILE, DOWNLOAD_FILE, CopyFolder
from orchestration.errors import AzureServiceError
from orchestration.status import Download

GENERATOR = "generator.safetensors"
PARTS = "*.0x*.part"  # their names end with the ETag, so that a part is completed from the same version only
EXCLUDED = ("run.lock", DOWNLOAD_FILE)
MAX_VERSIONS = 5  # of a file that changes while it is downloaded


def download_run(
    client: Client, store: Store, folder: str, to: Path, *, weights: bool, force: bool, on_progress: OnProgress
) -> Download:
    """Copies a run folder at a path of the datastore, or with `weights` just its generator. Raises MsgganError.

    The same download again keeps the files that are complete and resumes the rest. folder: with a slash at the end.
    """
    with client.errors(f"Listing {folder}"):
        blobs = [blob for blob in store.list_blobs(folder) if _is_result(blob.name)]
    if weights:
        blobs = [blob for blob in blobs if blob.name == GENERATOR]
    if not blobs:
        what = "no generator.safetensors" if weights else "no files"
        hint = "A run has files once it has started, and its generator after its first checkpoint."
        raise CheckpointError(f"{folder} has {what} yet.", hint)
    copy = CopyFolder(to, f"{store.account}/{store.container.container_name}/{folder}")
    copy.prepare({blob.name: blob.etag for blob in blobs}, force=force)
    done, total, sizes = 0, sum(blob.size for blob in blobs), []

    def report(downloaded: int) -> None:
        """Reports the bytes of all files; downloaded: those of the current one."""
        on_progress(min(done + downloaded, total), total)

    with copy.recording():
        for blob in blobs:
            path = to / blob.name
            if not copy.has(blob.name, blob.etag):
                version = _download(client, store, folder, blob, path=path, report=report)
                if version is None:  # the run has removed the file in the meantime
                    continue
                copy.add(blob.name, version.etag)
            report(blob.size)
            done += blob.size
            sizes.append(path.stat().st_size)
    for part in to.rglob(PARTS):  # of a version, or of a file, that is no longer in the run
        part.unlink()
    return Download(len(sizes), sum(sizes), str(to))


def _is_result(name: str) -> bool:
    """Whether to copy a blob of a run folder: not its lock, and no unfinished, hidden or `..` file."""
    is_visible = not any(part.startswith(".") or not part for part in name.split("/"))
    return is_visible and name not in EXCLUDED and not name.endswith(".part")


def _download(
    client: Client, store: Store, folder: str, blob: Blob, *, path: Path, report: Callable[[int], None]
) -> Blob | None:
    """Downloads a blob to a partial file, then moves that to `path`. Starts again with a newer version of the blob.

    Returns the version that was downloaded, None if the blob does not exist any more. report: called with its bytes.
    """
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
