"""The generator's moving average, counted in images: smoother pictures than any single step's weights give."""

from __future__ import annotations

import torch
from torch import nn


def ema_decay(*, batch_size: int, images_seen: int, half_life_kimg: float, ramp: float) -> float:
    """The decay of the step that brought the count to `images_seen`: 0.5^(batch size / half-life).

    ramp: the half-life is capped at this fraction of the images seen (0: no cap), so that early averages forget the
    initial weights (Karras et al., StyleGAN2-ADA's training loop).
    """
    half_life = half_life_kimg * 1000
    if ramp > 0:
        half_life = min(half_life, images_seen * ramp)
    return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · network, in place, for every parameter."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
