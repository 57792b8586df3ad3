"""The layers of both networks: scaled convolutions, pixel norm, minibatch standard deviation.

Every layer computes in the dtype of its input and casts its float32 (or float64) weights to that: with bfloat16 input
the network is bfloat16, with full-precision master weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAK = 0.2
EPSILON = 1e-8


class Convolution(nn.Conv2d):
    """A square convolution, with equalized learning rate (Karras et al., "Progressive Growing of GANs", section 4.1).

    Equalized: weights start as N(0, 1), biases as 0, and the weights are multiplied by √2/√fan_in at run time.
    Otherwise PyTorch's own initialisation and no scaling.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, padding: int = 0, equalized: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, padding=padding)
        self.scale = _equalize(self, fan_in=kernel * kernel * inputs) if equalized else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, inputs, H, W) → (N, outputs, H', W'), in x's dtype."""
        weight, bias = _cast(self, x.dtype)
        return functional.conv2d(x, weight, bias, padding=self.padding)


class LatentConvolution(nn.ConvTranspose2d):
    """The generator's first layer: a transposed convolution that turns a 1×1 latent image into 4×4 features."""

    def __init__(self, channels: int, *, equalized: bool = True) -> None:
        super().__init__(channels, channels, 4)
        self.scale = _equalize(self, fan_in=channels) if equalized else 1.0

    def forward(self, latents: Tensor, output_size: list[int] | None = None) -> Tensor:
        """latents: (N, channels) → (N, channels, 4, 4). On one pixel, the convolution is a matrix product."""
        weight, bias = _cast(self, latents.dtype)
        features = latents @ weight.flatten(1)
        return features.view(latents.shape[0], self.out_channels, 4, 4) + bias.view(1, -1, 1, 1)


def _equalize(layer: nn.Conv2d | nn.ConvTranspose2d, *, fan_in: int) -> float:
    nn.init.normal_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # our layers always have one
    return math.sqrt(2 / fan_in)


def _cast(layer: Convolution | LatentConvolution, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = layer.weight if layer.scale == 1.0 else layer.weight * layer.scale
    return weight.to(dtype), layer.bias.to(dtype)  # type: ignore[union-attr]  # our layers always have one


def activate(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, LEAK)


def pixel_norm(x: Tensor) -> Tensor:
    """x: (N, C, H, W) → the same, each pixel's vector of channels with a mean square of 1 (ProGAN, section 4.2)."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPSILON)


def append_minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """x: (N, C, H, W) → (N, C + 1, H, W): the standard deviation within a group of images (ProGAN, section 3).

    Groups are `group` consecutive images; it must divide N. Per channel and pixel √(variance + 1e-8) over the
    group, averaged to one number, which fills the appended channel.
    """
    count, channels, height, width = x.shape
    grouped = x.view(count // group, group, channels, height, width)
    variance = (grouped - grouped.mean(dim=1, keepdim=True)).square().mean(dim=1)
    deviation = torch.sqrt(variance + EPSILON).mean(dim=(1, 2, 3))
    channel = deviation.repeat_interleave(group).view(count, 1, 1, 1).expand(count, 1, height, width)
    return torch.cat((x, channel), dim=1)
