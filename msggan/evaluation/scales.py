"""How far the scales of a generated image disagree: a healthy generator draws one image at all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from msggan.evaluation.estimates import Estimate, Z

MIN_DEVIATION = 1.0  # of 255, for real images that are all alike


class ScaleDifferences:
    """The differences of the coarser scales of images from their finest one, averaged to their size."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []  # (n, scales): mean squares
        self.sides: list[int] = []

    def add(self, pyramid: Sequence[Tensor]) -> None:
        """pyramid: coarse to fine, (n, 3, r, r) uint8."""
        *coarser, finest = (images.float() for images in pyramid)
        self.sides = [images.shape[-1] for images in coarser]
        found = [functional.adaptive_avg_pool2d(finest, images.shape[-1]) - images for images in coarser]
        if found:
            self.parts.append(torch.stack([each.square().mean(dim=(1, 2, 3)) for each in found], dim=1).cpu())

    def relative_to(self, deviation: float) -> dict[int, Estimate]:
        """By the side of each coarser scale: the root mean square difference, in terms of the deviation of real pixels.

        It is 0 for a training image, about 1.4 if the scales have nothing in common.
        """
        if not self.parts:
            return {}
        squares = torch.cat(self.parts).double()
        means = squares.mean(dim=0)
        spreads = Z * squares.std(dim=0) / math.sqrt(len(squares))
        ends = torch.stack([means, means - spreads, means + spreads], dim=1).clamp_min(0).sqrt()
        return {
            side: Estimate(*values)
            for side, values in zip(self.sides, (ends / max(deviation, MIN_DEVIATION)).tolist(), strict=True)
        }
