"""Every random number of a training step, from the seed and the position in the stream alone.

Position p is the p-th image shown, counted from 0 over the whole run. Philox is a counter-based generator (Salmon et
al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): each (seed, purpose, position) has its own numbers, so
they do not depend on batch division, worker threads, devices or restarts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """The use of a random number; different uses never share numbers."""

    LATENT = 1
    ORDER = 2
    MIRROR = 3
    INTERPOLATION = 4
    SAMPLE = 5
    PROJECTION = 6
    PATCH = 7
    METRIC = 8
    EVALUATION = 9
    AUGMENT_REAL = 10
    AUGMENT_FAKE = 11
    AUGMENT_HELD_OUT = 12
    LABEL = 13


def rng(seed: int, purpose: Purpose, position: int) -> np.random.Generator:
    """The generator of one position: the same numbers for the same three arguments on every machine."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, position, 0, 0]))


def latents(seed: int, positions: Iterable[int], latent_size: int, purpose: Purpose = Purpose.LATENT) -> torch.Tensor:
    """(N, L) float32: a normal vector for each position, scaled to norm √L."""
    drawn = np.stack([rng(seed, purpose, position).standard_normal(latent_size) for position in positions])
    drawn *= np.sqrt(latent_size) / np.linalg.norm(drawn, axis=1, keepdims=True)
    return torch.from_numpy(drawn.astype(np.float32))


def latents_of(seeds: Iterable[int], latent_size: int) -> torch.Tensor:
    """(N, L) float32: the latent of each seed, the same that `msggan-aml sample --seeds` takes."""
    return torch.cat([torch.empty(0, latent_size), *(latents(seed, [0], latent_size) for seed in seeds)])


def labels_of(seeds: Iterable[int], counts: Sequence[int]) -> list[int]:
    """The number of a class for each seed, of classes with so many images: each as frequent as in the data."""
    ends = np.cumsum(counts) / np.sum(counts)
    return [int(np.searchsorted(ends, rng(seed, Purpose.LABEL, 0).random(), side="right")) for seed in seeds]


def epoch_permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """(count,) int64: the order in which an epoch shows its `count` images."""
    return rng(seed, Purpose.ORDER, epoch).permutation(count)


def mirrored(seed: int, positions: Iterable[int]) -> np.ndarray:
    """(N,) bool: whether each position's image is shown mirrored."""
    return np.array([rng(seed, Purpose.MIRROR, position).random() < 0.5 for position in positions])


def interpolation(seed: int, positions: Iterable[int]) -> torch.Tensor:
    """(N,) float32 in [0, 1): WGAN-GP's ε, one per sample."""
    drawn = [rng(seed, Purpose.INTERPOLATION, position).random() for position in positions]
    return torch.tensor(drawn, dtype=torch.float32)
