"""The two networks of MSG-GAN: the generator outputs an image at every scale, the discriminator takes all of them.

Karnewar and Wang, "MSG-GAN: Multi-Scale Gradients for Generative Adversarial Networks", CVPR 2020, figure 2, in the
dimensions of their PyTorch implementation, BMSG-GAN. A pyramid is a list of images, coarse to fine: (N, 3, 4, 4),
(N, 3, 8, 8), … (N, 3, R, R), with R = 2^(depth + 1).

Every layer computes in the dtype of its input and casts its float32 (or float64) weights to that: with bfloat16 input
the network is bfloat16, with full-precision master weights.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

LEAK = 0.2
EPSILON = 1e-8
NO_CLASSES: Mapping[str, int] = MappingProxyType({})


class Generator(nn.Module):
    """Latent vectors → the same images at every scale.

    depth: number of scales, 1 or more. latent_size: length of a latent vector L and width of the coarse levels, a
    power of two of at least max(2, 2^(depth - 4)). resampling: `nearest` as BMSG-GAN, or `filtered`, see `enlarge`.
    classes: the names of the C classes in their order, each with its number of images. Raises `ValueError` for other
    numbers.
    """

    def __init__(
        self,
        depth: int,
        latent_size: int,
        *,
        equalized: bool = True,
        resampling: str = "nearest",
        classes: Mapping[str, int] = NO_CLASSES,
    ) -> None:
        super().__init__()
        _check(depth, latent_size)
        self.depth, self.latent_size, self.equalized, self.resampling = depth, latent_size, equalized, resampling
        self.classes = dict(classes)
        widths = [latent_size, *(_halved(latent_size, index - 2) for index in range(depth - 1))]
        self.first = FirstBlock(latent_size, equalized, len(classes))
        self.blocks = nn.ModuleList(
            UpBlock(inputs, outputs, equalized, resampling) for inputs, outputs in itertools.pairwise(widths)
        )
        self.to_rgb = nn.ModuleList(Convolution(width, 3, 1, equalized=equalized) for width in widths)

    def forward(self, latents: Tensor) -> list[Tensor]:
        """latents: (N, L) float, each of norm √L → pyramid, coarse to fine, in latents' dtype, about [-1, 1].

        With classes, they are (N, L + C), as `with_labels` returns them.
        """
        return self.render(self.first(latents))

    def with_labels(self, latents: Tensor, labels: Tensor) -> Tensor:
        """latents: (N, L), labels: (N,) the numbers of classes → what the generator takes; without classes the same."""
        return with_labels(latents, labels, len(self.classes)) if self.classes else latents

    def render(self, features: Tensor) -> list[Tensor]:
        """features: (N, L, 4, 4), the output of the first block → pyramid, coarse to fine."""
        pyramid = [self.to_rgb[0](features)]
        for block, to_rgb in zip(self.blocks, self.to_rgb[1:], strict=True):
            features = block(features)
            pyramid.append(to_rgb(features))
        return pyramid


class Discriminator(nn.Module):
    """Images at every scale → one score for each sample, higher for real ones.

    stddev_group: images that share one minibatch standard deviation; 0 is the whole batch. join: what is concatenated
    with the features of the finer level. `lin-cat`: features of the image, as BMSG-GAN. `simple`: the image itself,
    next to features of the full width. classes: their number. The others: as the generator's.
    """

    def __init__(
        self,
        depth: int,
        latent_size: int,
        *,
        equalized: bool = True,
        stddev_group: int = 0,
        resampling: str = "nearest",
        join: str = "lin-cat",
        classes: int = 0,
    ) -> None:
        super().__init__()
        _check(depth, latent_size)
        self.depth, self.latent_size, self.equalized = depth, latent_size, equalized
        self.stddev_group = stddev_group
        # Block i turns level i + 1 into level i. Its input, and that of the last block, is the features of the image at
        # that level and those of the finer level; together they must have the width it expects.
        widths = [latent_size, *(_halved(latent_size, index - 2) for index in range(depth - 1))]
        if join == "lin-cat":
            outputs = [_halved(latent_size, max(1, index - 2)) for index in range(depth - 1)]
            features = [width - finer for width, finer in zip(widths, [*outputs, 0], strict=True)]
            self.from_rgb = nn.ModuleList(Convolution(3, width, 1, equalized=equalized) for width in features)
            inputs = widths
        else:
            outputs = widths[:-1]
            finest = Convolution(3, widths[-1], 1, equalized=equalized)
            self.from_rgb = nn.ModuleList([*(RawImage() for _ in outputs), finest])
            inputs = [*(width + 3 for width in outputs), widths[-1]]
        self.blocks = nn.ModuleList(
            DownBlock(*sizes, equalized, resampling) for sizes in zip(inputs[1:], widths[1:], outputs, strict=True)
        )
        self.last = LastBlock(inputs[0], latent_size, equalized, classes)

    def forward(self, pyramid: Sequence[Tensor], labels: Tensor | None = None, *, batches: int = 1) -> Tensor:
        """pyramid: coarse to fine, (N, 3, r, r) float in about [-1, 1] → scores (N,), float32 or float64.

        labels: (N, C), 1 for a sample's own class and 0 for the others; without them, scores are of images of any
        class. batches: the N samples are this many batches, concatenated; minibatch statistics stay within each.
        """
        return self.score(self.features(pyramid), labels, batches=batches)

    def features(self, pyramid: Sequence[Tensor], activations: list[Tensor] | None = None) -> Tensor:
        """pyramid → features (N, C, 4, 4), of each sample alone; the blocks' activations are appended to the list."""
        features: Tensor = self.from_rgb[-1](pyramid[-1])
        for level in reversed(range(self.depth - 1)):
            features = self.blocks[level](features, activations)
            features = torch.cat((self.from_rgb[level](pyramid[level]), features), dim=1)
        return features

    def score(self, features: Tensor, labels: Tensor | None = None, *, batches: int = 1) -> Tensor:
        """features: (N, C, 4, 4) → scores (N,). labels, batches: as for `forward`."""
        scores: Tensor = self.last(features, labels, group=self.stddev_group or len(features) // batches)
        return scores

    def image_gradients(self, gradient: Tensor, activations: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of something with respect to the features → that with respect to the images, at every scale.

        gradient: (N, C, 4, 4). activations: those that `features` appended for these N samples. Returns (N, 3, r, r),
        coarse to fine. Below the features, the discriminator is piecewise linear, so this is a linear network itself:
        unlike `torch.autograd.grad`, it needs no double backward to be differentiated by its weights and `gradient`.
        """
        images = []
        coarse_to_fine = iter(reversed(activations))
        *converters, finest = cast("Iterable[Convolution | RawImage]", self.from_rgb)
        for converter, block in zip(converters, cast("Iterable[DownBlock]", self.blocks), strict=True):
            images.append(converter.input_gradient(gradient[:, : converter.out_channels]))
            second, first = next(coarse_to_fine), next(coarse_to_fine)
            gradient = block.input_gradient(gradient[:, converter.out_channels :], first, second)
        return [*images, finest.input_gradient(gradient)]


class RawImage(nn.Module):
    """An image in place of its features."""

    out_channels = 3

    def forward(self, image: Tensor) -> Tensor:
        return image

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return gradient


def with_labels(latents: Tensor, labels: Tensor, classes: int) -> Tensor:
    """latents: (N, L), labels: (N,) the numbers of classes → (N, L + C): 1 for its own class after each latent."""
    return torch.cat((latents, functional.one_hot(labels, classes).to(latents)), dim=1)


class FirstBlock(nn.Module):
    """Latents (N, L), with classes (N, L + C) → features (N, L, 4, 4).

    The embedding of the class is beside the latent and has its norm (Karras et al., StyleGAN2-ADA's mapping network).
    """

    def __init__(self, channels: int, equalized: bool, classes: int) -> None:
        super().__init__()
        if classes:
            self.embedding = Embedding(classes, channels)
        self.conv_1 = LatentConvolution(2 * channels if classes else channels, channels, equalized=equalized)
        self.conv_2 = Convolution(channels, channels, 3, padding=1, equalized=equalized)

    def forward(self, latents: Tensor) -> Tensor:
        width = self.conv_1.out_channels
        if self.conv_1.in_channels > width:
            embedded = pixel_norm(self.embedding(latents[:, width:]))
            latents = torch.cat((latents[:, :width], embedded), dim=1)
        return activate_and_normalize(self.conv_2(activate(self.conv_1(latents))))


class Embedding(nn.Linear):
    """Weights of classes (N, C) → the weighted sum of their vectors (N, channels), which begin as N(0, 1).

    As a matrix product: its gradient adds in a fixed order, also on CUDA, and films interpolate between classes.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__(classes, channels, bias=False)
        nn.init.normal_(self.weight)

    def forward(self, weights: Tensor) -> Tensor:
        return functional.linear(weights, self.weight.to(weights.dtype))


class Block(nn.Module):
    """A block that changes the side of its features. Of the two ways, the printout mentions the filtered one."""

    def __init__(self, resampling: str) -> None:
        super().__init__()
        self.is_filtered = resampling == "filtered"

    def extra_repr(self) -> str:
        return "resampling=filtered" if self.is_filtered else ""

    def enlarge(self, x: Tensor) -> Tensor:
        """x: (N, C, r, r) → (N, C, 2r, 2r)."""
        return enlarge(x) if self.is_filtered else functional.interpolate(x, scale_factor=2)

    def reduce(self, x: Tensor) -> Tensor:
        """x: (N, C, 2r, 2r) → (N, C, r, r)."""
        return reduce(x) if self.is_filtered else functional.avg_pool2d(x, 2)


class UpBlock(Block):
    """Features (N, inputs, r, r) → (N, outputs, 2r, 2r)."""

    def __init__(self, inputs: int, outputs: int, equalized: bool, resampling: str) -> None:
        super().__init__(resampling)
        self.conv_1 = Convolution(inputs, outputs, 3, padding=1, equalized=equalized)
        self.conv_2 = Convolution(outputs, outputs, 3, padding=1, equalized=equalized)

    def forward(self, features: Tensor) -> Tensor:
        features = activate_and_normalize(self.conv_1(self.enlarge(features)))
        return activate_and_normalize(self.conv_2(features))


class DownBlock(Block):
    """Features (N, inputs, 2r, 2r) → (N, outputs, r, r)."""

    def __init__(self, inputs: int, width: int, outputs: int, equalized: bool, resampling: str) -> None:
        super().__init__(resampling)
        self.conv_1 = Convolution(inputs, width, 3, padding=1, equalized=equalized)
        self.conv_2 = Convolution(width, outputs, 3, padding=1, equalized=equalized)

    def forward(self, features: Tensor, activations: list[Tensor] | None = None) -> Tensor:
        """Also appends both activations to the list."""
        for convolution in (self.conv_1, self.conv_2):
            features = activate(convolution(features))
            if activations is not None:
                activations.append(features.detach())
        return self.reduce(features)

    def input_gradient(self, gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Gradients (N, outputs, r, r) → (N, inputs, 2r, 2r), at these two activations."""
        gradient = self.enlarge(gradient * 0.25)
        gradient = self.conv_2.input_gradient(_leaky_relu_gradient(gradient, second))
        return self.conv_1.input_gradient(_leaky_relu_gradient(gradient, first))


class LastBlock(nn.Module):
    """Features (N, C, 4, 4) → scores (N,), in the weights' own dtype: bfloat16's eight bits cannot rank samples.

    With labels, the score is ψ(φ) + e(y)ᵀφ, where φ are the last features, ψ is the score for any class and e(y) the
    embedding of the class (Miyato and Koyama, "cGANs with Projection Discriminator", eq. 5), divided by √channels.
    """

    def __init__(self, inputs: int, channels: int, equalized: bool, classes: int) -> None:
        super().__init__()
        self.conv_1 = Convolution(inputs + 1, channels, 3, padding=1, equalized=equalized)
        self.conv_2 = Convolution(channels, channels, 4, equalized=equalized)
        self.conv_3 = Convolution(channels, 1, 1, equalized=equalized)
        if classes:
            self.embedding = Embedding(classes, channels)

    def forward(self, features: Tensor, labels: Tensor | None, *, group: int) -> Tensor:
        features = append_minibatch_stddev(features.to(self.conv_3.weight.dtype), group)
        features = activate(self.conv_2(activate(self.conv_1(features))))
        scores: Tensor = self.conv_3(features).flatten()
        if labels is None:
            return scores
        projection: Tensor = self.embedding(labels.to(features.dtype)) * features.flatten(1)
        return scores + projection.sum(dim=1) / math.sqrt(features.shape[1])


Network = TypeVar("Network", bound=nn.Module)


class ComputingCopy(Generic[Network]):
    """A copy of a network that computes with its weights, scaled and cast once by `update` instead of in each pass.

    network: the copy. weights: its parameters, of `dtype` but for the discriminator's last block.
    """

    def __init__(self, original: Network, dtype: torch.dtype) -> None:
        self.network = copy.deepcopy(original)
        for layer in self.network.modules():
            if isinstance(layer, (Convolution, LatentConvolution)):
                layer.scale = 1.0
        for part in self.network.children():
            if not isinstance(part, LastBlock):
                part.to(dtype)
        self.weights: list[Tensor] = list(self.network.parameters())
        self._originals = list(original.parameters())
        layers = [layer for layer in original.modules() if isinstance(layer, (Convolution, LatentConvolution))]
        scales = {layer.weight: layer.scale for layer in layers}
        self._scales = [scales.get(parameter, 1.0) for parameter in self._originals]

    @torch.no_grad()
    def update(self) -> None:
        """Takes over the original's weights."""
        torch._foreach_copy_(self.weights, torch._foreach_mul([*self._originals], self._scales))

    @torch.no_grad()
    def pass_back(self, gradients: Sequence[Tensor]) -> None:
        """gradients: of something by `weights` → those by the original's parameters, in their `grad`."""
        passed: list[Tensor] = []
        for parameter in self._originals:
            parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
            passed.append(parameter.grad)
        torch._foreach_copy_(passed, [*gradients])
        torch._foreach_mul_(passed, self._scales)


def _halved(latent_size: int, times: int) -> int:
    """The width after `times` halvings; the four coarsest levels keep the full width."""
    return latent_size >> max(0, times)


def _check(depth: int, latent_size: int) -> None:
    smallest = max(2, 2 ** max(0, depth - 4))
    if depth < 1:
        raise ValueError(f"depth {depth}: must be 1 or more.")
    if latent_size < smallest or latent_size & (latent_size - 1):
        raise ValueError(f"latent_size {latent_size}: must be a power of two of at least {smallest} at depth {depth}.")


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

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient of something with respect to the output → that with respect to the input, in its dtype."""
        weight, _ = _cast(self, gradient.dtype)
        return functional.conv_transpose2d(gradient, weight, padding=self.padding)  # type: ignore[arg-type]  # not a text


class LatentConvolution(nn.ConvTranspose2d):
    """The generator's first layer: a transposed convolution that turns a 1×1 latent image into 4×4 features."""

    def __init__(self, inputs: int, channels: int, *, equalized: bool = True) -> None:
        super().__init__(inputs, channels, 4)
        self.scale = _equalize(self, fan_in=inputs) if equalized else 1.0

    def forward(self, latents: Tensor, output_size: list[int] | None = None) -> Tensor:
        """latents: (N, inputs) → (N, channels, 4, 4). On one pixel, the convolution is a matrix product."""
        weight, bias = _cast(self, latents.dtype)
        features = latents @ weight.permute(0, 2, 3, 1).flatten(1)  # channels_last, as the weight in training
        return features.view(-1, 4, 4, self.out_channels).permute(0, 3, 1, 2) + bias.view(1, -1, 1, 1)


def _equalize(layer: nn.Conv2d | nn.ConvTranspose2d, *, fan_in: int) -> float:
    nn.init.normal_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # our layers always have one
    return math.sqrt(2 / fan_in)


def _cast(layer: Convolution | LatentConvolution, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = layer.weight if layer.scale == 1.0 else layer.weight * layer.scale
    return weight.to(dtype), layer.bias.to(dtype)  # type: ignore[union-attr]  # our layers always have one


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU, in place: neither the convolution before it nor its own gradient needs its input."""
    return functional.leaky_relu_(x, LEAK)


def pixel_norm(x: Tensor) -> Tensor:
    """x: (N, C, …) → the same, each pixel's vector of channels with a mean square of 1 (ProGAN, section 4.2)."""
    squared_norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).square()
    return x * torch.rsqrt(squared_norm / x.shape[1] + EPSILON)


def activate_and_normalize(x: Tensor) -> Tensor:
    """The pixel norm of the leaky ReLU of x, which may be changed. Where a gradient is needed, it keeps one tensor."""
    if x.requires_grad and torch.is_grad_enabled():
        normalized: Tensor = _ActivateAndNormalize.apply(x)
        return normalized
    return pixel_norm(activate(x))


@cache
def _epsilon(device: torch.device, dtype: torch.dtype) -> Tensor:
    """A scalar on the device, so that adding it is part of another operation."""
    return torch.full((), EPSILON, device=device, dtype=dtype)


def enlarge(x: Tensor) -> Tensor:
    """x: (N, C, r, r) → (N, C, 2r, 2r), bilinear: nearest neighbour, then [1, 2, 1] / 4 along each axis.

    A frequency of f cycles per new pixel passes as |cos³ πf|, instead of as |cos πf| with nearest neighbour. What
    passes near ½ is an image of the low frequencies, and is seen as a weave of two pixels (Karras et al., StyleGAN3).
    """
    if x.requires_grad and torch.is_grad_enabled():
        enlarged: Tensor = _Enlarge.apply(x)
        return enlarged
    return functional.interpolate(x, scale_factor=2, mode="bilinear")


def reduce(x: Tensor) -> Tensor:
    """x: (N, C, 2r, 2r) → (N, C, r, r): [1, 3, 3, 1] / 8 along each axis at every second pixel.

    Pixels repeat beyond the borders. It is a quarter of the transpose of `enlarge`, as average pooling is of nearest
    neighbour.
    """
    reduced: Tensor = _Reduce.apply(x)
    return reduced


class _Enlarge(torch.autograd.Function):
    """PyTorch's own gradient adds in no fixed order on CUDA, and that of the convolution is very slow in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2, mode="bilinear")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 4 * reduce(gradient)


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return functional.conv2d(padded, _low_pass(x.shape[1], x.device, x.dtype), stride=2, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return enlarge(gradient * 0.25)


@cache
def _low_pass(channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(channels, 1, 4, 4), one for each channel."""
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device, dtype=dtype) / 8
    return torch.outer(kernel, kernel).expand(channels, 1, 4, 4).contiguous()


class _ActivateAndNormalize(torch.autograd.Function):
    """y = a·r with a the leaky ReLU of x and r its inverse norm: dy/da gives r·(g − y·mean(g·y)) for a gradient g.

    The sign of y is that of x, so that y and r are all that the gradient needs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        activated = functional.leaky_relu(x, LEAK)
        norm = torch.linalg.vector_norm(activated, dim=1, keepdim=True)
        inverse_norm = torch.rsqrt(torch.addcmul(_epsilon(x.device, x.dtype), norm, norm, value=1 / x.shape[1]))
        normalized = activated.mul_(inverse_norm)
        ctx.save_for_backward(normalized, inverse_norm)
        return normalized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        normalized, inverse_norm = ctx.saved_tensors
        mean = (gradient * normalized).mean(dim=1, keepdim=True)
        gradient = torch.addcmul(gradient, normalized, mean, value=-1).mul_(inverse_norm)
        return _leaky_relu_gradient(gradient, normalized)


def _leaky_relu_gradient(gradient: Tensor, activation: Tensor) -> Tensor:
    """The gradient with respect to a leaky ReLU's output → that with respect to its input, from its output's signs."""
    result: Tensor = torch.ops.aten.leaky_relu_backward(gradient, activation, LEAK, True)
    return result


def append_minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """x: (N, C, H, W) → (N, C + 1, H, W): the standard deviation within a group of images (ProGAN, section 3).

    Groups are `group` consecutive images; it must divide N. Per channel and pixel √(variance + 1e-8) over the
    group, averaged to one number, which fills the appended channel.
    """
    count, channels, height, width = x.shape
    grouped = x.view(count // group, group, channels, height, width)
    variance = grouped.var(dim=1, unbiased=False)
    deviation = torch.sqrt(variance + EPSILON).mean(dim=(1, 2, 3)).view(-1, 1, 1, 1, 1)
    return torch.cat((grouped, deviation.expand(-1, group, 1, height, width)), dim=2).flatten(0, 1)
