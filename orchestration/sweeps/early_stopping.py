"""Is a trial doing so badly that it is stopped? Azure ML's three policies, as its documentation has them.

A curve is a trial's measurements of the objective, in their order; measurement i, from 1, is Azure ML's interval i.
https://learn.microsoft.com/azure/machine-learning/how-to-tune-hyperparameters#early-termination
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import mean, median

from orchestration.sweeps.spec import EarlyStopping, Objective

Curve = Sequence[float]


def reason_to_stop(
    stopping: EarlyStopping, objective: Objective, curve: Curve, others: Sequence[Curve], *, after: int = 0
) -> str:
    """Why a trial is stopped by its measurements from number `after` + 1 on; empty if it is not."""
    for interval in decisions(stopping, after, len(curve)):
        reached = [other[:interval] for other in others if len(other) >= interval]
        reason = _reason(stopping, objective, curve[:interval], reached)
        if reason:
            return f"{reason} at measurement {interval}"
    return ""


def decisions(stopping: EarlyStopping, after: int, until: int) -> Iterator[int]:
    """The measurements from `after` + 1 to `until` at which the policy decides: multiples of its interval."""
    for interval in range(after + 1, until + 1):
        if interval % stopping.interval == 0 and interval >= stopping.delay:
            yield interval


def _reason(stopping: EarlyStopping, objective: Objective, curve: Curve, others: Sequence[Curve]) -> str:
    if stopping.policy == "median":
        return _median(objective, curve, others)
    if stopping.policy == "bandit":
        return _bandit(stopping, objective, curve, others)
    if stopping.policy == "truncation":
        return _truncation(stopping, objective, curve, others)
    return ""


def _median(objective: Objective, curve: Curve, others: Sequence[Curve]) -> str:
    """Its best value is worse than the median of the other trials' running averages."""
    if not others:
        return ""
    limit = median(mean(other) for other in others)
    best = best_value(objective, curve)
    return f"median: {best:.4g} is worse than {limit:.4g}" if objective.is_better(limit, best) else ""


def _bandit(stopping: EarlyStopping, objective: Objective, curve: Curve, others: Sequence[Curve]) -> str:
    """Its best value is farther from the best trial's than the slack allows."""
    best = best_value(objective, [value for other in [curve, *others] for value in other])
    limit = bandit_limit(stopping, objective, best)
    own = best_value(objective, curve)
    return f"bandit: {own:.4g} is worse than {limit:.4g}" if objective.is_better(limit, own) else ""


def bandit_limit(stopping: EarlyStopping, objective: Objective, best: float) -> float:
    """The worst value that is still allowed. A ratio widens towards worse values, below zero as above it."""
    sign = 1 if objective.direction == "minimize" else -1
    if stopping.slack_amount is not None:
        return best + sign * stopping.slack_amount
    ratio = 1 + (stopping.slack_factor or 0.0)
    return best * ratio if sign * best >= 0 else best / ratio


def _truncation(stopping: EarlyStopping, objective: Objective, curve: Curve, others: Sequence[Curve]) -> str:
    """Its value is among the worst so many percent of all trials' at this measurement."""
    values = [curve[-1], *(other[-1] for other in others)]
    ended = math.floor(len(values) * (stopping.percentage or 0) / 100)
    ahead = sum(objective.is_better(value, values[0]) for value in values[1:])
    if ahead < len(values) - ended:
        return ""
    return f"truncation: {values[0]:.4g} is among the worst {ended} of {len(values)}"


def best_value(objective: Objective, values: Sequence[float]) -> float:
    return min(values) if objective.direction == "minimize" else max(values)
