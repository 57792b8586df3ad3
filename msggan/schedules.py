"""The settings that change during training, as cosines of the number of images. They depend on nothing else."""

from __future__ import annotations

import math
from typing import NamedTuple

from msggan.config import TrainConfig


class Settings(NamedTuple):
    """Those of one step. gamma: the factor of --r1-gamma and --r2-gamma."""

    g_lr: float
    d_lr: float
    beta2: float
    gamma: float
    ema_half_life_kimg: float


def settings_at(config: TrainConfig, images: int) -> Settings:
    """Those of the step that brings the count to `images`. Needs a resolved configuration.

    Each goes from its value at the start to its final one within --schedule-kimg, and stays there.
    """
    kimg = images / 1000
    progress = kimg / config.schedule_kimg
    warm = min(1.0, kimg / config.warm_up_kimg) if config.warm_up_kimg else 1.0
    rate = warm * cosine(1.0, config.lr_final, progress)
    half_life = config.ema_half_life_kimg
    return Settings(
        g_lr=rate * config.g_lr,
        d_lr=rate * config.d_lr,
        beta2=cosine(config.beta2, config.beta2_final or config.beta2, progress),
        gamma=cosine(1.0, config.gamma_final, progress),
        ema_half_life_kimg=cosine(half_life, config.ema_half_life_final_kimg or half_life, progress),
    )


def cosine(start: float, final: float, progress: float) -> float:
    """The value when this share of the way is done: half a cosine, then constant (R3GAN's training_loop.py)."""
    return start + (1 - math.cos(math.pi * min(1.0, progress))) / 2 * (final - start)


def is_scheduled(config: TrainConfig) -> bool:
    """Whether a setting that a recorded step reads from the device changes. beta2 cannot be read there."""
    return config.warm_up_kimg > 0 or config.lr_final != 1 or config.gamma_final != 1
