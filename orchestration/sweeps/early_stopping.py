"""Early stopping: Azure ML's three policies, as its documentation describes them, for trials on this machine.

A curve is a trial's measurements of the objective, in order; measurement i, from 1, is Azure ML's interval i.
https://learn.microsoft.com/azure/machine-learning/how-to-tune-hyperparameters#early-termination
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median

from msggan.commands.options import must_be_one_of
from orchestration.sweeps.status import Objective

POLICIES = ("none", "median", "bandit", "truncation")
Curve = Sequence[float]


@dataclass(frozen=True)
class EarlyStopping:
    """When to stop a trial that does badly, in Azure ML's terms.

    policy: none, median, bandit or truncation. interval: decide at every interval-th measurement. delay: the first
    measurement to decide at. slack_factor, slack_amount: the allowed distance from the best trial (bandit), as a ratio
    or a difference. percentage: the share of the trials to stop at each decision (truncation), 1 to 99.
    """

    policy: str = "none"
    interval: int = 1
    delay: int = 0
    slack_factor: float | None = None
    slack_amount: float | None = None
    percentage: int | None = None


# The option that sets a field, and the policy that it belongs to.
POLICY_OPTIONS = {
    "slack_factor": ("--slack", "bandit"),
    "slack_amount": ("--slack-amount", "bandit"),
    "percentage": ("--truncate", "truncation"),
}


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
    best = objective.best(curve)
    return f"median: {best:.4g} is worse than {limit:.4g}" if objective.is_better(limit, best) else ""


def _bandit(stopping: EarlyStopping, objective: Objective, curve: Curve, others: Sequence[Curve]) -> str:
    """Its best value is farther from the best trial's than the slack allows."""
    best = objective.best(value for other in [curve, *others] for value in other)
    limit = bandit_limit(stopping, objective, best)
    own = objective.best(curve)
    return f"bandit: {own:.4g} is worse than {limit:.4g}" if objective.is_better(limit, own) else ""


def bandit_limit(stopping: EarlyStopping, objective: Objective, best: float) -> float:
    """The worst value that is still allowed. A ratio widens towards worse values, below zero as above it."""
    sign = 1 if objective.direction == "minimize" else -1
    if stopping.slack_amount is not None:
        return best + sign * stopping.slack_amount
    ratio = 1 + (stopping.slack_factor or 0.0)
    return best * ratio if sign * best >= 0 else best / ratio


def _truncation(stopping: EarlyStopping, objective: Objective, curve: Curve, others: Sequence[Curve]) -> str:
    """Its value is among the worst `percentage` percent of all trials' at this measurement."""
    values = [curve[-1], *(other[-1] for other in others)]
    stopped = math.floor(len(values) * (stopping.percentage or 0) / 100)
    ahead = sum(objective.is_better(value, values[0]) for value in values[1:])
    if ahead < len(values) - stopped:
        return ""
    return f"truncation: {values[0]:.4g} is among the worst {stopped} of {len(values)}"


def early_stopping_problems(stopping: EarlyStopping) -> list[str]:
    """Every problem with --stop-early and the options that belong to it."""
    if stopping.policy not in POLICIES:
        return [f"--stop-early {stopping.policy}: {must_be_one_of(stopping.policy, POLICIES)}"]
    problems = []
    if stopping.interval < 1:
        problems.append(f"--stop-interval {stopping.interval}: must be 1 or more.")
    if stopping.delay < 0:
        problems.append(f"--stop-delay {stopping.delay}: must be 0 or more.")
    problems += [
        f"{option}: requires --stop-early {policy}."
        for name, (option, policy) in POLICY_OPTIONS.items()
        if getattr(stopping, name) is not None and policy != stopping.policy
    ]
    if stopping.policy == "bandit":
        slacks = [slack for slack in (stopping.slack_factor, stopping.slack_amount) if slack is not None]
        if len(slacks) != 1:
            problems.append("--stop-early bandit: requires either --slack RATIO, as 0.2, or --slack-amount DIFFERENCE.")
        elif not slacks[0] > 0:
            problems.append("--stop-early bandit: the slack must be more than 0, as in --slack 0.2.")
    if stopping.policy == "truncation" and not 1 <= (stopping.percentage or 0) <= 99:
        problems.append("--stop-early truncation: requires --truncate PERCENT, from 1 to 99.")
    return problems
