"""How is the result of a run brought here? Blob by blob, going on where an earlier try ended, counted and measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

from msggan.errors import CheckpointError
from msggan.runs.files import atomic_replace, sync
from orchestration.azure.blobs import Blob, Store, Tell
from orchestration.azure.client import Client
from orchestration.copies import NOTE, CopyFolder
from orchestration.errors import AzureServiceError
from orchestration.spec import Download

GENERATOR = "generator.safetensors"
PARTS = "*.0x*.part"  # names end with the version's ETag, so that a part is completed from the same version only
LEFT_OUT = ("run.lock", NOTE)
TRIES = 5  # of a file that changes while it is read


def worth_keeping(blobs: Iterable[Blob]) -> list[Blob]:
    """All of a run folder but its lock, and what was only half written."""
    return [blob for blob in blobs if blob.name not in LEFT_OUT and _is_plain(blob.name)]


def _is_plain(name: str) -> bool:
    """Whether a blob's name is one that a run gives; `..` among them would lead out of the folder."""
    return not name.endswith(".part") and not any(part.startswith(".") or not part for part in name.split("/"))


def copy_run(
    client: Client, store: Store, folder: str, to: Path, *, weights: bool, force: bool, tell: Tell
) -> Download:
    """Copies a run folder at a path of the datastore, or just its generator. Raises MsgganError.

    The same download again keeps what is whole already and goes on with the rest.
    """
    with client.errors(f"Looking into {folder}"):
        blobs = worth_keeping(store.find(folder))
    if weights:
        blobs = [blob for blob in blobs if blob.name == GENERATOR]
    if not blobs:
        what = "no generator.safetensors" if weights else "nothing"
        raise CheckpointError(
            f"The run has left {what} in {folder} yet.", "It is there after a run's first checkpoint."
        )
    return _Copy(client, store, folder, to=to, blobs=blobs, tell=tell).make(force=force)


def upload_run(store: Store, folder: Path, to: str, tell: Tell) -> None:
    """Brings a run folder to a path of the datastore. config.json, by which a run has begun, comes last."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name == "config.json")
    sizes = [path.stat().st_size for path in files]
    for number, path in enumerate(files):
        before = sum(sizes[:number])
        store.upload(
            path,
            f"{to}{path.relative_to(folder).as_posix()}",
            lambda done, _, before=before: tell(before + done, sum(sizes)),  # type: ignore[misc]  # of a default
        )


class _Copy:
    """One download, which may continue an earlier one."""

    def __init__(self, client: Client, store: Store, folder: str, *, to: Path, blobs: list[Blob], tell: Tell) -> None:
        self.client, self.store, self.folder, self.to, self.blobs, self.tell = client, store, folder, to, blobs, tell
        self.copy = CopyFolder(to, f"{store.account}/{store.container.container_name}/{folder}")
        self.done = 0
        self.total = sum(blob.size for blob in blobs)

    def make(self, *, force: bool) -> Download:
        self.copy.prepare({blob.name: blob.etag for blob in self.blobs}, force=force)
        files = sizes = 0
        with self.copy.recording():
            for blob in self.blobs:
                size = self._bring(blob)
                if size is not None:
                    files, sizes = files + 1, sizes + size
        for part in self.to.rglob(PARTS):  # of a version, or a file, that is no longer in the run
            part.unlink()
        return Download(files, sizes, str(self.to))

    def _bring(self, blob: Blob) -> int | None:
        """The size of the file that is here now, None where the run has taken it away meanwhile."""
        path = self.to / blob.name
        if self.copy.has(blob.name, blob.etag):
            self._moved(blob.size)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = self._fetch(blob, path)
            if found is None:
                return None
            self.copy.add(blob.name, found.etag)
        return path.stat().st_size

    def _fetch(self, blob: Blob, path: Path) -> Blob | None:
        """Downloads a blob beside its place and then puts it there. One that has changed meanwhile begins anew."""
        for _ in range(TRIES):
            aside = path.with_name(f"{path.name}.{blob.etag.strip(chr(34))}.part")
            before = self.done
            try:
                with self.client.errors(f"Downloading {blob.name}"), aside.open("ab") as file:
                    self._moved(file.tell())
                    self.store.append_to(file, self.folder, blob, self._moved)
                    file.flush()
                    sync(file.fileno())
                size = aside.stat().st_size
                if size != blob.size:
                    aside.unlink()
                    raise AzureServiceError(
                        f"{blob.name}: {size} bytes came instead of {blob.size}.", "Download it again."
                    )
                atomic_replace(aside, path)
                return blob
            except AzureServiceError as error:
                if not isinstance(error.__cause__, ResourceModifiedError | ResourceNotFoundError):
                    raise
                aside.unlink(missing_ok=True)
                self.done = before
                newer = next((found for found in self.store.walk(self.folder) if found.name == blob.name), None)
                if newer is None:
                    return None
                blob = newer
        raise AzureServiceError(f"{blob.name}: changes faster than it can be read.", "Download it again later.")

    def _moved(self, count: int) -> None:
        self.done += count
        self.tell(min(self.done, self.total), self.total)
