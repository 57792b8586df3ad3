"""The stream of training: batches of a dataset with their latents, and the pyramids of scales that training shows.

Everything is counted in positions: the image at position p of the stream depends on the content of the images, the seed
and p alone, never on file names, threads or batch sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from functools import lru_cache

import torch

from msggan.data.dataset import Dataset, in_threads
from msggan.networks import with_labels
from msggan.randomness import epoch_permutation, latents, mirrored

BATCHES_AHEAD = 3
BYTES_AHEAD = 2**28  # of more batches than these


class SampleStream:
    """The endless stream of training images: position in, image out."""

    def __init__(self, dataset: Dataset, *, seed: int, batch_size: int, mirror: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.batch_size = batch_size
        self.mirror = mirror
        self._permutation = lru_cache(maxsize=2)(lambda epoch: epoch_permutation(seed, epoch, len(dataset)))

    def batch(self, position: int) -> torch.Tensor:
        """(N, 3, R, R) uint8: the images at `position` and the N - 1 positions after it."""
        images = self.dataset.images(self._indices(position))
        if self.mirror:
            flipped = torch.from_numpy(mirrored(self.seed, range(position, position + self.batch_size)))
            images[flipped] = images[flipped].flip(-1)
        return images

    def _indices(self, position: int) -> list[int]:
        epochs = [divmod(each, len(self.dataset)) for each in range(position, position + self.batch_size)]
        return [self._permutation(epoch)[index] for epoch, index in epochs]

    def batches(
        self, position: int, *, latent_size: int, pinned: bool = False
    ) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Batches from `position` on, endlessly: images (N, 3, R, R) uint8 and the latents (N, L) float32 beside them.

        If the images have classes, the latents are those of `with_labels`, (N, L + C), with the classes of the images.
        Closing the iterator ends its threads. pinned: in memory that a CUDA device copies from while it computes. As
        many are read and drawn in advance as there are threads, so that all of them decode, while memory allows it.
        """
        positions = itertools.count(position, self.batch_size)
        workers = self.dataset.workers
        fitting = BYTES_AHEAD // (self.batch_size * 3 * self.dataset.resolution**2)
        ahead = max(BATCHES_AHEAD, min(workers, fitting))
        classes = len(self.dataset.classes)

        def read(position: int) -> tuple[torch.Tensor, torch.Tensor]:
            images = self.batch(position)
            drawn = latents(self.seed, range(position, position + self.batch_size), latent_size)
            if classes:
                drawn = with_labels(drawn, self.dataset.labels(self._indices(position)), classes)
            return (images.pin_memory(), drawn.pin_memory()) if pinned else (images, drawn)

        yield from in_threads(read, positions, workers=workers, ahead=ahead)


def to_float(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """images: uint8 in [0, 255], any shape. Returns the same shape, of `dtype`, in [-1, 1]."""
    return images.to(dtype) / 127.5 - 1


def pyramid(images: torch.Tensor) -> list[torch.Tensor]:
    """images: (N, 3, R, R) float, R a power of two ≥ 4. Returns (N, 3, r, r) for r = 4, 8, …, R, same dtype and range.

    Each scale is the one above it averaged over 2 by 2 pixels.
    """
    scales = [images]
    while scales[-1].shape[-1] > 4:
        scales.append(torch.nn.functional.avg_pool2d(scales[-1], 2))
    return scales[::-1]
