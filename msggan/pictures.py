"""What a generator's images look like side by side: grids of one scale, and a sheet of all scales."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.utils import make_grid

from msggan.networks import Generator

SHEET_COLUMNS = 8
PADDING_PX = 2
CHUNK = 64


@torch.no_grad()
def generate(generator: Generator, latents: Tensor) -> list[Tensor]:
    """latents: (N, L) → the pyramid as pixels, coarse to fine: (N, 3, r, r) uint8 on the CPU, in bounded memory."""
    weight = next(generator.parameters())
    chunks = [generator(chunk.to(weight)) for chunk in latents.split(CHUNK)]
    return [torch.cat([to_pixels(images).cpu() for images in level]) for level in zip(*chunks, strict=True)]


def to_pixels(images: Tensor) -> Tensor:
    """(…) float, about [-1, 1] → uint8: the same brightness for the same number, whatever else is in the picture."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(images: Tensor) -> Image.Image:
    """(N, 3, r, r) uint8 → one picture, about square."""
    columns = max(1, round(len(images) ** 0.5))
    return _picture(make_grid(images, nrow=columns, padding=PADDING_PX, pad_value=255))


def all_scales_sheet(pyramid: Sequence[Tensor]) -> Image.Image:
    """Pyramid of uint8 → one picture: a column a sample, a row a scale from 4² down to the finest, all of one size."""
    side = max(64, pyramid[-1].shape[-1])
    rows = [functional.interpolate(level[:SHEET_COLUMNS], size=(side, side)) for level in pyramid]
    return _picture(make_grid(torch.cat(rows), nrow=len(rows[0]), padding=PADDING_PX, pad_value=255))


def write_samples(folder: Path, images_seen: int, pyramid: Sequence[Tensor]) -> Path:
    """Writes a grid for each scale and the sheet of all; returns the finest grid's path."""
    folder.mkdir(parents=True, exist_ok=True)
    all_scales_sheet(pyramid).save(folder / f"{images_seen:09d}_scales.png")
    path = folder
    for images in pyramid:
        path = folder / f"{images_seen:09d}_{images.shape[-1]}px.png"
        grid(images).save(path)
    return path


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
