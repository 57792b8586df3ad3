"""Features of images from a convolutional network with fixed random weights, which needs no files and suits any images.

Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020, section 5, find such features
as good as trained ones for images unlike ImageNet's. They see colours, edges, texture and where in the image these are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from msggan.randomness import Purpose, rng
from msggan.resources import PIXELS_AT_ONCE

WIDTHS = (16, 32, 64, 64)  # channels of the first convolutions; further ones have the last width
LAST_PX = 4
SEED = 0
MIN_DEVIATION = 1e-3  # of what hardly differs between the real images: its noise must not outweigh all else


class RandomFeatures:
    """Convolutions with random weights, always the same: 3×3, leaky ReLU and average pooling down to 4×4 pixels.

    The features are, after each ReLU, the means of each channel over the image's quarters and its deviation: 880 of
    them at 32².
    """

    def __init__(self, side: int, *, device: torch.device | str = "cpu") -> None:
        """side: height and width of the images, a power of two from 4 up."""
        self.side, self.device = side, torch.device(device)
        depth = int(math.log2(side // LAST_PX)) + 1
        widths = [3, *(WIDTHS[min(level, len(WIDTHS) - 1)] for level in range(depth))]
        self.weights = [
            torch.from_numpy(rng(SEED, Purpose.EVALUATION, level).standard_normal((wider, width, 3, 3)))
            .mul(math.sqrt(2 / (9 * width)))  # He et al., "Delving Deep into Rectifiers", 2015
            .to(self.device, torch.float32)
            for level, (width, wider) in enumerate(pairwise(widths))
        ]

    def __call__(self, images: Tensor) -> Tensor:
        """images: (N, 3, R, R) uint8 → (N, d) float32 on the CPU. Part by part, so that memory does not grow."""
        parts = images.split(max(1, PIXELS_AT_ONCE // self.side**2))
        return torch.cat([torch.cat(list(self._features(part)), dim=1).cpu() for part in parts])

    @torch.no_grad()
    def _features(self, images: Tensor) -> Iterator[Tensor]:
        hidden = images.to(self.device).float() / 127.5 - 1
        for level, weight in enumerate(self.weights):
            if level:
                hidden = functional.avg_pool2d(hidden, 2)
            padded = functional.pad(hidden, (1, 1, 1, 1), mode="replicate")
            hidden = functional.leaky_relu(functional.conv2d(padded, weight), 0.2)
            yield functional.adaptive_avg_pool2d(hidden, 2).flatten(1)
            yield hidden.std(dim=(2, 3))


class Standardised:
    """Subtracts the mean of some features (N, d) and divides by their deviation, so that each feature counts alike."""

    def __init__(self, reference: Tensor) -> None:
        self.mean = reference.mean(dim=0)
        self.deviation = reference.std(dim=0).clamp_min(MIN_DEVIATION)

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation
