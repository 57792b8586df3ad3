"""The code of a job: the msggan package and nothing else, wherever it is installed, uploaded and registered once."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from azure.core.exceptions import HttpResponseError
from azure.core.rest import HttpRequest

import msggan
from orchestration.azure.blobs import Store, ensure_uploaded
from orchestration.azure.client import MANAGEMENT_URL, Client
from orchestration.status import Reporter

PACKAGE = "msggan"
CODE_FOLDER = "msggan/code"  # in the workspace's default datastore
API_VERSION = "2023-04-01"  # which the SDK uses for code
CONFLICT = 409


def build_snapshot() -> dict[str, bytes]:
    """The files of the snapshot by path. The same package gives the same files, byte for byte."""
    files = {}
    for package in map(Path, msggan.__path__):
        for path in sorted(package.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                files[(PACKAGE / path.relative_to(package)).as_posix()] = path.read_bytes()
    # A job installs nothing: this is where Python finds the package's version there.
    metadata = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version(PACKAGE)}\n"
    files[f"{PACKAGE}-{version(PACKAGE)}.dist-info/METADATA"] = metadata.encode()
    return files


def ensure_code(store: Store, client: Client, reporter: Reporter) -> str:
    """Uploads and registers the snapshot unless it is there. Returns the ID by which a job refers to it.

    store: the workspace's default datastore, from which the service reads code. Raises MsgganError.
    """
    files = build_snapshot()
    size = sum(map(len, files.values()))
    reporter.info(f"Using the {PACKAGE} package as the job's code: {len(files)} files, {size / 1024:.0f} KiB.")
    url = ensure_uploaded(client, store, CODE_FOLDER, files)
    number = hashlib.sha256(url.encode()).hexdigest()[:16]
    code = f"{client.scope}/codes/{PACKAGE}/versions/{number}"
    request = HttpRequest(
        "PUT",
        f"{MANAGEMENT_URL}{code}",
        params={"api-version": API_VERSION},
        json={"properties": {"codeUri": url, "description": f"The {PACKAGE} package {version(PACKAGE)}"}},
    )
    with client.errors("Registering the code snapshot"):
        try:
            client.send(request)
        except HttpResponseError as error:
            if error.status_code != CONFLICT:  # somebody else registered the same content at the same time
                raise
    return code
