"""Small images for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw_tiny_images(folder: Path) -> Path:
    """24 different PNGs of 8 x 8 pixels: a coloured square on a coloured background."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(24):
        pixels = np.empty((8, 8, 3), np.uint8)
        pixels[:] = random.integers(0, 256, 3)
        top, left = random.integers(0, 5, 2)
        pixels[top : top + 4, left : left + 4] = random.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder
