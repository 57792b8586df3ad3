"""How varied generated images are, whether they are copies of training images, and how well the scales of each agree.

This is what an evaluation measures beside swd.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from msggan.evaluation.copying import Nearest, copy_threshold
from msggan.evaluation.scales import ScaleDifferences
from msggan.resources import PIXELS_AT_ONCE

THUMBNAIL_PX = 8  # variety is of what images show, not of their texture


class Thumbnails:
    """Small copies of images, which are added in parts and not kept themselves."""

    def __init__(self, *parts: Tensor) -> None:
        self.parts: list[Tensor] = []
        for images in parts:
            self.add(images)

    def add(self, images: Tensor) -> None:
        """images: (n, 3, R, R) uint8."""
        side = images.shape[-1]
        for some in images.split(max(1, PIXELS_AT_ONCE // side**2)):
            self.parts.append(functional.adaptive_avg_pool2d(some.float(), min(THUMBNAIL_PX, side)).cpu())

    @property
    def pixels(self) -> Tensor:
        """(N, 3, S, S) float32."""
        return torch.cat(self.parts)

    @property
    def variance(self) -> float:
        """Between images, the mean over the pixels of the thumbnails; 0 if all are alike."""
        return float(self.pixels.var(dim=0).mean())

    @property
    def deviation(self) -> float:
        """Of all pixels from their mean."""
        return float(self.pixels.std())


class Copies:
    """Finds thumbnails that are nearer to a training image, or its mirror image, than 99 % of the held-out images."""

    def __init__(self, training: Thumbnails, held_out: Thumbnails) -> None:
        self.training = training.pixels.flatten(1)
        self.threshold, _ = copy_threshold(self._distances(held_out))

    def share(self, generated: Thumbnails) -> float:
        return float((self._distances(generated) < self.threshold).float().mean())

    def _distances(self, images: Thumbnails) -> Tensor:
        both = [Nearest(pixels.flatten(1)) for pixels in (images.pixels, images.pixels.flip(-1))]
        for nearest in both:
            nearest.add(self.training, torch.arange(len(self.training)))
        return torch.minimum(both[0].distances, both[1].distances)


def compare(generated: Thumbnails, scales: ScaleDifferences, reals: Thumbnails) -> dict[str, float]:
    """variance_ratio: the variance between generated images in terms of that between real ones, if these differ.

    scale_difference: how far scales disagree, at the scale where they do most; none with a single scale.
    """
    found = {}
    if reals.variance > 0:
        found["variance_ratio"] = generated.variance / reals.variance
    if differences := scales.relative_to(reals.deviation):
        found["scale_difference"] = max(difference.value for difference in differences.values())
    return found
