"""How like real images generated ones are, in the features of an untrained network: measured during training.

The measures are those of `evaluate`, of fewer images and without intervals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msggan.evaluation.estimates import Pairs
from msggan.evaluation.features import RandomFeatures, Standardised
from msggan.evaluation.neighbours import precision, recall
from msggan.evaluation.two_samples import classifier_accuracy, classifier_scores, kernel_distance, polynomial_kernel

FEWEST, MOST = 32, 256  # real images to compare with; more take a larger share of training than they tell


class Likeness:
    """Compares generated images with these real ones, of which it keeps the features: 3.5 KiB for an image of 32²."""

    def __init__(self, reals: Tensor, *, device: torch.device | str = "cpu") -> None:
        """reals: (M, 3, R, R) uint8, of which at most MOST are used."""
        self.random_features = RandomFeatures(reals.shape[-1], device=device)
        features = self.random_features(reals[:MOST])
        self.count = len(features)
        self.standardised = Standardised(features)
        self.reals = self.standardised(features)

    def features(self, images: Tensor) -> Tensor:
        """images: (N, 3, R, R) uint8 → (N, d)."""
        return self.standardised(self.random_features(images))

    def measure(self, features: Tensor) -> dict[str, float]:
        """features: (N, d), those of generated images, of which as many are used as there are real ones.

        classifier_margin: how far the classifier's scores are on the right side of 0, mean over all images: 0 if both
        kinds are alike. It still falls where the classifier is always right. With few images, nothing is measured.
        """
        if self.count < FEWEST:
            return {}
        fakes = features[: self.count]
        near = Pairs.of(torch.cdist, self.reals, fakes)
        scores = classifier_scores(self.reals, fakes)
        return {
            "precision": precision(near),
            "recall": recall(near),
            "kernel_distance": kernel_distance(Pairs.of(polynomial_kernel, self.reals, fakes)),
            "classifier_accuracy": classifier_accuracy(scores).value,
            "classifier_margin": float(scores.mean()),
        }
