"""The pytest fixture `azure`: a local Azure, started once per process and emptied for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from . import azurite

if TYPE_CHECKING:
    from .cloud import Settings
    from .local import AzureLocal


@pytest.fixture(scope="session")
def azure_settings() -> Settings | None:
    """The names in the local Azure and the Python interpreter of its jobs; override it in a conftest.py."""
    return None


@pytest.fixture(scope="session")
def _azure_process(azure_settings: Settings | None) -> Iterator[AzureLocal]:
    reason = azurite.missing()
    if reason:
        if os.environ.get("AZURE_LOCAL_REQUIRED"):
            pytest.fail(f"The local Azure is needed here: {reason}")
        pytest.skip(reason)
    from .local import AzureLocal

    with AzureLocal(azure_settings) as local:
        yield local


@pytest.fixture
def azure(_azure_process: AzureLocal) -> Iterator[AzureLocal]:
    """An empty workspace. The test fails if a request was sent to another host, or is not implemented here;
    a test that does so on purpose calls `azure.recording.clear()` at its end.
    """
    _azure_process.reset()
    yield _azure_process
    complaints = _azure_process.complaints()
    _azure_process.end_jobs()
    assert not complaints, "\n".join(complaints)
