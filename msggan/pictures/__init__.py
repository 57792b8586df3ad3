"""Pictures and films of trained generators."""

from msggan.pictures.films import interpolation
from msggan.pictures.grids import TruncatedGenerator, all_scales_sheet, enlarged, generate, grid

__all__ = ["TruncatedGenerator", "all_scales_sheet", "enlarged", "generate", "grid", "interpolation"]
