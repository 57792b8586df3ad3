"""The public names of msggan, loaded when first used: `import msggan` itself does not load torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msggan.config import TrainConfig
    from msggan.networks import Discriminator, Generator
    from msggan.runs.checkpoint import load_generator
    from msggan.runs.run import Run
    from msggan.trainer import Trainer

    __version__: str

__all__ = ["Discriminator", "Generator", "Run", "TrainConfig", "Trainer", "__version__", "load_generator"]

_HOMES = {
    "Discriminator": "msggan.networks",
    "Generator": "msggan.networks",
    "Run": "msggan.runs.run",
    "TrainConfig": "msggan.config",
    "Trainer": "msggan.trainer",
    "load_generator": "msggan.runs.checkpoint",
}

# Stop these packages from sending usage data to their makers, unless the user has set the variables. They are read
# when the packages are imported, and inherited by child processes. README.md lists under Telemetry what would be sent.
TELEMETRY_SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime
    "AZURE_CORE_COLLECT_TELEMETRY": "false",  # the Azure CLI, which azure-identity starts for a token
}
for _name, _value in TELEMETRY_SWITCHES.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("msggan")
    if name not in _HOMES:
        raise AttributeError(f"module 'msggan' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
