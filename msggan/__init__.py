"""What does `import msggan` offer? The public names, loaded when first used: the import itself loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msggan.telemetry import turn_off_telemetry

if TYPE_CHECKING:
    from msggan.checkpoint import load_generator
    from msggan.config import TrainConfig
    from msggan.networks import Discriminator, Generator
    from msggan.run import Run
    from msggan.trainer import Trainer

    __version__: str

__all__ = ["Discriminator", "Generator", "Run", "TrainConfig", "Trainer", "__version__", "load_generator"]

_HOMES = {
    "Discriminator": "msggan.networks",
    "Generator": "msggan.networks",
    "Run": "msggan.run",
    "TrainConfig": "msggan.config",
    "Trainer": "msggan.trainer",
    "load_generator": "msggan.checkpoint",
}

turn_off_telemetry()  # at import: the packages below read it when they are imported


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
