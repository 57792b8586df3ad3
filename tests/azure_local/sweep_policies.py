"""Does a policy end a trial? Microsoft's description of early termination, read once more and apart from our own code.

https://learn.microsoft.com/azure/machine-learning/how-to-tune-hyperparameters#early-termination
"""

from __future__ import annotations

from typing import Any

import numpy as np

Curve = list[float]


def ends(policy: dict[str, Any], own: Curve, others: list[Curve], interval: int, *, is_minimized: bool) -> bool:
    """Whether the trial of the curve `own` is ended at its interval-th measurement, counted from 1."""
    every, delay = policy.get("evaluationInterval") or 1, policy.get("delayEvaluation") or 0
    if interval % every or interval < delay:
        return False
    sign = 1.0 if is_minimized else -1.0
    mine = sign * np.array(own[:interval])
    theirs = [sign * np.array(other[:interval]) for other in others if len(other) >= interval]
    judge = {"Bandit": bandit, "MedianStopping": median_stopping, "TruncationSelection": truncation_selection}
    return judge[policy["policyType"]](policy, mine, theirs)


def bandit(policy: dict[str, Any], mine: np.ndarray, theirs: list[np.ndarray]) -> bool:
    """Values are such that less is better: those to be maximized have turned their sign."""
    best = min(float(curve.min()) for curve in [mine, *theirs])
    if amount := policy.get("slackAmount"):
        allowed = best + amount
    else:
        ratio = 1 + policy["slackFactor"]
        allowed = best * ratio if best >= 0 else best / ratio
    return bool(mine.min() > allowed)


def median_stopping(policy: dict[str, Any], mine: np.ndarray, theirs: list[np.ndarray]) -> bool:
    return bool(theirs) and bool(mine.min() > np.median([curve.mean() for curve in theirs]))


def truncation_selection(policy: dict[str, Any], mine: np.ndarray, theirs: list[np.ndarray]) -> bool:
    reached = sorted([float(mine[-1]), *(float(curve[-1]) for curve in theirs)])
    count = int(len(reached) * policy["truncationPercentage"] / 100)
    return count > 0 and float(mine[-1]) >= reached[-count] and float(mine[-1]) > reached[0]
