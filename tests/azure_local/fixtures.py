"""The pytest fixture `azure`: a local Azure, empty for each test and started once per process."""

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
    """The names in the local Azure, and the interpreter of its jobs; to be overridden in a conftest.py."""
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
    """An empty workspace. The test fails if anything asked for another host or for what the local Azure does not know;
    a test that means to do so calls `azure.recording.clear()` at its end."""
    _azure_process.reset()
    yield _azure_process
    complaints = _azure_process.complaints()
    _azure_process.end_jobs()
    assert not complaints, "\n".join(complaints)
