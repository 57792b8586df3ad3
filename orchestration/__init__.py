"""The public API of orchestration. Each name is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestration.azure.target import AzureTarget
    from orchestration.local.target import LocalTarget
    from orchestration.spec import RunSpec
    from orchestration.status import RunStatus
    from orchestration.sweeps.space import read_space
    from orchestration.sweeps.spec import SweepSpec
    from orchestration.sweeps.status import SweepStatus
    from orchestration.targets import Run

__all__ = ["AzureTarget", "LocalTarget", "Run", "RunSpec", "RunStatus", "SweepSpec", "SweepStatus", "read_space"]

_HOMES = {
    "AzureTarget": "orchestration.azure.target",
    "LocalTarget": "orchestration.local.target",
    "Run": "orchestration.targets",
    "RunSpec": "orchestration.spec",
    "RunStatus": "orchestration.status",
    "SweepSpec": "orchestration.sweeps.spec",
    "SweepStatus": "orchestration.sweeps.status",
    "read_space": "orchestration.sweeps.space",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'orchestration' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
