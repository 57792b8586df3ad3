"""A local Azure, which the unmodified Azure SDK talks to over TLS and by the real host names, on this machine alone."""

from .local import AzureLocal

__all__ = ["AzureLocal"]
