"""The value of --data: a path on this machine, or an address in Azure."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote

from msggan.commands.options import data_problems
from msggan.commands.verbs import PACK_SUFFIX

DATASTORE_PATH = re.compile(
    r"azureml://(?:subscriptions/[^/]+/resource[Gg]roups/[^/]+/(?:providers/[^/]+/)?workspaces/[^/]+/)?"
    r"datastores/(?P<datastore>[^/]+)/paths/(?P<path>.+)"
)
DATA_ASSET = re.compile(r"azureml:(?P<name>[A-Za-z0-9][\w.-]*):(?P<version>[\w.-]+)")
BLOB_URL = re.compile(
    r"https://(?P<account>[a-z0-9]{3,24})\.blob\.core\.windows\.net/(?P<container>[^/]+)/(?P<path>.+)"
)

FORMS = (
    "On Azure, use azureml://datastores/DATASTORE/paths/PATH, azureml:ASSET:VERSION "
    "or https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH."
)
SECRET = re.compile(r"[?&;#](?:sig|sv|se|sp)=|AccountKey=|SharedAccess\w*=|//[^/]*@", re.IGNORECASE)
FILE_SUFFIXES = (".zip", PACK_SUFFIX)


@dataclass(frozen=True)
class DatastorePath:
    """A path in a datastore."""

    datastore: str
    path: str

    @property
    def uri(self) -> str:
        return f"azureml://datastores/{self.datastore}/paths/{self.path}"


def is_remote(data: str) -> bool:
    """Whether --data is an address and not a path on this machine."""
    return not os.path.exists(data) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|azureml:", data) is not None


def source_problems(data: str | None) -> list[str]:
    """Every problem with the text of --data that is found without opening it. Secrets are not repeated."""
    if not data or os.path.exists(data):
        return data_problems(data)
    if SECRET.search(_unquoted(data)):
        return [
            f"--data {_shown(data)}: contains a secret. Command lines are visible to every user of this machine. "
            "Remove the secret; the job reads with the datastore's or your own identity."
        ]
    if not is_remote(data):
        return data_problems(data)
    if any(form.fullmatch(data) for form in (DATASTORE_PATH, DATA_ASSET, BLOB_URL)):
        return []
    return [f"--data {data}: is not an address that a job can read. {FORMS}"]


def in_datastore(uri: str) -> DatastorePath | None:
    """The datastore path of an azureml:// address, None for other addresses."""
    found = DATASTORE_PATH.fullmatch(uri)
    return DatastorePath(found["datastore"], unquote(found["path"])) if found else None


def is_file(uri: str) -> bool:
    """Whether an address refers to one file, judging by its suffix."""
    return uri.lower().endswith(FILE_SUFFIXES)


def path_of(data: str) -> str:
    """The part of --data from which the run gets its default name: the asset's name, or the path."""
    asset = DATA_ASSET.fullmatch(data)
    return asset["name"] if asset else data


def _unquoted(data: str) -> str:
    """The text with percent-encoding removed, also where it was applied several times."""
    while (plain := unquote(data)) != data:
        data = plain
    return data


def _shown(data: str) -> str:
    """The start of an address, up to where a secret could begin."""
    return re.split(r"[?#&;=%]", re.sub(r"//[^/]*@", "//***@", data))[0]
