"""What all tests of Azure share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _left_behind() -> Iterator[None]:
    """The connections that the SDK left open are collected here, where their warnings are expected."""
    yield
    gc.collect()
