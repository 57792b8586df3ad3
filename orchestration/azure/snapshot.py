"""What travels to a job as its code, and how? The msggan package and nothing else, wherever it is installed."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from azure.core.exceptions import HttpResponseError
from azure.core.rest import HttpRequest

import msggan
from orchestration.azure.blobs import Store, ensure_uploaded
from orchestration.azure.client import MANAGEMENT_URL, Client

PACKAGE = "msggan"
CODE_FOLDER = "msggan/code"  # in the workspace's default datastore
API_VERSION = "2023-04-01"  # the SDK's own, for code
CONFLICT = 409
LEFT_OUT = ("__pycache__",)


@dataclass(frozen=True)
class Snapshot:
    """A folder with what a job starts from: its files, relative, in order, and their size together."""

    folder: Path
    files: tuple[str, ...]
    bytes: int

    def __str__(self) -> str:
        return f"{len(self.files)} files, {self.bytes / 1024:.0f} KiB"


@contextmanager
def staged() -> Iterator[Snapshot]:
    """The snapshot, for as long as it is needed. The same package makes the same files, byte for byte."""
    with tempfile.TemporaryDirectory(prefix="msggan-snapshot-") as name:
        folder = Path(name)
        for source, path in _sources():
            destination = folder / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, destination)
        _write_metadata(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files)
        yield Snapshot(folder, tuple(path.relative_to(folder).as_posix() for path in files), size)


def _sources() -> Iterator[tuple[Path, Path]]:
    """Each file of the package, and where it goes."""
    for package in map(Path, msggan.__path__):
        for path in sorted(package.rglob("*")):
            if path.is_file() and not set(LEFT_OUT) & set(path.parts) and not path.name.startswith("."):
                yield path, PACKAGE / path.relative_to(package)


def _write_metadata(folder: Path) -> None:
    """Nothing is installed in a job: this is where Python finds the package's version there."""
    metadata = folder / f"{PACKAGE}-{version(PACKAGE)}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_bytes(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version(PACKAGE)}\n".encode())


def ensure_code(snapshot: Snapshot, store: Store, client: Client) -> str:
    """The id by which a job names the snapshot as its code; uploaded and made known where it is not yet.

    store: the workspace's default datastore, which the service reads code from. Raises MsgganError.
    """
    files = {path: (snapshot.folder / path).read_bytes() for path in snapshot.files}
    address = ensure_uploaded(client, store, CODE_FOLDER, files)
    number = hashlib.sha256(address.encode()).hexdigest()[:16]
    code = f"{client.scope}/codes/{PACKAGE}/versions/{number}"
    request = HttpRequest(
        "PUT",
        f"{MANAGEMENT_URL}{code}",
        params={"api-version": API_VERSION},
        json={"properties": {"codeUri": address, "description": f"The {PACKAGE} package {version(PACKAGE)}"}},
    )
    with client.errors("Making the code snapshot known"):
        try:
            client.send(request)
        except HttpResponseError as error:
            if error.status_code != CONFLICT:  # somebody else made it just then: the same content at the same place
                raise
    return code
