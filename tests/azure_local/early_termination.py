"""Early termination policies of sweeps: Bandit, MedianStopping and TruncationSelection.

Implemented after Microsoft's "Specify early termination policy". The i-th measurement of the primary metric is interval
i. A trial is judged once, when it reaches an interval, against what all other trials have measured up to the same
interval; what the service does when others reach it later is not documented (see "Guesses" in README.md).
"""

from __future__ import annotations

import math
import operator
from statistics import fmean, median
from typing import Any

Measured = list[float]  # one trial's values of the primary metric, in the order in which they were logged


def is_judged_at(policy: dict[str, Any], interval: int) -> bool:
    return interval % (policy.get("evaluationInterval") or 1) == 0 and interval >= (policy.get("delayEvaluation") or 0)


def is_behind(policy: dict[str, Any], minimize: bool, own: Measured, others: list[Measured]) -> bool:
    """own: the trial's measurements up to the interval; others: all measurements of the other trials."""
    interval = len(own)
    own = comparable(own, minimize)
    reached = [comparable(other[:interval], minimize) for other in others if len(other) >= interval]
    worse = operator.gt if minimize else operator.lt
    best = min if minimize else max
    kind = policy["policyType"]
    if kind == "Bandit":
        leader = best(best(measured) for measured in [own, *reached])
        return worse(best(own), last_allowed(policy, minimize, leader))
    if kind == "MedianStopping":
        return bool(reached) and worse(best(own), median(fmean(measured) for measured in reached))
    ended = (len(reached) + 1) * policy["truncationPercentage"] // 100
    ahead = sum(worse(own[-1], measured[-1]) for measured in reached)
    return ahead >= len(reached) + 1 - ended


def last_allowed(policy: dict[str, Any], minimize: bool, leader: float) -> float:
    """As documented: for metrics below 0 a slack factor would terminate the leader itself."""
    if policy.get("slackFactor"):
        slack = 1 + policy["slackFactor"]
        return leader * slack if minimize else leader / slack
    return leader + policy["slackAmount"] if minimize else leader - policy["slackAmount"]


def comparable(measured: Measured, minimize: bool) -> Measured:
    """NaN is worse than every number."""
    worst = math.inf if minimize else -math.inf
    return [worst if math.isnan(value) else value for value in measured]
