"""How does a small folder get to the workspace's own storage? By the hash of its content: each file once, and whole.

The SDK's own uploader waits for ever where the answer to one of its requests is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from orchestration.azure.blobs import Store
from orchestration.azure.client import Client

UPLOADED_AT_ONCE = 8


def ensure_uploaded(client: Client, store: Store, folder: str, files: Mapping[str, bytes]) -> str:
    """Uploads what is not there of the files, and returns the address of the folder with them, without a slash.

    folder: where all of this kind lie in the store's container; below it each content has a folder of its own, so two
    who upload the same at once write the same. Raises MsgganError.
    """
    place = f"{folder}/{hash_of(files)}"
    with client.errors(f"Uploading {len(files)} files to the datastore {store.datastore}"):
        there = {blob.name: blob.size for blob in store.walk(place)}
        missing = [path for path, content in files.items() if there.get(path) != len(content)]
        with ThreadPoolExecutor(UPLOADED_AT_ONCE) as threads:
            list(threads.map(lambda path: store.write(f"{place}/{path}", files[path]), missing))
    return store.url_of(place)


def hash_of(files: Mapping[str, bytes]) -> str:
    """The SHA-256 of files by path, in whatever order they come."""
    content = hashlib.sha256()
    for path in sorted(files):
        for part in (path.encode(), files[path]):
            content.update(len(part).to_bytes(8, "big") + part)
    return content.hexdigest()
