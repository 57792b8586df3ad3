"""What does `import orchestration` offer? The public names, loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestration.azure.target import AzureTarget
    from orchestration.local.target import LocalTarget
    from orchestration.spec import Run, RunSpec
    from orchestration.sweeps.space import read_space
    from orchestration.sweeps.spec import SweepSpec, SweepStatus

__all__ = ["AzureTarget", "LocalTarget", "Run", "RunSpec", "SweepSpec", "SweepStatus", "read_space"]

_HOMES = {
    "AzureTarget": "orchestration.azure.target",
    "LocalTarget": "orchestration.local.target",
    "Run": "orchestration.spec",
    "RunSpec": "orchestration.spec",
    "SweepSpec": "orchestration.sweeps.spec",
    "SweepStatus": "orchestration.sweeps.spec",
    "read_space": "orchestration.sweeps.space",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'orchestration' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
