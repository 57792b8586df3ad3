"""Transfer of files between a job's folders and the blob service: downloaded once, uploaded as they change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from azure.core.exceptions import ResourceNotFoundError

from .blobs import BlobLocation, Blobs


def fetch(blobs: Blobs, location: BlobLocation, folder: Path) -> Path:
    """Downloads the blobs of a location. Returns the path of the folder, or of the file if the location is one blob."""
    folder.mkdir(parents=True, exist_ok=True)
    found = folder
    for blob, name in location.files(blobs):
        target = folder / (name or Path(blob).name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.write_bytes(blobs.read(location.account, location.container, blob))
        except ResourceNotFoundError:  # another job deleted it meanwhile
            continue
        if not name:
            found = target
    return found


class Mirror:
    """Uploads the changes of a local folder or file to the blob service; `carry` brings the blobs up to date."""

    def __init__(
        self, blobs: Blobs, local: Path, location: BlobLocation, *, deletes: bool = False, appends: bool = False
    ) -> None:
        self.blobs, self.local, self.location = blobs, local, location
        self.deletes, self.appends = deletes, appends
        self._carried: dict[str, tuple[int, int]] = {}
        self._appended: int | None = None  # bytes uploaded so far; None before the blob exists

    def remember(self) -> None:
        """Marks the present local files as uploaded."""
        self._carried = {name: stamp for name, _, stamp in self._files()}

    def carry(self, is_lost: Callable[[], bool] = lambda: False) -> None:
        """is_lost: whether the node was lost meanwhile, and with it what is not yet uploaded."""
        if self.appends:
            self._append()
            return
        seen = set()
        for name, path, stamp in self._files():
            if is_lost():
                return
            seen.add(name)
            if self._carried.get(name) != stamp:
                try:
                    data = path.read_bytes()
                except FileNotFoundError:  # renamed meanwhile
                    continue
                self.blobs.write(self.location.account, self.location.container, self._blob(name), data)
                self._carried[name] = stamp
        for name in [name for name in self._carried if name not in seen]:
            del self._carried[name]
            if self.deletes:
                self.blobs.container(self.location.account, self.location.container).delete_blob(self._blob(name))

    def _blob(self, name: str) -> str:
        return self.location.below(name) if name else self.location.path

    def _files(self) -> Iterator[tuple[str, Path, tuple[int, int]]]:
        paths = [self.local] if self.local.is_file() else sorted(self.local.rglob("*"))
        for path in paths:
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file():
                name = "" if path == self.local else path.relative_to(self.local).as_posix()
                yield name, path, (stat.st_mtime_ns, stat.st_size)

    def _append(self) -> None:
        blob = self.blobs.container(self.location.account, self.location.container).get_blob_client(self.location.path)
        if self._appended is None:
            self._appended = 0
            if not blob.exists():  # a restarted job appends to its log
                blob.create_append_blob()
        with self.local.open("rb") as file:
            file.seek(self._appended)
            data = file.read()
        for start in range(0, len(data), 4 << 20):
            blob.append_block(data[start : start + (4 << 20)])
        self._appended += len(data)
