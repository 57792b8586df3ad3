"""The dataset: images by their number, divided into training and hold-out images, and served as batches and pyramids.

Everything is counted in positions: the image at position p of the stream depends on the content of the images, the seed
and p alone, never on file names, threads or batch sizes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from msggan.randomness import epoch_permutation, mirrored

HOLDOUT_ONE_IN = 10
MIN_HOLDOUT = 32  # fewer say nothing about a distribution, and a small dataset needs every image
BATCHES_AHEAD = 3

Progress = Callable[[int, int], None]
"""done, total"""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Skipped(NamedTuple):
    """A file or run folder that is not used, and the reason.

    kind: the suffix of a file that was not tried, because files of its kind are not images or cannot be read here.
    """

    name: str
    reason: str
    kind: str | None = None


class Dataset:
    """Square uint8 images of one resolution, divided into training and hold-out images by their content.

    training, held_out: the number of each. fingerprint: a hex digest of the contents and of nothing else.
    skipped: the files and run folders that are not used, by name. notes: sentences on how the images were decoded,
    where that needs one. enlarged: how many images are smaller than the resolution. in_memory: whether all images are
    decoded in memory, so that showing one costs only a copy.
    """

    def __init__(
        self,
        digests: Sequence[bytes],
        *,
        resolution: int,
        enlarged: int,
        in_memory: bool,
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """digests: SHA-256 of each image's file, in ascending order."""
        self.digests = digests
        self.resolution = resolution
        self.enlarged = enlarged
        self.in_memory = in_memory
        self.skipped = skipped
        self.notes = notes
        self._training, self._held_out = _split_holdout(digests)
        self.training = len(self._training)
        self.held_out = len(self._held_out)
        self.fingerprint = hashlib.sha256(b"".join(digests)).hexdigest()

    def __len__(self) -> int:
        return self.training

    def images(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """(N, 3, R, R) uint8: the training images of these indices. Raises `DataError` if one cannot be read again."""
        return self.rows([self._training[index] for index in indices])

    def held_out_images(self, at_most: int | None = None) -> torch.Tensor:
        """(M, 3, R, R) uint8: the hold-out images, or the first `at_most` of them. No other image is decoded.

        Raises `DataError` if one cannot be read again.
        """
        return self.rows(self._held_out[:at_most])

    def rows(self, numbers: Sequence[int]) -> torch.Tensor:
        """(N, 3, R, R) uint8: the images of these digests, by their numbers."""
        raise NotImplementedError


def _split_holdout(digests: Sequence[bytes]) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers of the training and of the hold-out images, by content, so that copies are never divided."""
    sides: tuple[list[int], list[int]] = ([], [])
    for number, digest in enumerate(digests):
        sides[int.from_bytes(digest[:8], "big") % HOLDOUT_ONE_IN == 0].append(number)
    if len(sides[1]) < MIN_HOLDOUT or not sides[0]:
        return range(len(digests)), ()
    return sides


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
        positions = range(position, position + self.batch_size)
        epochs = [divmod(each, len(self.dataset)) for each in positions]
        images = self.dataset.images([int(self._permutation(epoch)[index]) for epoch, index in epochs])
        if self.mirror:
            flipped = torch.from_numpy(mirrored(self.seed, positions))
            images[flipped] = images[flipped].flip(-1)
        return images

    def batches(self, position: int) -> Generator[torch.Tensor, None, None]:
        """Batches of (N, 3, R, R) uint8 from `position` on, endlessly. Closing the iterator ends its threads."""
        positions = itertools.count(position, self.batch_size)
        if self.dataset.in_memory:
            yield from map(self.batch, positions)
        else:
            yield from in_threads(self.batch, positions, workers=1, ahead=BATCHES_AHEAD)


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


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int = 0
) -> Generator[Result, None, None]:
    """work(item) for each item, in order, computed at most `ahead` items in advance (0: four per thread).

    Closing the iterator, or an exception out of it, cancels what has not started and waits for the rest.
    """
    started: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        try:
            for item in items:
                started.append(pool.submit(work, item))
                if len(started) > (ahead or 4 * workers):
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
