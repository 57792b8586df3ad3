"""How do files get between a job's folders and the blob service? Fetched once, and carried as they change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from azure.core.exceptions import ResourceNotFoundError

from .blobs import Blobs, Place


def fetch(blobs: Blobs, place: Place, folder: Path) -> Path:
    """Brings what is at a place; the path of the folder, or of the file if the place is one blob."""
    folder.mkdir(parents=True, exist_ok=True)
    found = folder
    for blob, name in place.files(blobs):
        target = folder / (name or Path(blob).name)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.write_bytes(blobs.read(place.account, place.container, blob))
        except ResourceNotFoundError:  # another job took it away since
            continue
        if not name:
            found = target
    return found


class Mirror:
    """Keeps a place on the blob service like a local folder or file; `carry` brings it up to date."""

    def __init__(
        self, blobs: Blobs, local: Path, place: Place, *, deletes: bool = False, appends: bool = False
    ) -> None:
        self.blobs, self.local, self.place = blobs, local, place
        self.deletes, self.appends = deletes, appends
        self._carried: dict[str, tuple[int, int]] = {}
        self._appended: int | None = None  # how much of the local file is there; None before the blob is

    def remember(self) -> None:
        """What is there now came from the place."""
        self._carried = {name: stamp for name, _, stamp in self._files()}

    def carry(self, is_lost: Callable[[], bool] = lambda: False) -> None:
        """is_lost: whether the machine has gone meanwhile, and what is left to carry with it."""
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
                except FileNotFoundError:  # renamed since
                    continue
                self.blobs.write(self.place.account, self.place.container, self._blob(name), data)
                self._carried[name] = stamp
        for name in [name for name in self._carried if name not in seen]:
            del self._carried[name]
            if self.deletes:
                self.blobs.container(self.place.account, self.place.container).delete_blob(self._blob(name))

    def _blob(self, name: str) -> str:
        return self.place.below(name) if name else self.place.path

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
        blob = self.blobs.container(self.place.account, self.place.container).get_blob_client(self.place.path)
        if self._appended is None:
            self._appended = 0
            if not blob.exists():  # a job that starts again goes on with its log
                blob.create_append_blob()
        with self.local.open("rb") as file:
            file.seek(self._appended)
            data = file.read()
        for start in range(0, len(data), 4 << 20):
            blob.append_block(data[start : start + (4 << 20)])
        self._appended += len(data)
