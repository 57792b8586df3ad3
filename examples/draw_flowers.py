"""Draws a folder of flowers, each different: images to train on where none are at hand.

python examples/draw_flowers.py FOLDER [COUNT]
"""

from __future__ import annotations

import colorsys
import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE_PX = 96
Colour = tuple[int, int, int]


def main() -> None:
    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 400
    draw_flowers(folder, count)
    sys.stderr.write(f"{count} flowers drawn in {folder}\n")


def draw_flowers(folder: Path, count: int = 400) -> None:
    """So many PNGs; the same number is the same flower every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw_flower(random.Random(number)).save(folder / f"flower_{number:04d}.png")  # noqa: S311 - no secret


def draw_flower(chance: random.Random) -> Image.Image:
    """A flower on a meadow or a sky: 5 to 9 petals of one colour around a heart of another, on a stem."""
    sky = chance.random() < 0.4
    ground = shade(chance, (0.52, 0.6) if sky else (0.25, 0.4), (0.25, 0.5), (0.75, 0.95) if sky else (0.35, 0.6))
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), ground)
    draw = ImageDraw.Draw(image)
    x, y = (SIDE_PX * chance.uniform(0.44, 0.56) for _ in range(2))
    foot = SIDE_PX * chance.uniform(0.4, 0.6)
    green = shade(chance, (0.28, 0.38), (0.6, 0.9), (0.3, 0.55))
    draw.line((x, y, foot, SIDE_PX), fill=green, width=5)
    hue = chance.choice((0.95, 0.0, 0.05, 0.12, 0.15, 0.75, 0.83, 0.9)) + chance.uniform(-0.02, 0.02)
    petal = shade(chance, (hue, hue), (0.55, 1.0), (0.8, 1.0)) if chance.random() < 0.85 else (245, 245, 250)
    heart = shade(chance, (0.1, 0.16), (0.8, 1.0), (0.6, 1.0))
    draw_petals(draw, chance, (x, y), petal)
    radius = SIDE_PX * chance.uniform(0.08, 0.12)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=heart)
    return image


def draw_petals(draw: ImageDraw.ImageDraw, chance: random.Random, centre: tuple[float, float], colour: Colour) -> None:
    count, turn = chance.randint(5, 9), chance.uniform(0, math.tau)
    reach = SIDE_PX * chance.uniform(0.18, 0.24)
    radius = reach * min(0.75, math.pi / count * chance.uniform(0.9, 1.2))
    darker = tuple(round(part * 0.8) for part in colour)
    for petal in range(count):
        angle = turn + math.tau * petal / count
        x, y = centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=darker, width=2)


def shade(
    chance: random.Random, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    """A colour from ranges of hue, saturation and value, each in [0, 1]."""
    parts = colorsys.hsv_to_rgb(chance.uniform(*hue) % 1, chance.uniform(*saturation), chance.uniform(*value))
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


if __name__ == "__main__":
    main()
