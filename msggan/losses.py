"""Adversarial losses of scores, and gradient penalties over all scales.

The discriminator judges all scales at once, so each sample has one score: scores are (N,). A new loss is a name in
LOSSES and a case in each of the first two functions. torch is imported inside functions: the command line reads LOSSES.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = (
    "relativistic-hinge",
    "relativistic-logistic",
    "relativistic-average-logistic",
    "hinge",
    "standard",
    "lsgan",
    "lsgan-sigmoid",
    "wgan-gp",
)

DRIFT = 0.001  # keeps WGAN scores near zero (ProGAN, appendix A.1)
WGAN_GP_WEIGHT = 10.0  # Gulrajani et al., "Improved Training of Wasserstein GANs", algorithm 1


def discriminator_loss(name: str, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """The discriminator's loss: a scalar from scores (N,) of real and of generated images.

    Raises `ValueError` for an unknown name.
    """
    from torch.nn.functional import relu, softplus

    real, fake = real_scores, fake_scores
    match name:
        case "relativistic-hinge":  # Jolicoeur-Martineau, "The relativistic discriminator", appendix: RaHingeGAN
            return relu(1 - (real - fake.mean())).mean() + relu(1 + (fake - real.mean())).mean()
        case "relativistic-logistic":  # RpGAN; Huang et al., "The GAN is dead; long live the GAN!" (R3GAN), eq. 2
            return softplus(fake - real).mean()
        case "relativistic-average-logistic":  # Jolicoeur-Martineau, appendix: RaSGAN
            return softplus(fake.mean() - real).mean() + softplus(fake - real.mean()).mean()
        case "hinge":  # Miyato et al., "Spectral Normalization for GANs", eq. 16
            return relu(1 - real).mean() + relu(1 + fake).mean()
        case "standard":  # Goodfellow et al., "Generative Adversarial Networks", eq. 1
            return softplus(-real).mean() + softplus(fake).mean()
        case "lsgan":  # Mao et al., "Least Squares GANs", eq. 9. The original squares the batch mean instead.
            return 0.5 * ((real - 1).square().mean() + fake.square().mean())
        case "lsgan-sigmoid":
            return discriminator_loss("lsgan", real.sigmoid(), fake.sigmoid())
        case "wgan-gp":  # the penalty is a separate term: `wgan_gradient_penalty`
            return fake.mean() - real.mean() + DRIFT * real.square().mean()
    raise ValueError(f"Unknown loss: {name!r}.")


def generator_loss(name: str, real_scores: Tensor | None, fake_scores: Tensor) -> Tensor:
    """The generator's loss: a scalar from scores (N,). `real_scores` may be None unless `compares(name)`.

    Raises `ValueError` for an unknown name, or without the real scores that a relativistic loss compares with.
    """
    from torch.nn.functional import softplus

    if compares(name):
        if real_scores is None:
            raise ValueError(f"{name} compares real and generated scores: it needs both.")
        # Relativistic losses are symmetric: the generator minimizes the discriminator's loss with the sides exchanged.
        return discriminator_loss(name, fake_scores, real_scores)
    match name:
        case "hinge" | "wgan-gp":
            return -fake_scores.mean()
        case "standard":  # non-saturating: Goodfellow et al., section 3
            return softplus(-fake_scores).mean()
        case "lsgan":
            return 0.5 * (fake_scores - 1).square().mean()
        case "lsgan-sigmoid":
            return generator_loss("lsgan", None, fake_scores.sigmoid())
    raise ValueError(f"Unknown loss: {name!r}.")


def compares(name: str) -> bool:
    """Whether the loss compares real with generated scores, so that the generator step needs both."""
    return name.startswith("relativistic-")


def zero_centred_penalty(squared_norms: Tensor, strength: float) -> Tensor:
    """R1 on real images, R2 on generated ones: γ/2 · mean over samples and scales of the squared gradient norm.

    Mescheder et al., "Which Training Methods for GANs do actually Converge?", eq. 9 and 10, averaged over MSG-GAN's
    scales. squared_norms: (N, scales), of the gradient of each sample's score by its image at each scale. strength: γ.
    """
    return 0.5 * strength * squared_norms.mean()


def wgan_gradient_penalty(squared_norms: Tensor) -> Tensor:
    """10 · mean over samples and scales of (gradient norm − 1)², at images between real and generated ones.

    squared_norms: (N, scales).
    """
    norms = (squared_norms + 1e-12).sqrt()  # √0 has no derivative
    return WGAN_GP_WEIGHT * (norms - 1).square().mean()


def between(reals: Sequence[Tensor], fakes: Sequence[Tensor], epsilon: Tensor) -> list[Tensor]:
    """The images at which WGAN-GP's penalty is applied. epsilon: (N,) in [0, 1), the share of the real image.

    A sample's scales share it.
    """
    share = epsilon.view(-1, 1, 1, 1)
    return [share * real + (1 - share) * fake for real, fake in zip(reals, fakes, strict=True)]
