"""What the discriminator sees of real and generated images: each sample is transformed at random, all its scales alike.

With few images the discriminator learns them by heart. If it sees all images, real and generated, only after random
transformations of one distribution, it cannot, and the generator still learns images without them (Karras et al.,
"Training Generative Adversarial Networks with Limited Data": ADA). The operations, their order and their strengths are
ADA's, without band filters and noise, and with bilinear sampling.

torchvision's transforms draw once for a whole batch; kornia's draw for each sample, but from the global generator and
for one scale, and take four times as long for that one as these for all; neither can be drawn from a position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from msggan.randomness import Purpose, rng

OPERATIONS = (
    "flip",
    "turn",
    "whole_shift",
    "scale",
    "rotation",
    "stretch",
    "rotation_after_stretch",
    "shift",
    "brightness",
    "contrast",
    "luma_flip",
    "hue",
    "saturation",
    "cutout",
)
OVERFITTING_TARGET = 0.5  # ADA's, for its r_v
IMAGES_PER_ADJUSTMENT = 1000  # held-out ones, whose scores are averaged
IMAGES_TO_LARGEST = 50_000  # shown while the strength goes from 0 to the largest; ADA's 500,000 are more than most runs
UNIFORM_VALUES, NORMAL_VALUES = 10, 7  # drawn for each sample, beside one number that decides on each operation
GREY = np.full((3, 3), 1 / 3)  # projects a colour on the grey axis
BILINEAR, REFLECTION = 0, 2  # as PyTorch's operations number them


def transforms(seed: int, purpose: Purpose, positions: Iterable[int], *, strength: float, resolution: int) -> Tensor:
    """(N, 22) float64: the transform of the sample at each position, for all its scales.

    The first 6 numbers are a matrix (2, 3) from the place of an output pixel to its place in the input, in coordinates
    that are -1 and 1 at the outer edges; then a matrix (3, 4) from a colour to its new one; then the left, right, upper
    and lower edge of a grey square. strength: the probability of each operation; at 0 nothing changes. A higher
    probability adds operations to those of a position. resolution: of the finest scale.
    """
    generators = [rng(seed, purpose, position) for position in positions]
    decisive, uniform, normal = (
        np.stack([draw(g) for g in generators], axis=1)
        for draw in (
            lambda g: g.random(len(OPERATIONS)),
            lambda g: g.random(UNIFORM_VALUES),
            lambda g: g.standard_normal(NORMAL_VALUES),
        )
    )
    probabilities = [
        1 - math.sqrt(1 - strength) if name.startswith("rotation") else strength  # so that it is that of either
        for name in OPERATIONS
    ]
    happens = dict(zip(OPERATIONS, decisive < np.array(probabilities)[:, None], strict=True))
    parts = (
        _geometry(happens, uniform[:6], normal[:4], resolution),
        _colour(happens, uniform[6:8], normal[4:]),
        _square(happens, uniform[8:]),
    )
    return torch.from_numpy(np.concatenate([part.reshape(len(generators), -1) for part in parts], axis=1))


def augmented(pyramid: Sequence[Tensor], transforms: Tensor | None) -> Sequence[Tensor]:
    """The transformed images: (N, 3, r, r) in [-1, 1] → the same shapes, in the same dtype, channels_last.

    transforms: (N, 22) float32 or float64, the dtype to compute in; None returns the pyramid. It is affine in the
    images, and can be differentiated by them as often as needed. Beyond its edges, an image is reflected.
    """
    return pyramid if transforms is None else [_transformed(image, transforms) for image in pyramid]


def image_gradients(gradients: Sequence[Tensor], transforms: Tensor | None) -> Sequence[Tensor]:
    """The gradients with respect to transformed images → those with respect to the images themselves.

    gradients: (N, 3, r, r), by which the result, in the same dtype, can be differentiated. Penalties need it: the
    gradient with respect to what the discriminator sees would weight samples by their contrast, and omit those under a
    grey square.
    """
    if transforms is None:
        return gradients
    return [_image_gradient(gradient, transforms) for gradient in gradients]


@dataclass
class AdaptiveStrength:
    """The strength that follows overfitting: how far held-out images have gone from the training images to fakes.

    That is ADA's r_v (section 3), of the discriminator's mean scores of transformed images. It is the same under any
    shift and scale of the scores, so also under a relativistic loss, which leaves them open, and where the sign of the
    scores, ADA's other measure, has no meaning.

    strength: the probability of each operation, from 0 to `largest`. overfitting: what it has followed last, None until
    then. shown, held_out: how many images have been scored since. sums: (3,), of the scores of training, generated and
    held-out images, on the device.
    """

    strength: float
    largest: float
    sums: Tensor
    shown: int = 0
    held_out: int = 0
    overfitting: float | None = None

    def add(self, d_real: Tensor, d_fake: Tensor, count: int) -> None:
        """The mean scores of a step, of so many images each."""
        self.shown += count
        self.sums[:2] += count * torch.stack((d_real, d_fake))

    def add_held_out(self, score: Tensor, count: int) -> None:
        """The mean score of held-out images. Changes the strength if they are enough, which waits for the device."""
        self.held_out += count
        self.sums[2] += count * score
        if self.held_out >= IMAGES_PER_ADJUSTMENT:
            self._adjust()

    def plain(self) -> dict[str, Any]:
        """Its fields as plain values, for a checkpoint."""
        return {**vars(self), "sums": self.sums.tolist()}

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Its fields from what `plain` returned."""
        self.sums.copy_(torch.tensor(plain["sums"], dtype=torch.float64))
        vars(self).update({name: value for name, value in plain.items() if name != "sums"})

    def _adjust(self) -> None:
        training, fake, held_out = (
            self.sums.double().cpu() / torch.tensor([self.shown] * 2 + [self.held_out])
        ).tolist()
        overfitting = (training - held_out) / max(training - fake, 1e-8)
        if math.isfinite(overfitting):  # else an update was dropped
            self.overfitting = overfitting
            change = math.copysign(self.shown / IMAGES_TO_LARGEST, overfitting - OVERFITTING_TARGET)
            self.strength = min(max(self.strength + change * self.largest, 0.0), self.largest)
        self.shown = self.held_out = 0
        self.sums.zero_()


