"""A local Azure, which the unmodified Azure SDK talks to over TLS and by the real host names, on this machine alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cloud import Settings
    from .local import AzureLocal

__all__ = ["AzureLocal", "Settings"]


def __getattr__(name: str) -> Any:
    """Loaded when it is wanted: a test run without Azure does not wait for the storage SDK."""
    if name not in __all__:
        raise AttributeError(name)
    from . import cloud, local

    return local.AzureLocal if name == "AzureLocal" else cloud.Settings
