"""Whether generated images are copies of training images: each one's nearest, compared with that of held-out images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from msggan.evaluation.estimates import Estimate, Z, share_interval

PIXEL_SIDE = 32  # images are compared pixel by pixel at this side at most: a shift by one pixel must not hide a copy
CELLS_FROM = 200  # held-out images; with fewer, cells of them say little
HELD_OUT_PER_CELL = 40
FEWEST_IN_CELL = 20  # as many fakes or fewer: the cell is left out
RARE = 0.01  # the share of held-out images that are nearer to a training image than what counts as a copy


def pixels_of(images: Tensor) -> Tensor:
    """images: (N, 3, R, R) uint8 → (N, d) float32 in [0, 1]: the pixels at 32² at most."""
    side = min(PIXEL_SIDE, images.shape[-1])
    return functional.adaptive_avg_pool2d(images.float() / 255, side).flatten(1)


class Nearest:
    """For each query (Q, d) the nearest of many candidates, which are added part by part and not kept.

    distances: (Q,), root mean square over the d values. numbers: (Q,) int64, of the candidates.
    """

    def __init__(self, queries: Tensor) -> None:
        self.queries = queries
        self.distances = torch.full((len(queries),), math.inf)
        self.numbers = torch.zeros(len(queries), dtype=torch.int64)

    def add(self, candidates: Tensor, numbers: Tensor) -> None:
        """candidates: (N, d). numbers: (N,) int64."""
        nearest = torch.cdist(self.queries, candidates).argmin(dim=1)  # fast, and inexact for equal rows
        found = (self.queries - candidates[nearest]).square().mean(dim=1).sqrt()
        nearer = found < self.distances
        self.distances = torch.where(nearer, found, self.distances)
        self.numbers = torch.where(nearer, numbers[nearest], self.numbers)


def copying(fakes: Tensor, held_out: Tensor) -> tuple[Estimate, Estimate]:
    """How often a fake is farther from its nearest training image than a held-out one, and the same if they are alike.

    Distances (N,) and (M,) → the rank statistic U/NM: ½ if they are alike, less if training images are copied, more
    if fakes are poor. Meehan et al., "A Non-Parametric Test to Detect Data-Copying in Generative Models", AISTATS 2020,
    in one cell. The first interval is DeLong's (1988), the second that of the null hypothesis.
    """
    count, others = len(fakes), len(held_out)
    farther = _farther(fakes, held_out)
    value = float(farther.mean())
    spread = Z * math.sqrt(float(farther.mean(dim=1).var()) / count + float(farther.mean(dim=0).var()) / others)
    null = Z * _deviation(count, others)
    return Estimate(value, value - spread, value + spread).of_share(), Estimate(0.5, 0.5 - null, 0.5 + null).of_share()


def cells(reals: Tensor, others: Sequence[Tensor], *, held_out: int) -> list[Tensor]:
    """For each of some sets of features (N, d), (N,) int64: in which cell each image is.

    If too few are held out, there is one cell. reals: (M, d), training images in random order, whose clusters the cells
    are. held_out: how many are held out.
    """
    from scipy.cluster.vq import kmeans, vq

    if held_out < CELLS_FROM:
        return [torch.zeros(len(each), dtype=torch.int64) for each in others]
    centres, _ = kmeans(reals.numpy(), reals[: held_out // HELD_OUT_PER_CELL].numpy())
    return [torch.from_numpy(vq(each.numpy(), centres)[0]).long() for each in others]


def copying_by_cell(
    fakes: Tensor, held_out: Tensor, fake_cells: Tensor, held_out_cells: Tensor
) -> tuple[Estimate, Estimate, int]:
    """C_T, what it is if fakes are like held-out images, and of how many cells: 0, far less if images are copied.

    Distances (N,) and (M,) to the nearest training image, and the cell of each → the mean over cells, by their share of
    held-out images, of how many deviations the rank statistic is above that of images that are alike (Meehan et al.,
    section 3). Unlike in one cell, typical images are compared with typical ones.
    """
    kept = [cell for cell in held_out_cells.unique() if (fake_cells == cell).sum() > FEWEST_IN_CELL]
    if not kept:
        fake_cells, held_out_cells, kept = torch.zeros(len(fakes)), torch.zeros(len(held_out)), [torch.tensor(0)]
    sets = [(fakes[fake_cells == cell], held_out[held_out_cells == cell]) for cell in kept]
    scores = torch.tensor([float(_farther(*both).mean() - 0.5) / _deviation(*map(len, both)) for both in sets])
    sizes = torch.tensor([float(len(theirs)) for _, theirs in sets])
    shares = sizes / sizes.sum()
    spread = Z * float(shares.norm())
    return Estimate(float(shares @ scores)), Estimate(0.0, -spread, spread), len(sets)


def _farther(fakes: Tensor, held_out: Tensor) -> Tensor:
    """(N,), (M,) → (N, M) float64: 1 where the fake is farther, ½ where it is as far."""
    return (fakes[:, None] > held_out).double() + (fakes[:, None] == held_out).double() / 2


def _deviation(count: int, others: int) -> float:
    """Of the rank statistic U/NM if all are alike."""
    return math.sqrt((count + others + 1) / (12 * count * others))


def copy_threshold(held_out: Tensor) -> tuple[float, int]:
    """Distances (M,) → the one below which a fake counts as a copy: the 1 % quantile, and its rank from 1."""
    rank = max(1, round(RARE * len(held_out)))
    return float(held_out.kthvalue(rank).values), rank


def copies(fakes: Tensor, held_out: Tensor) -> tuple[Estimate, Estimate]:
    """The share of fakes that count as copies, by distances (N,) and (M,), and what it is if they are alike."""
    threshold, rank = copy_threshold(held_out)
    count, others = len(fakes), len(held_out)
    low, high = _numbers_below(count, rank, others)
    expected = Estimate(rank / (others + 1), low / count, high / count)
    return share_interval(int((fakes < threshold).sum()), count), expected


def _numbers_below(count: int, rank: int, others: int) -> tuple[int, int]:
    """How many of `count` are below the `rank`-th smallest of `others`, if all are alike: the ends of 95 %.

    The number is beta-binomial with parameters `rank` and `others` + 1 − `rank`.
    """
    numbers, a, b = torch.arange(count + 1, dtype=torch.float64), torch.tensor(rank), torch.tensor(others + 1 - rank)

    def log_beta(first: Tensor, second: Tensor) -> Tensor:
        return torch.lgamma(first) + torch.lgamma(second) - torch.lgamma(first + second)

    choices = -torch.log1p(numbers.new_tensor(count)) - log_beta(numbers + 1, count - numbers + 1)
    probabilities = (choices + log_beta(numbers + a, count - numbers + b) - log_beta(a.double(), b.double())).exp()
    below = probabilities.cumsum(dim=0)
    return int((below < 0.025).sum()), int((below < 0.975).sum())
