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
    "In Azure, images are azureml://datastores/DATASTORE/paths/PATH, azureml:ASSET:VERSION "
    "or https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH."
)
SECRET = re.compile(r"[?&;#](?:sig|sv|se|sp)=|AccountKey=|SharedAccess\w*=|//[^/]*@", re.IGNORECASE)
FILE_SUFFIXES = (".zip", PACK_SUFFIX)


@dataclass(frozen=True)
class DatastorePath:
    """A path in a datastore; `folder` is the one that ends with a slash or has no suffix of ours."""

    datastore: str
    path: str

    @property
    def uri(self) -> str:
        return f"azureml://datastores/{self.datastore}/paths/{self.path}"


def is_remote(data: str) -> bool:
    """Whether --data is an address and not a path on this machine."""
    return not os.path.exists(data) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|azureml:", data) is not None


def source_problems(data: str | None) -> list[str]:
    """Every complaint about the text of --data that can be made without opening it. Secrets are not repeated."""
    if not data or os.path.exists(data):
        return data_problems(data)
    if SECRET.search(_unquoted(data)):
        return [
            f"--data {_shown(data)}: holds a secret, which a command line must not: everyone on this machine sees it. "
            "Give the address without it; the job reads with the datastore's or your own identity."
        ]
    if not is_remote(data):
        return data_problems(data)
    if any(form.fullmatch(data) for form in (DATASTORE_PATH, DATA_ASSET, BLOB_URL)):
        return []
    return [f"--data {data}: is no address that a job can read. {FORMS}"]


def in_datastore(uri: str) -> DatastorePath | None:
    """The path in a datastore that an address names, None for other addresses."""
    found = DATASTORE_PATH.fullmatch(uri)
    return DatastorePath(found["datastore"], unquote(found["path"])) if found else None


def is_file(uri: str) -> bool:
    """Whether an address is of one file, as far as its name tells."""
    return uri.lower().endswith(FILE_SUFFIXES)


def path_of(data: str) -> str:
    """The part of --data that a run is named after: the asset's name, or the path."""
    asset = DATA_ASSET.fullmatch(data)
    return asset["name"] if asset else data


def _unquoted(data: str) -> str:
    """The text without percent signs that stand for others, as often as it was so written."""
    while (plain := unquote(data)) != data:
        data = plain
    return data


def _shown(data: str) -> str:
    """As much of an address as surely holds no secret."""
    return re.split(r"[?#&;=%]", re.sub(r"//[^/]*@", "//***@", data))[0]
