"""All measures of a generator against the images that it was trained on, each beside the same between real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from msggan.data.dataset import HOLDOUT_ONE_IN, MIN_HOLDOUT, Dataset
from msggan.evaluation.copying import Nearest, cells, copies, copy_threshold, copying, copying_by_cell, pixels_of
from msggan.evaluation.estimates import Estimate, Pairs, with_interval
from msggan.evaluation.features import SEED, RandomFeatures, Standardised
from msggan.evaluation.inception import Inception, frechet_distance, kernel_inception_distance
from msggan.evaluation.neighbours import coverage, density, distances, precision, recall
from msggan.evaluation.scales import ScaleDifferences
from msggan.evaluation.two_samples import classifier_accuracy, classifier_scores, kernel_distance, polynomial_kernel
from msggan.health import Thumbnails
from msggan.networks import Generator
from msggan.pictures.grids import enlarged, generate, generate_parts, inputs_of, side_by_side
from msggan.randomness import Purpose, labels_of, rng

MIN_COMPARED, MAX_COMPARED = 32, 512
IMAGES_PER_PART = 128
PAIRS_SHOWN, PAIRS_PER_ROW = 32, 4
Advance = Callable[[int], object]
REAL_POSITION = 1 << 21  # of the random numbers that choose real images to compare
OF_SETS = ("precision", "recall", "density", "coverage", "kernel_distance", "classifier_accuracy")
OF_INCEPTION = ("kid", "fid")
OF_COPIES = ("copying", "c_t", "copies_by_features", "copies_by_pixels")


class Measure(NamedTuple):
    """What a measure is of generated images, and of real ones in their place."""

    generated: Estimate
    real: Estimate


@dataclass
class Report:
    """What was measured. images: counts. not_measured: by measure, why. scales: their disagreement, by side.

    cells: those of C_T. copied_seeds: of the samples that count as copies, by either measure, the nearest first, and
    copied_labels their classes, if there are any. pairs: (seed, number) of a sample and the nearest training image by
    features, the nearest first; held_out_pairs: with the number of a held-out image instead.
    """

    images: dict[str, int]
    reference: str
    measures: dict[str, Measure] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    scales: dict[int, Estimate] = field(default_factory=dict)
    cells: int = 0
    copied_seeds: list[int] = field(default_factory=list)
    copied_labels: list[str] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    held_out_pairs: list[tuple[int, int]] = field(default_factory=list)

    @property
    def memorised(self) -> bool:
        """Whether more samples count as copies than could be if they were like held-out images."""
        found = [self.measures[name] for name in OF_COPIES[2:] if name in self.measures]
        return any(measure.generated.value > measure.real.high for measure in found)

    def as_json(self) -> dict[str, Any]:
        def plain(estimate: Estimate) -> dict[str, Any]:
            interval = {} if math.isnan(estimate.low) else {"interval": [estimate.low, estimate.high]}
            return {"value": estimate.value, **interval}

        return {
            "images": self.images,
            "reference": self.reference,
            "measures": {name: {**plain(m.generated), "real": plain(m.real)} for name, m in self.measures.items()},
            "not_measured": self.not_measured,
            "scale_disagreement": {str(side): plain(estimate) for side, estimate in self.scales.items()},
            "memorised": self.memorised,
            "cells": self.cells,
            "copied_seeds": self.copied_seeds,
            **({"copied_labels": self.copied_labels} if self.copied_labels else {}),
        }


class Represented(NamedTuple):
    """What images are compared by: features (N, d) and pixels (N, p), float32."""

    features: Tensor
    pixels: Tensor


class Evaluator:
    """Compares samples of these seeds, which are those of `sample --seeds`, with the images of a dataset.

    A generator with classes makes each seed of one, as often as in the data.
    Held-out images are the reference, and training images are compared with it beside the samples. If none are held
    out, each is half of the training images.
    """

    features_name = f"untrained convolutional network 1, seed {SEED}"  # 2 when they change

    def __init__(
        self, generator: Generator, dataset: Dataset, *, seeds: Sequence[int], inception: Inception | None = None
    ) -> None:
        """inception: for FID and KID, which are not measured without it."""
        self.generator, self.dataset, self.seeds, self.inception = generator, dataset, seeds, inception
        self.random_features = RandomFeatures(dataset.resolution, device=next(generator.parameters()).device)

    @property
    def total(self) -> int:
        """How many images `run` compares; the training images are mirrored too."""
        half = self.dataset.training // 2
        reference, real = (self.dataset.held_out, self.dataset.training) if self.dataset.held_out else (half, half)
        compared = min(reference, MAX_COMPARED) + min(real, MAX_COMPARED)
        return len(self.seeds) + compared + 2 * self.dataset.training

    def run(self, advance: Advance = lambda count: None) -> Report:
        """advance: called with the number of images that were compared since the last call.

        Memory: about 50 KiB for each sample and held-out image, the images to compare, and one part of the others."""
        self.advance = advance
        reference, real = self._real_images()
        self.standardised = Standardised(self.random_features(reference))
        compared, others = self._represent(reference), self._represent(real)
        samples, scales = self._samples()
        counts = {"training": self.dataset.training, "held_out": self.dataset.held_out, "samples": len(self.seeds)}
        size = min(len(reference), len(real), len(self.seeds))
        kind = "held-out images" if self.dataset.held_out else "half of the training images"
        report = Report({**counts, "compared": size}, kind, scales=scales.relative_to(Thumbnails(reference).deviation))
        if size < MIN_COMPARED:
            reason = f"{size} images to compare are too few: {MIN_COMPARED} or more are needed."
            report.not_measured |= dict.fromkeys((*OF_SETS, *(OF_INCEPTION if self.inception else ())), reason)
        else:
            report.measures |= compare(*(each.features[:size] for each in (compared, samples, others)))
            if self.inception is not None:
                fakes = generate(self.generator, inputs_of(self.generator, self.seeds[:size]))[-1]
                report.measures |= compare_by_inception(self.inception, reference[:size], fakes, real[:size])
        self._find_nearest(report, samples, compared, others)
        return report

    def _real_images(self) -> tuple[Tensor, Tensor]:
        """The reference, and other real images; each at most 512: (N, 3, R, R) uint8."""
        shuffled = rng(self.seeds[0], Purpose.EVALUATION, REAL_POSITION).permutation(self.dataset.training)
        if self.dataset.held_out:
            return self.dataset.held_out_images(MAX_COMPARED), self.dataset.images(shuffled[:MAX_COMPARED])
        half = min(len(shuffled) // 2, MAX_COMPARED)
        return self.dataset.images(shuffled[:half]), self.dataset.images(shuffled[half : 2 * half])

    def _represent(self, images: Tensor) -> Represented:
        represented = Represented(self.standardised(self.random_features(images)), pixels_of(images))
        self.advance(len(images))
        return represented

    def _samples(self) -> tuple[Represented, ScaleDifferences]:
        """The samples, which are not kept, and how far their scales disagree."""
        parts, differences = [], ScaleDifferences()
        for pyramid in generate_parts(self.generator, inputs_of(self.generator, self.seeds)):
            parts.append(self._represent(pyramid[-1]))
            differences.add(pyramid)
        together = Represented(*(torch.cat(each) for each in zip(*parts, strict=True)))
        return together, differences

    def _find_nearest(self, report: Report, samples: Represented, held_out: Represented, others: Represented) -> None:
        """Adds the nearest training image of each sample and, if there are any, of each held-out image.

        others: training images, for the cells of C_T."""
        queries = [samples, held_out] if self.dataset.held_out else [samples]
        by_features, by_pixels = (Nearest(torch.cat(each)) for each in zip(*queries, strict=True))
        for numbers in torch.arange(self.dataset.training).split(IMAGES_PER_PART):
            images = self.dataset.images(numbers.numpy())
            for turned in (images, images.flip(-1)):
                part = self._represent(turned)
                by_features.add(part.features, numbers)
                by_pixels.add(part.pixels, numbers)
        count = len(self.seeds)
        order = by_features.distances[:count].argsort(stable=True).tolist()
        report.pairs = [(self.seeds[sample], int(by_features.numbers[sample])) for sample in order]
        if not self.dataset.held_out:
            reason = f"no images are held out of fewer than about {MIN_HOLDOUT * HOLDOUT_ONE_IN}."
            report.not_measured |= dict.fromkeys(OF_COPIES, reason)
            return
        by_held_out = by_features.distances[count:].argsort(stable=True).tolist()
        report.held_out_pairs = [(image, int(by_features.numbers[count + image])) for image in by_held_out]
        both = [(each.distances[:count], each.distances[count:]) for each in (by_features, by_pixels)]
        in_cells = cells(others.features, (samples.features, held_out.features), held_out=len(held_out.features))
        *c_t, report.cells = copying_by_cell(*both[0], *in_cells)
        found = (copying(*both[0]), c_t, copies(*both[0]), copies(*both[1]))
        report.measures |= {name: Measure(*estimates) for name, estimates in zip(OF_COPIES, found, strict=True)}
        is_copy = torch.stack([fakes < copy_threshold(held_out)[0] for fakes, held_out in both]).any(dim=0)
        report.copied_seeds = [self.seeds[sample] for sample in order if is_copy[sample]]
        if classes := self.generator.classes:
            names, numbers = [*classes], labels_of(report.copied_seeds, [*classes.values()])
            report.copied_labels = [names[number] for number in numbers]


def compare(reference: Tensor, fakes: Tensor, reals: Tensor) -> dict[str, Measure]:
    """The measures of fakes, and of other real images, against the reference: features (N, d) of each."""
    measures: dict[str, list[Estimate]] = {name: [] for name in OF_SETS}
    for others in (fakes, reals):
        near = Pairs.of(distances, reference, others)
        found = (
            with_interval(precision, near).of_share(),
            with_interval(recall, near).of_share(),
            with_interval(density, near),
            with_interval(coverage, near).of_share(),
            with_interval(kernel_distance, Pairs.of(polynomial_kernel, reference, others)),
            classifier_accuracy(classifier_scores(reference, others)),
        )
        for name, estimate in zip(OF_SETS, found, strict=True):
            measures[name].append(estimate)
    return {name: Measure(*both) for name, both in measures.items()}


def compare_by_inception(inception: Inception, *images: Tensor) -> dict[str, Measure]:
    """KID and FID of fakes, and of other real images, against a reference.

    images: the reference, the fakes and the others, each (N, 3, R, R) uint8.
    """
    reference, fakes, reals = map(inception, images)
    found = {"kid": kernel_inception_distance, "fid": frechet_distance}
    return {name: Measure(measure(reference, fakes), measure(reference, reals)) for name, measure in found.items()}


def draw_pairs(report: Report, generator: Generator, dataset: Dataset, *, held_out: bool) -> Image.Image:
    """The closest pairs, four in a row: on the left a sample or a held-out image, on the right a training image."""
    pairs = (report.held_out_pairs if held_out else report.pairs)[:PAIRS_SHOWN]
    if held_out:
        left = dataset.held_out_images(MAX_COMPARED)[[image for image, _ in pairs]]
    else:
        left = generate(generator, inputs_of(generator, (seed for seed, _ in pairs)))[-1]
    right = dataset.images([number for _, number in pairs])
    shown = torch.stack([left, right], dim=1).flatten(0, 1)
    columns = 2 * min(PAIRS_PER_ROW, len(pairs))
    return enlarged(side_by_side(shown, columns=columns, rows=math.ceil(len(shown) / columns), side=dataset.resolution))
