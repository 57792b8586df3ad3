"""The dataset: images by their number, divided into training and hold-out images by their content.

Packing images needs this and no PyTorch, which alone takes several hundred megabytes of memory: it is imported when
images are requested as tensors.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

HOLDOUT_ONE_IN = 10
MIN_HOLDOUT = 32  # fewer say nothing about a distribution, and a small dataset needs every image

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
        return _as_tensor(self.rows([self._training[index] for index in indices]))

    def held_out_images(self, at_most: int | None = None) -> torch.Tensor:
        """(M, 3, R, R) uint8: the hold-out images, or the first `at_most` of them. No other image is decoded.

        Raises `DataError` if one cannot be read again.
        """
        return _as_tensor(self.rows(self._held_out[:at_most]))

    def rows(self, numbers: Sequence[int]) -> np.ndarray:
        """(N, 3, R, R) uint8: the images of these digests, by their numbers."""
        raise NotImplementedError


def _as_tensor(images: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(images)


def _split_holdout(digests: Sequence[bytes]) -> tuple[Sequence[int], Sequence[int]]:
    """The numbers of the training and of the hold-out images, by content, so that copies are never divided."""
    sides: tuple[list[int], list[int]] = ([], [])
    for number, digest in enumerate(digests):
        sides[int.from_bytes(digest[:8], "big") % HOLDOUT_ONE_IN == 0].append(number)
    if len(sides[1]) < MIN_HOLDOUT or not sides[0]:
        return range(len(digests)), ()
    return sides


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
