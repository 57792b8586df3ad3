"""The sliced Wasserstein distance between generated and real images, at each scale.

Karras et al., "Progressive Growing of GANs", section 5 and appendix C: small patches from every level of a Laplacian
pyramid, compared along random directions. Values are ×1000, lower is better.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from msggan.randomness import Purpose, rng
from msggan.resources import PIXELS_AT_ONCE

PATCH_PX = 7
PATCHES_PER_IMAGE = 128
MAX_PATCHES = 2**14  # fewer than ProGAN's, in fewer directions: ten times as fast, and the values are the same
DIRECTIONS = 128  # within what another draw of patches and directions changes (about 2 %)
MIN_LEVEL_PX = 16
DIRECTIONS_PER_PART = 64  # sorting along all of them at once would take gigabytes

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def distances(reals: Patches, fakes: Patches, *, seed: int = 0) -> dict[str, float]:
    """The distance between two equally large sets of images at each level: {"swd": their mean, "swd_16": …, …}.

    Levels go from 16 pixels to R; below 16 there is one, R itself, with patches of at most its size. Besides the
    patches it needs less than 100 MiB for sets of up to 16,384 images.
    """
    found = {
        f"swd_{side}": _distance(reals.normalised(side), fakes.normalised(side), seed=seed, side=side)
        for side in levels_of(reals.side)
    }
    return {"swd": sum(found.values()) / len(found), **found}


def spectrum_ratio(reals: Tensor, fakes: Tensor) -> Tensor:
    """The power of fakes' brightness over that of reals', for 0, 1, … R/2 cycles per side in any direction: (R/2 + 1,).

    reals, fakes: (N, 3, R, R), uint8 or float. The last value is of R/2 and more; far above 1, it is a weave of pixels.
    """
    side = reals.shape[-1]
    frequencies = torch.fft.fftfreq(side, 1 / side, device=reals.device)
    cycles = torch.hypot(frequencies[:, None], frequencies).round().long().clamp(max=side // 2).flatten()
    window = torch.hann_window(side, device=reals.device)  # the borders of an image are no edges in it
    powers = []
    for images in (fakes, reals):
        brightness = images.float().mean(dim=1)
        centred = (brightness - brightness.mean(dim=(1, 2), keepdim=True)) * torch.outer(window, window)
        power = torch.fft.fft2(centred).abs().square().mean(dim=0).flatten()
        powers.append(torch.zeros(side // 2 + 1, device=reals.device).index_add_(0, cycles, power))
    return powers[0] / powers[1]


class Patches:
    """Small patches at random positions of each of `count` images, at every level of their Laplacian pyramids.

    Images are added in order, in parts of any size, which does not change the patches, and are not kept. Memory:
    2^14 patches of 7² pixels for each level (10 MiB; beyond 2^14 images, a patch for each image) and the pyramid of
    2^18 pixels, or of one image if that has more (30 MiB at 512², 120 MiB at 1024²).
    """

    def __init__(self, count: int, side: int, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        """count: the number of images. side: their height and width, R."""
        self.count, self.side = count, side
        self.device = torch.device(device)
        self.added = 0
        each = max(1, min(PATCHES_PER_IMAGE, MAX_PATCHES // count))
        self._corners, self._pixels = {}, {}
        for level in levels_of(side):
            size = min(PATCH_PX, level)
            drawn = rng(seed, Purpose.PATCH, level).integers(0, level - size + 1, size=(2, count, each))
            self._corners[level] = torch.from_numpy(drawn).to(self.device)
            self._pixels[level] = torch.empty(count, each, size, size, 3, device=self.device)

    def add(self, images: Tensor) -> None:
        """images: (n, 3, R, R) uint8, the next n."""
        for some in images.split(max(1, PIXELS_AT_ONCE // self.side**2)):
            added = slice(self.added, self.added + len(some))
            for level in laplacian_pyramid(some.to(self.device).contiguous().float()):
                side = level.shape[-1]
                self._pixels[side][added] = _cut(level, *self._corners[side][:, added])
            self.added += len(some)

    def normalised(self, side: int) -> Tensor:
        """(M, 3·p·p) float32: all patches of a level; each channel has mean 0 and deviation 1 over them."""
        patches = self._pixels[side].flatten(0, 1)
        patches = patches - patches.mean(dim=(0, 1, 2))
        patches = patches / patches.square().mean(dim=(0, 1, 2)).sqrt().clamp_min(1e-8)
        return patches.flatten(1)


def levels_of(side: int) -> list[int]:
    """The sides of the levels at which images of this side are compared, coarse to fine: 16, 32, … side."""
    return [*levels_of(side // 2), side] if side > MIN_LEVEL_PX else [side]


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """images: (N, 3, R, R) float → [R² detail, (R/2)² detail, … 16² remainder]."""
    levels = []
    while images.shape[-1] > MIN_LEVEL_PX:
        smaller = _blur(images, 1)[..., ::2, ::2]
        levels.append(images - _enlarge(smaller))
        images = smaller
    return [*levels, images]


def _enlarge(images: Tensor) -> Tensor:
    """Twice the side: zeros between the pixels, then the blur that spreads them."""
    count, channels, height, width = images.shape
    spread = images.new_zeros(count, channels, 2 * height, 2 * width)
    spread[..., ::2, ::2] = images
    return _blur(spread, 4)


def _blur(images: Tensor, gain: float) -> Tensor:
    """The 5×5 binomial filter, mirrored at the edges."""
    kernel = torch.tensor(BINOMIAL, dtype=images.dtype, device=images.device)
    weight = (gain * torch.outer(kernel, kernel)).expand(3, 1, 5, 5)
    return functional.conv2d(functional.pad(images, (2, 2, 2, 2), mode="reflect"), weight, groups=3)


def _cut(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """images: (N, 3, r, r); top, left: (N, n) → (N, n, p, p, 3): patches of p = min(7, r) pixels from these corners."""
    offset = torch.arange(min(PATCH_PX, images.shape[-1]), device=images.device)
    rows = (top[..., None] + offset)[..., :, None]
    columns = (left[..., None] + offset)[..., None, :]
    which = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    return images.permute(0, 2, 3, 1)[which, rows, columns]


def _distance(reals: Tensor, fakes: Tensor, *, seed: int, side: int) -> float:
    """Mean over directions of the one-dimensional Wasserstein distance between two sets of patches, ×1000.

    reals, fakes: (M, 3·p·p) float32.
    """
    drawn = rng(seed, Purpose.PROJECTION, side).standard_normal((reals.shape[1], DIRECTIONS))
    directions = torch.from_numpy(drawn).float().to(reals.device)
    directions = directions / directions.norm(dim=0)
    total = 0.0
    for some in directions.T.split(DIRECTIONS_PER_PART):
        difference = (some @ reals.T).sort(dim=1).values - (some @ fakes.T).sort(dim=1).values
        total += difference.abs().mean(dim=1).sum().item()
    return 1000 * total / DIRECTIONS
