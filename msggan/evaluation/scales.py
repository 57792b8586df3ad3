"""How far the scales of a generated image disagree: a healthy generator draws one image at all of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

MIN_DEVIATION = 1.0  # of 255, for images of one colour


def disagreement(pyramid: Sequence[Tensor]) -> dict[int, Tensor]:
    """For each coarser scale, by its side: (N,) its difference from the finest one averaged to its size.

    pyramid: coarse to fine, (N, 3, r, r) uint8. The root mean square difference is divided by the deviation of the
    averaged image: 0 for a training image, about 1.4 if the scales have nothing in common.
    """
    *coarser, finest = (images.double() for images in pyramid)
    found = {}
    for images in coarser:
        expected = functional.adaptive_avg_pool2d(finest, images.shape[-1]).flatten(1)
        deviation = expected.std(dim=1, correction=0).clamp_min(MIN_DEVIATION)
        found[images.shape[-1]] = (images.flatten(1) - expected).square().mean(dim=1).sqrt() / deviation
    return found
