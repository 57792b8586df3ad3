"""The dataset: images by their number, divided into training and hold-out images by their content.

Packing images needs this and no PyTorch, which alone takes several hundred megabytes of memory: it is imported when
images are requested as tensors.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from msggan.data.classes import Classes

if TYPE_CHECKING:
    import torch

HOLDOUT_ONE_IN = 10
IMAGES_PER_PART = 16  # read by one thread at a time
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

    training, held_out: the number of each. fingerprint: a hex digest of the contents and the classes, of nothing else.
    skipped: the files and run folders that are not used, by name. notes: sentences on how the images were decoded,
    where that needs one. enlarged: how many images are smaller than the resolution. workers: in how many threads to
    read images.
    """

    def __init__(
        self,
        digests: np.ndarray,
        *,
        resolution: int,
        enlarged: int,
        workers: int = 0,
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
        classes: Classes | None = None,
    ) -> None:
        """digests: (N, 32) uint8, SHA-256 of each image's file, in ascending order. workers: 0 for one per core.

        classes: of these N images, if they have any.
        """
        self.digests = digests
        self.resolution = resolution
        self.enlarged = enlarged
        self.workers = workers or cores()
        self.skipped = skipped
        self.notes = notes
        self._training, self._held_out = _split_holdout(digests)
        self.training = len(self._training)
        self.held_out = len(self._held_out)
        self.class_of = classes
        content = digests.tobytes()
        if classes is not None:
            content += "\0".join(classes.names).encode() + classes.labels.tobytes()
        self.fingerprint = hashlib.sha256(content).hexdigest()

    @property
    def classes(self) -> dict[str, int]:
        """The names of the classes in their order, each with its number of training images; empty without classes."""
        if self.class_of is None:
            return {}
        names, labels = self.class_of.of(self._training)
        return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))

    def labels(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """(N,) int64: the classes, by number, of the training images of these indices; 0 without classes."""
        return self._labels(self._training[np.asarray(indices, np.intp)])

    def held_out_labels(self, at_most: int | None = None) -> torch.Tensor:
        """(M,) int64: the classes of `held_out_images`."""
        return self._labels(self._held_out[:at_most])

    def _labels(self, numbers: np.ndarray) -> torch.Tensor:
        labels = np.zeros(len(numbers)) if self.class_of is None else self.class_of.labels[numbers]
        return _as_tensor(labels.astype(np.int64))

    def __len__(self) -> int:
        return self.training

    def images(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """(N, 3, R, R) uint8: the training images of these indices. Raises `DataError` if one cannot be read again."""
        return _as_tensor(self.rows(self._training[np.asarray(indices, np.intp)]))

    def held_out_images(self, at_most: int | None = None) -> torch.Tensor:
        """(M, 3, R, R) uint8: the hold-out images, or the first `at_most` of them. No other image is decoded.

        Raises `DataError` if one cannot be read again.
        """
        numbers = self._held_out[:at_most]
        parts = np.array_split(numbers, max(1, len(numbers) // IMAGES_PER_PART))
        return _as_tensor(np.concatenate(list(in_threads(self.rows, parts, workers=self.workers))))

    def name(self, number: int) -> str:
        """What people know an image by: the path of its file; in a pack, its number."""
        return f"image {number}"

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """(N, 3, R, R) uint8: the images of these digests, by their numbers (N,). Several threads may call it."""
        raise NotImplementedError


def _as_tensor(images: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(images)


def _split_holdout(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the training and of the hold-out images, by content, so that copies are never divided."""
    is_held_out = np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0] % HOLDOUT_ONE_IN == 0
    if is_held_out.sum() < MIN_HOLDOUT or is_held_out.all():
        is_held_out[:] = False
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
