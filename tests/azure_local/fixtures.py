"""How does a test get a local Azure? By the fixture `azure`: empty for each test, started once a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from . import azurite

if TYPE_CHECKING:
    from .local import AzureLocal


@pytest.fixture(scope="session")
def _azure_process() -> Iterator[AzureLocal]:
    reason = azurite.missing()
    if reason:
        if os.environ.get("MSGGAN_TEST_REQUIRE_AZURE"):
            pytest.fail(f"The local Azure is needed here: {reason}")
        pytest.skip(reason)
    from .local import AzureLocal

    with AzureLocal() as local:
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
