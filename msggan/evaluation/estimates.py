"""Values with 95 % intervals, and the pairs of two sets of images that most measures are computed from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from msggan.randomness import Purpose, rng

Z = 1.96  # normal deviations on each side of a 95 % interval
HALVES = 50
HALVES_POSITION = 1 << 20  # of their random numbers; features have the first ones


class Estimate(NamedTuple):
    """A value with its 95 % interval; not a number where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def of_share(self) -> Estimate:
        """With an interval that stays within 0 and 1."""
        return Estimate(self.value, max(self.low, 0.0), min(self.high, 1.0))


class Pairs(NamedTuple):
    """What a function of two images has for all pairs within two sets and between them.

    reals: (M, M); fakes: (N, N); between: (M, N).
    """

    reals: Tensor
    fakes: Tensor
    between: Tensor

    @classmethod
    def of(cls, function: Callable[[Tensor, Tensor], Tensor], reals: Tensor, fakes: Tensor) -> Pairs:
        """function: (M, d), (N, d) → (M, N)."""
        return cls(function(reals, reals), function(fakes, fakes), function(reals, fakes))

    def exchanged(self) -> Pairs:
        return Pairs(self.fakes, self.reals, self.between.T)

    def only(self, reals: Tensor, fakes: Tensor) -> Pairs:
        """Those of some images, by their numbers."""
        return Pairs(self.reals[reals][:, reals], self.fakes[fakes][:, fakes], self.between[reals][:, fakes])


def with_interval(measure: Callable[[Pairs], float], pairs: Pairs) -> Estimate:
    """The measure, and 1.96 deviations of what it is on random halves of both sets on each side.

    Half of a set, drawn without replacement, deviates from the whole about as much as the whole from its distribution
    (Shao and Wu, "A General Theory for Jackknife Variance Estimation", 1989). A bootstrap would draw images twice,
    which these measures take for a fault.
    """
    value, drawn = measure(pairs), rng(0, Purpose.EVALUATION, HALVES_POSITION)

    def half(count: int) -> Tensor:
        return torch.from_numpy(drawn.permutation(count)[: count // 2])

    halves = [measure(pairs.only(half(len(pairs.reals)), half(len(pairs.fakes)))) for _ in range(HALVES)]
    spread = Z * float(np.std(halves, ddof=1))
    return Estimate(value, value - spread, value + spread)


def share_interval(successes: float, trials: int) -> Estimate:
    """A share and its 95 % interval by the formula of Wilson (1927)."""
    share, weight = successes / trials, Z**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    spread = Z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return Estimate(share, centre - spread, centre + spread).of_share()
