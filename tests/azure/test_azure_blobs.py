"""Blobs of a datastore: uploads that resume, in blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from azure.core.exceptions import ServiceRequestError, ServiceResponseError
from azure.storage.blob import ContainerClient
from azure_local import AzureLocal

from orchestration.azure.blobs import BLOCK_BYTES, MAX_BLOCKS, Store, block_bytes, build_block_id, build_container

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

TIB = 2**40


@pytest.fixture
def store(azure: AzureLocal, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The container of the default datastore."""
    for name, value in azure.variables.items():
        monkeypatch.setenv(name, value)
    container = build_container(azure.cloud.account, azure.container, azure.account_key, 0.01, "core.windows.net")
    return Store("store", azure.cloud.account, container, identity_based=False)


def test_a_blob_of_any_size_that_azure_stores_has_no_more_blocks_than_it_allows() -> None:
    assert block_bytes(BLOCK_BYTES + 1) == block_bytes(390 * 2**30) == BLOCK_BYTES
    for size in (391 * 2**30, round(4.75 * TIB), 190 * TIB):
        assert -(-size // block_bytes(size)) <= MAX_BLOCKS
    assert block_bytes(round(4.75 * TIB)) == 100 * 2**20
    assert block_bytes(190 * TIB) <= 4000 * 2**20
    assert len(build_block_id(MAX_BLOCKS - 1, b"")) == len(build_block_id(0, b"x")) == 46


def test_an_upload_that_was_cut_continues_with_the_blocks_that_are_missing(
    azure: AzureLocal, store: Store, tmp_path: Path
) -> None:
    file, path = tmp_path / "pack", "msggan/data/pack"
    content = os.urandom(4 * BLOCK_BYTES + 5)
    file.write_bytes(content)
    # The SDK may have left blocks too, of an upload by an earlier version of the package.
    client = ContainerClient(
        store.container.url.rpartition("/")[0],
        azure.container,
        credential=azure.account_key,
        max_single_put_size=1,
        max_block_size=2**20,
        retry_total=0,
    )
    azure.fault("PUT", "comp=block&", nth=2, times=10**6, drop="before")
    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        client.upload_blob(path, content)
    azure.faults.clear()

    azure.fault("PUT", "comp=block&", nth=3, times=10**6, drop="before")
    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        store.upload(file, path, lambda done, total: None)
    azure.faults.clear()
    assert azure.blobs_below("msggan/data/") == []

    azure.recording.clear()
    progress: list[tuple[int, int]] = []
    store.upload(file, path, lambda *step: progress.append(step))
    assert len(azure.made("PUT", path)) == 3 + 1  # two of the five were there; and the list of all
    assert azure.blob(path) == content
    assert progress == sorted(progress)
    assert progress[-1] == (len(content), len(content))
    azure.recording.clear()
    store.upload(file, path, lambda *step: None)  # over the blob itself
    assert (len(azure.made("PUT", path)), azure.blob(path) == content) == (1, True)
