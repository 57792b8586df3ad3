"""How are images made more typical and less varied? By the truncation trick, in the features that latents become."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msggan.layers import pixel_norm
from msggan.networks import Generator
from msggan.randomness import Purpose, latents

# The mean of so many features is within a thirtieth of their spread.
MEAN_OF = 1024
CHUNK = 64


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
        self.depth, self.latent_size = generator.depth, generator.latent_size
        self.register_buffer("mean", mean_features(generator))

    def forward(self, latents: Tensor) -> list[Tensor]:
        features = self.generator.first(latents)
        return self.generator.render(pixel_norm(self.mean + self.truncation * (features - self.mean)))


@torch.no_grad()
def mean_features(generator: Generator) -> Tensor:
    """(1, L, 4, 4): the mean of what the first block makes of latents, always of the same ones."""
    weight = next(generator.parameters())
    drawn = latents(0, range(MEAN_OF), generator.latent_size, Purpose.SAMPLE).to(weight)
    sums: list[Tensor] = [generator.first(chunk).sum(dim=0, keepdim=True) for chunk in drawn.split(CHUNK)]
    return torch.cat(sums).sum(dim=0, keepdim=True) / MEAN_OF
