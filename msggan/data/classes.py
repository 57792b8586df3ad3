"""The classes of images: each folder in --data, with all that it contains, is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from msggan.errors import DataError, listed

MIN_IMAGES = 2  # of a class: a single one would be memorised at once
FEW_IMAGES = 10  # per class, on average
HINT = "Give each class a folder of its own in --data, such as cats/ and dogs/. Or omit --labels."


class Classes(NamedTuple):
    """names: in order. labels: (N,) int32, the number of each image's class."""

    names: Sequence[str]
    labels: np.ndarray

    def of(self, numbers: np.ndarray) -> Classes:
        """The classes of the images with these numbers."""
        return Classes(self.names, self.labels[numbers])


def find_classes(data: Path, paths: Sequence[str]) -> Classes:
    """The classes of the images at these paths in `data`. A folder around all of them, as in many zips, is not a class.

    Raises `DataError` if an image is in no folder, or all of them are in the same.
    """
    parts = [path.replace("\\", "/").split("/") for path in paths]
    while all(len(each) > 2 and each[0] == parts[0][0] for each in parts):
        parts = [each[1:] for each in parts]
    beside = [path for path, each in zip(paths, parts, strict=True) if len(each) == 1]
    if len(beside) == len(paths):
        raise DataError(f"--data {data}: --labels folders needs folders, and there are none with images.", HINT)
    if beside:
        raise DataError(
            f"--data {data}: each image must be in a folder, which is its class. Not in any: {listed(beside)}.",
            "Move them into the folders of their classes, or elsewhere.",
        )
    folders = [each[0].encode(errors="surrogateescape").decode(errors="replace") for each in parts]
    names, labels = np.unique(np.array(folders), return_inverse=True)
    if len(names) == 1:
        raise DataError(
            f"--data {data}: all images are in one folder, {names[0]}; at least two classes are needed.", HINT
        )
    return Classes(names.tolist(), labels.astype(np.int32))


def check_classes(data: str | Path, classes: Mapping[str, int]) -> list[str]:
    """Sentences about the classes at `data`. Raises `DataError` if one has too few images to train on.

    classes: the number of training images of each.
    """
    small = [f"{name} ({count})" for name, count in classes.items() if count < MIN_IMAGES]
    if small:
        raise DataError(
            f"--data {data}: each class needs at least {MIN_IMAGES} images to train on. These have fewer: "
            f"{listed(small)}.",
            "Add images to them, or move their folders into another class or elsewhere.",
        )
    sentences = [f"{describe_classes(classes)}."]
    mean = sum(classes.values()) / len(classes)
    if mean < FEW_IMAGES:
        sentences.append(
            f"Few images per class ({mean:.1f} on average): the generator may copy them. Join classes or omit --labels."
        )
    return sentences


def describe_classes(classes: Mapping[str, int]) -> str:
    """classes: the number of training images of each."""
    counts = [f"{name} {count}" for name, count in classes.items()]
    return f"{len(counts)} classes, with images to train on: {listed(counts)}"