# Transforms


def _geometry(happens: dict[str, np.ndarray], uniform: np.ndarray, normal: np.ndarray, resolution: int) -> np.ndarray:
    """(N, 2, 3). uniform: (6, N). normal: (4, N)."""
    coin, turn, across, down, angle, angle_after = uniform
    whole = np.where(happens["whole_shift"], np.round((np.stack([across, down]) - 0.5) / 4 * resolution), 0)
    scale = np.where(happens["scale"], 2 ** (0.2 * normal[0]), 1)
    stretch = np.where(happens["stretch"], 2 ** (0.2 * normal[1]), 1)
    shift = np.where(happens["shift"], 0.125 * normal[2:], 0)
    matrices = (
        _scaling(np.where(happens["flip"] & (coin < 0.5), -1, 1), 1),
        _rotation(np.where(happens["turn"], np.floor(4 * turn), 0) * np.pi / 2).round(),
        _translation(*(2 * whole / resolution)),
        _scaling(scale, scale),
        _rotation(np.where(happens["rotation"], (2 * angle - 1) * np.pi, 0)),
        _scaling(stretch, 1 / stretch),
        _rotation(np.where(happens["rotation_after_stretch"], (2 * angle_after - 1) * np.pi, 0)),
        _translation(*(2 * shift)),
    )
    return np.asarray(reduce(np.matmul, matrices)[:, :2])


def _scaling(x: np.ndarray, y: np.ndarray | int) -> np.ndarray:
    matrices = np.tile(np.eye(3), (len(x), 1, 1))
    matrices[:, 0, 0], matrices[:, 1, 1] = x, y
    return matrices


def _rotation(angle: np.ndarray) -> np.ndarray:
    matrices = _scaling(np.cos(angle), np.cos(angle))
    matrices[:, 1, 0], matrices[:, 0, 1] = np.sin(angle), -np.sin(angle)
    return matrices


def _translation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    matrices = np.tile(np.eye(3), (len(x), 1, 1))
    matrices[:, 0, 2], matrices[:, 1, 2] = x, y
    return matrices


