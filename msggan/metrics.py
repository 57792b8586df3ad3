"""How far generated images are from real ones: the sliced Wasserstein distance at each scale.

Karras et al., "Progressive Growing of GANs", section 5 and appendix C: small patches from every level of a Laplacian
pyramid, compared along random directions. Values are ×1000, lower is better.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from msggan.randomness import Purpose, numbers

PATCH_PX = 7
PATCHES_AN_IMAGE = 128
PATCHES_AT_MOST = 2**14  # fewer than ProGAN's, in fewer directions: ten times as fast, and the values are the same
DIRECTIONS = 128  # within what another draw of patches and directions changes (about 2 %)
SMALLEST_LEVEL_PX = 16

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def sliced_wasserstein(reals: Tensor, fakes: Tensor, *, seed: int = 0) -> dict[str, float]:
    """The distance at each level and their mean: {"swd": …, "swd_16": …, "swd_32": …}.

    reals, fakes: (N, 3, R, R) uint8; as many of each are used as both have. Levels go from 16 pixels to R; below 16
    there is one, R itself, with patches of at most its size.
    """
    count = min(len(reals), len(fakes))
    distances = {
        f"swd_{real.shape[-1]}": _level_distance(real, fake, seed)
        for real, fake in zip(
            reversed(laplacian_pyramid(reals[:count].float())),
            reversed(laplacian_pyramid(fakes[:count].float())),
            strict=True,
        )
    }
    return {"swd": sum(distances.values()) / len(distances), **distances}


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """images: (N, 3, R, R) float → [R² detail, (R/2)² detail, … 16² remainder]."""
    levels = []
    while images.shape[-1] > SMALLEST_LEVEL_PX:
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


def _level_distance(reals: Tensor, fakes: Tensor, seed: int) -> float:
    """Mean over directions of the one-dimensional Wasserstein distance between the two sets of patches, ×1000."""
    real_patches, fake_patches = _patches(reals, seed), _patches(fakes, seed)
    drawn = numbers(seed, Purpose.PROJECTION, reals.shape[-1]).standard_normal((real_patches.shape[1], DIRECTIONS))
    directions = torch.from_numpy(drawn).to(reals)
    directions = directions / directions.norm(dim=0)
    total = 0.0
    for some in directions.T.split(64):  # sorting all directions at once would take gigabytes
        difference = (some @ real_patches.T).sort(dim=1).values - (some @ fake_patches.T).sort(dim=1).values
        total += difference.abs().mean(dim=1).sum().item()
    return 1000 * total / DIRECTIONS


def _patches(images: Tensor, seed: int) -> Tensor:
    """images: (N, 3, r, r) → (n·N, 3·p·p): n patches of p = min(7, r) pixels from each image.

    Each channel has mean 0 and deviation 1 over the set.
    """
    count, _, _, side = images.shape
    patch = min(PATCH_PX, side)
    each = max(1, min(PATCHES_AN_IMAGE, PATCHES_AT_MOST // count))
    corners = numbers(seed, Purpose.PATCH, side).integers(0, side - patch + 1, size=(2, count, each))
    top, left = torch.from_numpy(corners).to(images.device)
    offset = torch.arange(patch, device=images.device)
    rows = (top[..., None] + offset)[..., :, None]
    columns = (left[..., None] + offset)[..., None, :]
    which = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    patches = images.permute(0, 2, 3, 1)[which, rows, columns].flatten(0, 1)  # (n·N, p, p, 3)
    patches = patches - patches.mean(dim=(0, 1, 2))
    patches = patches / patches.square().mean(dim=(0, 1, 2)).sqrt().clamp_min(1e-8)
    return patches.flatten(1)
