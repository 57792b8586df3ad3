"""A local emulator of Azure Machine Learning that serves the unmodified Azure SDK over TLS under Azure's host names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cloud import Settings
    from .local import AzureLocal

__all__ = ["AzureLocal", "Settings"]


def __getattr__(name: str) -> Any:
    """Imports lazily, so that tests without Azure do not import the storage SDK."""
    if name not in __all__:
        raise AttributeError(name)
    from . import cloud, local

    return local.AzureLocal if name == "AzureLocal" else cloud.Settings
