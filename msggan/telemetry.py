"""Which switches stop the packages we use from sending usage data to their makers? `import msggan` sets them all.

Every process of ours imports msggan before the packages, which read the switches when they are imported; what it starts
inherits them. README.md says under Telemetry what each package would send.
"""

from __future__ import annotations

import os

SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime
    "AZURE_CORE_COLLECT_TELEMETRY": "false",  # the Azure CLI, which azure-identity starts for a token
}


def turn_off_telemetry() -> None:
    """Sets the switches in this process's environment, except those that the user has set."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
