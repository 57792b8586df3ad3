"""What a run measures of its generator between two steps, against real images, and which weights were the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from msggan.data.dataset import Dataset
from msggan.evaluation.likeness import Likeness
from msggan.evaluation.scales import ScaleDifferences
from msggan.health import Copies, Thumbnails, compare
from msggan.metrics import Patches, distances
from msggan.networks import Generator
from msggan.pictures.grids import generate_parts
from msggan.randomness import Purpose, latents
from msggan.runs.checkpoint import Best

MAX_IMAGES = 512
MAX_TRAINING_IMAGES = 2048  # with which generated ones are compared, in parts
IMAGES_PER_PART = 128
# The metric of each --best-by; the lowest value is the best.
BEST_BY = {"classifier": "classifier_margin", "kernel-distance": "kernel_distance", "swd": "swd"}


class RunMeasures:
    """The measures of a run's generator. The images that they need are read when they are first needed."""

    def __init__(self, dataset: Dataset, *, seed: int, device: torch.device) -> None:
        self.dataset, self.seed, self.device = dataset, seed, device

    def of(self, generator: Generator) -> dict[str, float]:
        """swd, likeness, variety, scales and copies against the real images. Generated ones are in memory in part."""
        real_patches, real_thumbnails, likeness, labels = self.reals
        count = real_patches.count
        fixed = latents(self.seed, range(count), generator.latent_size, Purpose.METRIC)
        patches = Patches(count, self.dataset.resolution, device=self.device)
        thumbnails, scales, features = Thumbnails(), ScaleDifferences(), list[Tensor]()
        for pyramid in generate_parts(generator, generator.with_labels(fixed, labels)):
            if patches.added < likeness.count:
                features.append(likeness.features(pyramid[-1]))
            patches.add(pyramid[-1])
            thumbnails.add(pyramid[-1])
            scales.add(pyramid)
        of_scales = compare(thumbnails, scales, real_thumbnails)
        measured = distances(real_patches, patches) | likeness.measure(torch.cat(features)) | of_scales
        return measured | ({"copies": self.copies.share(thumbnails)} if self.copies else {})

    @cached_property
    def reals(self) -> tuple[Patches, Thumbnails, Likeness, Tensor]:
        """Patches, thumbnails, features and labels of the hold-out images, or of training images if there are none.

        About 10 MiB for each scale.
        """
        if self.dataset.held_out:
            reals, labels = self.dataset.held_out_images(MAX_IMAGES), self.dataset.held_out_labels(MAX_IMAGES)
        else:
            first = range(min(self.dataset.training, MAX_IMAGES))
            reals, labels = self.dataset.images(first), self.dataset.labels(first)
        patches = Patches(len(reals), self.dataset.resolution, device=self.device)
        patches.add(reals)
        return patches, Thumbnails(reals), Likeness(reals, device=self.device), labels

    @cached_property
    def copies(self) -> Copies | None:
        """What finds copies of training images; None without held-out images, with which it compares."""
        if not self.dataset.held_out:
            return None
        training = Thumbnails()
        for numbers in torch.arange(min(self.dataset.training, MAX_TRAINING_IMAGES)).split(IMAGES_PER_PART):
            training.add(self.dataset.images(numbers.numpy()))
        return Copies(training, held_out=self.reals[1])

    @cached_property
    def held_out_images(self) -> tuple[Tensor, Tensor]:
        """(M, 3, R, R) uint8: those that adaptive augmentation scores, at most 256 MiB of them; their labels (M,)."""
        count = min(MAX_IMAGES, 2**28 // (3 * self.dataset.resolution**2))
        return self.dataset.held_out_images(count), self.dataset.held_out_labels(count)


def better(
    best: Best | None, generator: Generator, measured: Mapping[str, float], *, images_seen: int, best_by: str
) -> Best | None:
    """The best weights so far or these; by swd where there are too few images for the other measures."""
    chosen = BEST_BY[best_by]
    measure = chosen if chosen in measured else "swd"
    lowest = best.measured.get(measure, math.inf) if best else math.inf
    if measured[measure] < lowest:
        weights = {name: weight.to("cpu", copy=True) for name, weight in generator.state_dict().items()}
        return Best(images_seen, measure, measured, weights)
    return best