def _colour(happens: dict[str, np.ndarray], uniform: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(N, 3, 4). uniform: (2, N). normal: (3, N). Contrast is about middle grey, hue about the grey axis."""
    coin, hue = uniform
    brightness = np.where(happens["brightness"], 0.2 * normal[0], 0)
    contrast = np.where(happens["contrast"], 2 ** (0.5 * normal[1]), 1)
    luma = np.where(happens["luma_flip"] & (coin < 0.5), -1, 1)
    angle = np.where(happens["hue"], (2 * hue - 1) * np.pi, 0)
    saturation = np.where(happens["saturation"], 2 ** normal[2], 1)
    # On the grey axis, brightness, contrast and luma flip; across it, contrast, and hue and saturation as well.
    across = (contrast * saturation * np.cos(angle))[:, None, None] * (np.eye(3) - GREY)
    turned = (contrast * saturation * np.sin(angle))[:, None, None] * np.cross(np.eye(3), np.full(3, 3**-0.5))
    along = (contrast * luma)[:, None, None] * GREY
    offset = np.repeat((contrast * luma * brightness)[:, None, None], 3, axis=1)
    unchanged = (contrast == 1) & (luma == 1) & (angle == 0) & (saturation == 1)
    linear = np.where(unchanged[:, None, None], np.eye(3), along + across + turned)  # without rounding
    return np.concatenate([linear, offset], axis=2)


def _square(happens: dict[str, np.ndarray], uniform: np.ndarray) -> np.ndarray:
    """(N, 4). uniform: (2, N)."""
    half = np.where(happens["cutout"], 0.5, 0)
    x, y = 2 * uniform - 1
    return np.stack([x - half, x + half, y - half, y + half], axis=1)


# Images


def _transformed(image: Tensor, transforms: Tensor) -> Tensor:
    side = image.shape[-1]
    warped: Tensor = _Warp.apply(image.to(transforms.dtype), _places(transforms[:, :6], side))
    colour = transforms[:, 6:18].view(-1, 3, 4)
    recoloured = torch.baddbmm(colour[:, :, 3:], colour[:, :, :3], warped.flatten(2)).view_as(image)
    return (recoloured * _kept(transforms[:, 18:], side)).to(image.dtype, memory_format=torch.channels_last)


def _image_gradient(gradient: Tensor, transforms: Tensor) -> Tensor:
    """The transpose of the linear part of `_transformed`."""
    side = gradient.shape[-1]
    kept = gradient.to(transforms.dtype) * _kept(transforms[:, 18:], side)
    colour = transforms[:, 6:18].view(-1, 3, 4)
    recoloured = torch.bmm(colour[:, :, :3].transpose(1, 2), kept.flatten(2)).view_as(gradient)
    warped: Tensor = _WarpGradient.apply(recoloured, _places(transforms[:, :6], side))
    return warped.to(gradient.dtype)


def _places(geometry: Tensor, side: int) -> Tensor:
    """(N, r, r, 2): where each output pixel is in the input. geometry: (N, 6)."""
    centres = (torch.arange(side, device=geometry.device, dtype=geometry.dtype) * 2 + 1) / side - 1
    to_x, to_y, offset = geometry.view(-1, 2, 3).unbind(dim=2)  # (N, 2) each
    across = centres[None, None, :, None] * to_x[:, None, None, :]
    down = centres[None, :, None, None] * to_y[:, None, None, :]
    return across + down + offset[:, None, None, :]


def _kept(square: Tensor, side: int) -> Tensor:
    """(N, 1, r, r): the share of each pixel that is not under the square. square: (N, 4)."""
    edges = torch.arange(side + 1, device=square.device, dtype=square.dtype) * 2 / side - 1
    first, last = square.view(-1, 2, 2, 1).unbind(dim=2)  # (N, 2, 1): of x and of y
    covered = (torch.minimum(edges[1:], last) - torch.maximum(edges[:-1], first)).clamp(min=0) * (side / 2)
    x, y = covered.unbind(dim=1)
    return (1 - y[:, :, None] * x[:, None, :]).unsqueeze(1)


class _Warp(torch.autograd.Function):
    """An image (N, 3, r, r), sampled at places (N, r, r, 2). Linear: its gradient's gradient is itself.

    `grid_sample` is the same, but in releases of PyTorch before 2026 its gradient cannot be differentiated.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return functional.grid_sample(image, places, padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _WarpGradient.apply(gradient, places), None


class _WarpGradient(torch.autograd.Function):
    """The transpose of `_Warp`."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        image = gradient  # of which only the shape matters
        result: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            gradient, image, places, BILINEAR, REFLECTION, False, [True, False]
        )[0]
        return result.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _Warp.apply(gradient, places), None
