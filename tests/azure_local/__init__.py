"""A local Azure, which the unmodified Azure SDK talks to over TLS and by the real host names, on this machine alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .local import AzureLocal

__all__ = ["AzureLocal"]


def __getattr__(name: str) -> Any:
    """Loaded when it is wanted: a test run without Azure does not wait for the storage SDK."""
    if name != "AzureLocal":
        raise AttributeError(name)
    from .local import AzureLocal

    return AzureLocal
