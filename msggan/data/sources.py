"""What does --data name? Files of images, in a folder or a zip, or a pack of images that are decoded already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from msggan.data.dataset import Dataset, Found, ImageDataset, find_images, median_shorter_side
from msggan.data.pack_file import Pack, is_pack


class Source(Protocol):
    """Images that can become a dataset."""

    @property
    def settled(self) -> Mapping[str, Any]:
        """The options that are settled already, by name: how the images were decoded."""
        ...

    def median_shorter_side(self) -> int:
        """In pixels."""
        ...

    def dataset(
        self, *, resolution: int, background: str, workers: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> Dataset:
        """Raises DataError if no image is left, or they are decoded already in another way."""
        ...


class ImageFiles:
    """Images that are yet to be decoded."""

    def __init__(self, found: Found) -> None:
        self.found = found

    @property
    def settled(self) -> Mapping[str, Any]:
        return {}

    def median_shorter_side(self) -> int:
        return median_shorter_side(self.found.files)

    def dataset(
        self, *, resolution: int, background: str, workers: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> ImageDataset:
        return ImageDataset(
            self.found, resolution=resolution, background=background, workers=workers, progress=progress
        )


def open_source(path: str | Path) -> Source:
    """Finds what there is at a path. Raises DataError where that is no images."""
    return Pack(path) if is_pack(path) else ImageFiles(find_images(path))
