"""Pictures and films of trained generators. The public names are loaded when first used: they need torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msggan.pictures.films import interpolation
    from msggan.pictures.grids import TruncatedGenerator, all_scales_sheet, enlarged, generate, grid

__all__ = ["TruncatedGenerator", "all_scales_sheet", "enlarged", "generate", "grid", "interpolation"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'msggan.pictures' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("msggan.pictures.films" if name == "interpolation" else "msggan.pictures.grids"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
