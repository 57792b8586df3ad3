"""Whether two sets of images differ: the kernel distance, and how well a classifier tells them apart."""

from __future__ import annotations

import torch
from torch import Tensor

from msggan.evaluation.estimates import Estimate, Pairs, share_interval

FOLDS = 5
RIDGE = 1.0  # times the number of images; features have deviation 1


def polynomial_kernel(first: Tensor, second: Tensor) -> Tensor:
    """(M, d), (N, d) → (M, N) float64: k(x, y) = (x·y / d + 1)³, that of the KID."""
    return (first.double() @ second.double().T / first.shape[1] + 1) ** 3


def kernel_distance(pairs: Pairs) -> float:
    """The squared maximum mean discrepancy, unbiased: about 0 if both sets are distributed alike, also below.

    Bińkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4. pairs: of `polynomial_kernel`.
    """

    def mean_of_others(values: Tensor) -> Tensor:
        return (values.sum() - values.trace()) / (len(values) * (len(values) - 1))

    return float(mean_of_others(pairs.reals) + mean_of_others(pairs.fakes) - 2 * pairs.between.mean())


def classifier_scores(first: Tensor, second: Tensor) -> Tensor:
    """How surely a linear classifier assigns each image of two sets, (N, d) and (M, d), to its own: (N + M,) float64.

    Above 0 it is right, at 1 it is sure. Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017.
    Ridge regression is fitted to four fifths of both sets and tried on the rest, five times: each is tried once.
    """
    both = torch.cat([first, second]).double()
    sides = torch.cat([both.new_ones(len(first)), -both.new_ones(len(second))])
    folds = torch.cat([torch.arange(len(each)) % FOLDS for each in (first, second)])
    scores = torch.empty_like(sides)
    for fold in range(FOLDS):
        tried = folds == fold
        scores[tried] = _ridge_scores(both[~tried], sides[~tried], both[tried]) * sides[tried]
    return scores


def classifier_accuracy(scores: Tensor) -> Estimate:
    """The share of images of two sets that are assigned to the right one: ½ if they are alike."""
    return share_interval(float((scores > 0).sum() + (scores == 0).sum() / 2), len(scores))


def _ridge_scores(features: Tensor, sides: Tensor, tried: Tensor) -> Tensor:
    """The scores of `tried` (n, d) by ridge regression of `sides` (N,), -1 or 1, on `features` (N, d)."""
    centre = features.mean(dim=0)
    features, tried = features - centre, tried - centre
    gram = features @ features.T
    gram.diagonal().add_(RIDGE * len(features))
    scores: Tensor = tried @ (features.T @ torch.linalg.solve(gram, sides))
    return scores
