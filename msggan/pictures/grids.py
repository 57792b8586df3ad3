"""A generator's images: generated in bounded memory, with truncation, side by side in grids, and as a run's samples.

Grids are pasted one image at a time: torchvision's make_grid needs all images in memory, and a second to import.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from msggan.commands.options import must_be_one_of, refuse
from msggan.networks import Generator, pixel_norm, with_labels
from msggan.randomness import Purpose, labels_of, latents, latents_of
from msggan.resources import PIXELS_AT_ONCE
from msggan.runs.files import write_whole

SHEET_COLUMNS = 8
PADDING_PX = 2
CHUNK = 64  # images that are computed at a time, fewer if they have more than PIXELS_AT_ONCE together
MEAN_OF = 1024  # latents: the mean of their features is within a thirtieth of their spread
# Smaller grids are enlarged by a whole factor: image viewers show them tiny, or blur them.
MIN_SIDE_PX = 512


# --- Generating -------------------------------------------------------------------------------------------------------


class TruncatedGenerator(nn.Module):
    """A generator whose images are drawn towards the typical one: latents (N, L) → pyramid, as `Generator`.

    Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks", CVPR 2019, appendix B:
    w' = w̄ + ψ (w − w̄), where ψ is the truncation: near 1 little changes, at 0 all images are the same.

    Departure: w is what the first block makes of a latent, features (L, 4, 4), and w' is given the pixel norm that
    those have. In latents themselves it cannot be done: they lie on the sphere of radius √L, whose mean is its
    centre, and a latent that is drawn there only becomes shorter, which the first pixel norm takes back.
    """

    mean: Tensor

    def __init__(self, generator: Generator, truncation: float) -> None:
        super().__init__()
        self.generator, self.truncation = generator, truncation
        self.depth, self.latent_size, self.classes = generator.depth, generator.latent_size, generator.classes
        self.register_buffer("mean", mean_features(generator))

    def forward(self, latents: Tensor) -> list[Tensor]:
        features, mean = self.generator.first(latents), self.mean
        if self.classes:
            mean = torch.tensordot(latents[:, self.latent_size :], mean, dims=1)
        return self.generator.render(pixel_norm(mean + self.truncation * (features - mean)))


@torch.no_grad()
def mean_features(generator: Generator) -> Tensor:
    """(1, L, 4, 4), or (C, L, 4, 4) by class: the mean of what the first block makes of always the same latents."""
    weight = next(generator.parameters())
    drawn = latents(0, range(MEAN_OF), generator.latent_size, Purpose.SAMPLE).to(weight)
    means = []
    for label in range(max(1, len(generator.classes))):
        inputs = generator.with_labels(drawn, torch.full((MEAN_OF,), label, device=weight.device))
        sums: list[Tensor] = [generator.first(chunk).sum(dim=0, keepdim=True) for chunk in inputs.split(CHUNK)]
        means.append(torch.cat(sums).sum(dim=0, keepdim=True) / MEAN_OF)
    return torch.cat(means)


Network = Generator | TruncatedGenerator
Label = str | int
"""A class, by its name or number."""


def inputs_of(network: Network, seeds: Iterable[int], labels: Label | Sequence[Label] | None = None) -> Tensor:
    """What the generator takes for these seeds: (N, L) float32, with classes (N, L + C).

    labels: the class, or that of each seed; by default one is drawn for each, as often as it is in the data. Raises
    `UsageError` if the generator has no such class.
    """
    seeds, classes = list(seeds), network.classes
    given = [labels] * len(seeds) if isinstance(labels, Label) else labels
    refuse(label_problems(given or (), classes))
    drawn = latents_of(seeds, network.latent_size)
    if not classes:
        return drawn
    names = [*classes]
    numbers = (
        labels_of(seeds, [*classes.values()])
        if given is None
        else [label if isinstance(label, int) else names.index(label) for label in given]
    )
    return with_labels(drawn, torch.tensor(numbers, dtype=torch.int64), len(classes))


def label_problems(labels: Sequence[Label], classes: Mapping[str, int], *, option: str = "label") -> list[str]:
    """Complaints about labels that are not classes."""
    if labels and not classes:
        return [f"{option} {labels[0]}: this generator has no classes; it was not trained with --labels folders."]
    known = {*classes, *range(len(classes))}
    wrong = [label for label in dict.fromkeys(labels) if label not in known]
    return [f"{option} {label}: {must_be_one_of(str(label), [*classes])}" for label in wrong]


def rows_of_classes(network: Network, latents: Tensor) -> tuple[Tensor, int]:
    """latents: (N, L) → what the generator takes for about N images, a row for each class; the columns of the grid.

    All rows are of the same latents. Without classes these are the latents, and 0 columns: a square grid.
    """
    classes = len(network.classes)
    if not classes:
        return latents, 0
    columns = -(-len(latents) // classes)
    inputs = with_labels(
        latents[:columns].repeat(classes, 1), torch.arange(classes).repeat_interleave(columns), classes
    )
    return inputs, columns if columns > 1 else 0


def generate(generator: Network, latents: Tensor, *, chunk: int | None = None) -> list[Tensor]:
    """latents: (N, L) → the pyramid as pixels, coarse to fine: (N, 3, r, r) uint8 on the CPU.

    On the generator's device there are never more than `chunk` images; by default as many as have 2^18 pixels together,
    at most 64: 64 up to 64², 16 of 128², 1 from 512² on. The CPU holds the pixels of all, twice for a moment.

    The last bits of an image depend on how many are computed beside it; with a chunk of 1 its bytes depend on nothing
    but its latent.
    """
    parts = generate_parts(generator, latents, chunk=chunk)
    return [torch.cat(level) for level in zip(*parts, strict=True)]


@torch.no_grad()
def generate_parts(generator: Network, latents: Tensor, *, chunk: int | None = None) -> Iterator[list[Tensor]]:
    """The pyramids of `generate`, one chunk at a time, for images that need not be in memory together."""
    weight = next(generator.parameters())
    finest_px = 2 << generator.depth
    for part in latents.split(chunk or max(1, min(CHUNK, PIXELS_AT_ONCE // finest_px**2))):
        yield [to_pixels(images).cpu() for images in generator(part.to(weight))]


def to_pixels(images: Tensor) -> Tensor:
    """(…) float, about [-1, 1] → uint8: the same brightness for the same number, whatever else is in the picture."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def picture(image: Tensor) -> Image.Image:
    """(3, H, W) uint8 → a picture of exactly these pixels."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def grid(images: Tensor, *, columns: int = 0) -> Image.Image:
    """(N, 3, r, r) uint8 → one picture, about square unless it has so many columns."""
    return grid_of(images, count=len(images), side=images.shape[-1], columns=columns)


def grid_of(images: Iterable[Tensor], *, count: int, side: int, columns: int = 0) -> Image.Image:
    """The grid of `count` images, each (3, side, side) uint8, consumed one at a time."""
    if count == 1:
        (image,) = images
        return picture(image)
    columns = columns or max(1, round(count**0.5))
    return side_by_side(images, columns=columns, rows=-(-count // columns), side=side)


def all_scales_sheet(pyramid: Sequence[Tensor]) -> Image.Image:
    """Pyramid of uint8 → one picture: a column per sample, a row per scale from 4² to the finest, all of one size."""
    side = max(64, pyramid[-1].shape[-1])
    rows = [level[:SHEET_COLUMNS] for level in pyramid]
    cells = (functional.interpolate(image[None], size=(side, side))[0] for level in rows for image in level)
    return side_by_side(cells, columns=len(rows[0]), rows=len(rows), side=side)


def side_by_side(images: Iterable[Tensor], *, columns: int, rows: int, side: int) -> Image.Image:
    """images: each (3, side, side) uint8, row by row; on white, with a margin around each."""
    step = side + PADDING_PX
    shown = Image.new("RGB", (columns * step + PADDING_PX, rows * step + PADDING_PX), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        shown.paste(picture(image), (PADDING_PX + column * step, PADDING_PX + row * step))
    return shown


def enlarged(picture: Image.Image, *, min_side_px: int = MIN_SIDE_PX) -> Image.Image:
    """The picture in larger pixels, its shorter side at least `min_side_px`; unchanged if it is large enough."""
    factor = enlargement(picture.size, min_side_px=min_side_px)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def enlargement(size: tuple[int, int], *, min_side_px: int = MIN_SIDE_PX) -> int:
    """The whole factor by which a picture of this size is enlarged."""
    return -(-min_side_px // min(size))


def thumbnail(path: Path, side_px: int) -> bytes:
    """A picture as PNG, its longer side at most `side_px`. Raises `OSError` or `ValueError` if it cannot be read."""
    with Image.open(path, formats=["PNG"]) as picture:
        if max(picture.size) <= side_px:
            return path.read_bytes()
        small = picture.convert("RGB")
    small.thumbnail((side_px, side_px))
    return as_png(small)


def write_samples(folder: Path, images_seen: int, pyramid: Sequence[Tensor], *, columns: int = 0) -> Path:
    """Writes a grid of each scale and the sheet of all, enlarged for viewing; returns the path of the finest grid.

    columns: of the grids, 0: about as many as rows. The sheet then has the first image of each row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    on_sheet = [images[:: columns or 1] for images in pyramid]
    write_whole(folder / f"{images_seen:09d}_scales.png", as_png(enlarged(all_scales_sheet(on_sheet))))
    path = folder
    for images in pyramid:
        path = folder / f"{images_seen:09d}_{images.shape[-1]}px.png"
        write_whole(path, as_png(enlarged(grid(images, columns=columns))))
    return path


def as_png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def find_samples(folder: Path) -> dict[int, list[Path]]:
    """The grids that `write_samples` wrote: by scale, coarse to fine, each from first to last."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for path in folder.glob("*px.png"):
        if match := re.fullmatch(r"([0-9]{9,})_([0-9]+)px\.png", path.name):
            found.setdefault(int(match[2]), []).append((int(match[1]), path))
    return {side: [path for _, path in sorted(found[side])] for side in sorted(found)}
