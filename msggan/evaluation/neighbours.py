"""What the distances to neighbours say: precision, recall, density and coverage of the distribution of real images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msggan.evaluation.estimates import Pairs

NEIGHBOUR = 3  # of precision and recall
DENSITY_NEIGHBOUR = 5


def distances(first: Tensor, second: Tensor) -> Tensor:
    """(M, d), (N, d) → (M, N): Euclidean, and exactly 0 for equal rows."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def radii(within: Tensor, neighbour: int) -> Tensor:
    """(N, N) distances → (N,): that of each image to its `neighbour`-th nearest other one."""
    others = within.clone().fill_diagonal_(math.inf)
    return others.kthvalue(neighbour, dim=1).values


def precision(pairs: Pairs) -> float:
    """The share of fakes that are no farther from some real image than its third neighbour among the real ones.

    Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019.
    pairs: of `distances`.
    """
    return float((pairs.between <= radii(pairs.reals, NEIGHBOUR)[:, None]).any(dim=0).double().mean())


def recall(pairs: Pairs) -> float:
    """The same with fakes and real images exchanged: how much of the variety of the real ones is generated."""
    return precision(pairs.exchanged())


def density(pairs: Pairs) -> float:
    """How many real images have a fake nearer than their fifth neighbour, / 5, mean over fakes: 1 if all are alike.

    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020. pairs: of `distances`.
    """
    within = pairs.between < radii(pairs.reals, DENSITY_NEIGHBOUR)[:, None]
    return float(within.sum(dim=0).double().mean()) / DENSITY_NEIGHBOUR


def coverage(pairs: Pairs) -> float:
    """The share of real images that have a fake nearer than their fifth neighbour (Naeem et al.)."""
    within = pairs.between < radii(pairs.reals, DENSITY_NEIGHBOUR)[:, None]
    return float(within.any(dim=1).double().mean())
