"""The trials of a sweep: how they are compared, and when one is stopped early.

Early stopping follows the documentation of Azure ML's three policies. A curve is a trial's measurements of the
objective, in order; measurement i, from 1, is Azure ML's interval i.
https://learn.microsoft.com/azure/machine-learning/how-to-tune-hyperparameters#early-termination
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msggan.commands.options import SWEEP, Number, must_be_one_of, option_field
from msggan.config import Range

ENDED = ("completed", "stopped", "failed")  # a trial in one of these states is not started again
# The metrics in metrics.jsonl and their better direction; besides swd_16, swd_32 …
KNOWN_METRICS = {
    "swd": "minimize",
    "classifier_margin": "minimize",
    "classifier_accuracy": "minimize",
    "kernel_distance": "minimize",
    "precision": "maximize",
    "recall": "maximize",
    "d_loss": "minimize",
    "g_loss": "minimize",
    "images_per_second": "maximize",
}
DIRECTIONS = ("minimize", "maximize")
WHOLE, FRACTION = (Number(kind, Range(-math.inf)) for kind in (int, float))  # SweepSpec checks their ranges
CANCELLED = "Cancelled by the user."  # the reason of a trial that was cancelled without its sweep


def sweep_field(default: Any, help: str, /, **attributes: Any) -> Any:  # noqa: A002 - click's own word for it
    """A field of a sweep's specification that is an option of `sweep`."""
    return option_field(default, help, section=SWEEP, **attributes)


@dataclass(frozen=True)
class Objective:
    """The metric that trials are compared by. direction: minimize or maximize, by default the metric's own."""

    metric: str = sweep_field("swd", "The metric to compare trials by.", flag="--objective", metavar="METRIC")
    direction: str = sweep_field(
        "",
        "Whether a lower or a higher value is better.  [default: the metric's own]",
        metavar="|".join(DIRECTIONS),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "direction", self.direction or KNOWN_METRICS.get(self.metric, "minimize"))

    def is_better(self, value: float, other: float) -> bool:
        return value < other if self.direction == "minimize" else value > other

    def best(self, values: Iterable[float]) -> float:
        return min(values) if self.direction == "minimize" else max(values)

    def sort_key(self, value: float | None) -> float:
        """Sorts the best first, and what has no finite value last."""
        if value is None or not math.isfinite(value):
            return math.inf
        return value if self.direction == "minimize" else -value


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    number: from 0. state: queued, preparing, running, completed, stopped (early, by the policy), failed, cancelled or
    interrupted. objective: its best value, None if it was not measured. curve: (images seen, objective) of each
    measurement.
    """

    number: int
    name: str
    state: str
    settings: dict[str, Any]
    objective: float | None = None
    images_seen: int | None = None
    run_dir: str = ""
    reason: str = ""
    job_id: str | None = None
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether it is not started again."""
        return self.state in ENDED

    @property
    def values(self) -> list[float]:
        """The measurements of the objective, in order."""
        return [value for _, value in self.curve]


def measured(reports: Sequence[Mapping[str, Any]], objective: Objective) -> dict[str, Any]:
    """The fields of a `Trial` that follow from the reports in its metrics.jsonl."""
    values = ((int(report["images"]), report.get(objective.metric)) for report in reports if "images" in report)
    curve = tuple((images, value) for images, value in values if value is not None and math.isfinite(value))
    return {
        "curve": curve,
        "objective": objective.best(value for _, value in curve) if curve else None,
        "images_seen": int(reports[-1]["images"]) if reports else None,
    }


def sorted_trials(trials: Iterable[Trial], objective: Objective) -> list[Trial]:
    """From the best to the worst; then those without a value, then those that failed, by number."""
    return sorted(
        trials, key=lambda trial: (trial.state == "failed", objective.sort_key(trial.objective), trial.number)
    )


def ranked_trials(trials: Iterable[Trial], objective: Objective) -> list[Trial]:
    """The trials that have a finite value and did not fail, from the best to the worst."""
    able = [trial for trial in trials if math.isfinite(objective.sort_key(trial.objective)) and trial.state != "failed"]
    return sorted_trials(able, objective)


def best_of(trials: Iterable[Trial], objective: Objective) -> Trial | None:
    """The best trial that has a finite value and did not fail."""
    return next(iter(ranked_trials(trials, objective)), None)


def count_ended(trials: Iterable[Any]) -> int:
    """The number of trials that are not started again. trials: anything with a `state`."""
    return sum(trial.state in ENDED for trial in trials)


def time_limit_reason(trials: Iterable[Any], planned: int) -> str:
    """The reason of a sweep that ended at its time limit. trials: anything with a `state`."""
    return f"Time limit reached after {count_ended(trials)} of {planned} trials."


def failures_reason(reasons: Sequence[str], planned: int) -> str:
    """The reason of a sweep that ended because trials failed. reasons: those of the failed trials, at least one."""
    most_common = Counter(reasons).most_common(1)[0][0]
    return f"{len(reasons)} of {planned} trials failed. Most common reason: {most_common}"


# --- Early stopping ---------------------------------------------------------------------------------------------------

POLICIES = ("none", "median", "bandit", "truncation")


@dataclass(frozen=True)
class EarlyStopping:
    """When to stop a trial that does badly, in Azure ML's terms.

    policy: none, median, bandit or truncation. interval: decide at every interval-th measurement. delay: the first
    measurement to decide at. slack_factor, slack_amount: the allowed distance from the best trial (bandit), as a ratio
    or a difference. percentage: the share of the trials to stop at each decision (truncation), 1 to 99.
    """

    policy: str = sweep_field(
        "none", "Policy that stops bad trials early.", flag="--stop-early", metavar="|".join(POLICIES)
    )
    interval: int = sweep_field(
        1, "Apply the policy at every N-th measurement.", flag="--stop-interval", metavar="N", type=WHOLE
    )
    delay: int = sweep_field(
        0,
        "Apply the policy from the N-th measurement on.  [default: 0]",
        flag="--stop-delay",
        metavar="N",
        type=WHOLE,
    )
    slack_factor: float | None = sweep_field(
        None,
        "bandit: allowed distance from the best trial, as 0.2 for 20 %.",
        flag="--slack",
        metavar="RATIO",
        type=FRACTION,
    )
    slack_amount: float | None = sweep_field(
        None, "bandit: the same, as a difference.", metavar="DIFFERENCE", type=FRACTION
    )
    percentage: int | None = sweep_field(
        None,
        "truncation: the share of trials to stop each time, 1 to 99.",
        flag="--truncate",
        metavar="PERCENT",
        type=WHOLE,
    )


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
        for option, policy, value in (
            ("--slack", "bandit", stopping.slack_factor),
            ("--slack-amount", "bandit", stopping.slack_amount),
            ("--truncate", "truncation", stopping.percentage),
        )
        if value is not None and policy != stopping.policy
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


def reason_to_stop(
    stopping: EarlyStopping,
    objective: Objective,
    curve: Sequence[float],
    others: Sequence[Sequence[float]],
    *,
    after: int = 0,
) -> str:
    """Why a trial is stopped by its measurements from number `after` + 1 on; empty if it is not."""
    for measurement in decisions(stopping, after, len(curve)):
        reached = [other[:measurement] for other in others if len(other) >= measurement]
        if reason := _reason(stopping, objective, curve[:measurement], reached):
            return f"{stopping.policy}: {reason} at measurement {measurement}"
    return ""


def decisions(stopping: EarlyStopping, after: int, until: int) -> Iterator[int]:
    """The measurements from `after` + 1 to `until` at which the policy decides: multiples of its interval."""
    for measurement in range(after + 1, until + 1):
        if measurement % stopping.interval == 0 and measurement >= stopping.delay:
            yield measurement


def _reason(
    stopping: EarlyStopping, objective: Objective, curve: Sequence[float], others: Sequence[Sequence[float]]
) -> str:
    """Why a trial is stopped at its last measurement. others: the curves of the other trials up to the same one."""
    if stopping.policy == "truncation":  # its value is among the worst `percentage` percent
        count = len(others) + 1
        worst = math.floor(count * (stopping.percentage or 0) / 100)
        better = sum(objective.is_better(other[-1], curve[-1]) for other in others)
        return f"{curve[-1]:.4g} is among the worst {worst} of {count}" if better >= count - worst else ""
    best = objective.best(curve)
    if stopping.policy == "bandit":  # its best value is farther from the best trial's than the slack allows
        limit = bandit_limit(stopping, objective, objective.best([best, *map(objective.best, others)]))
    elif stopping.policy == "median" and others:  # its best value is worse than the median of the running averages
        from statistics import mean, median

        limit = median(map(mean, others))
    else:
        return ""
    return f"{best:.4g} is worse than {limit:.4g}" if objective.is_better(limit, best) else ""


def bandit_limit(stopping: EarlyStopping, objective: Objective, best: float) -> float:
    """The worst value that is still allowed. A ratio widens towards worse values, below zero as above it."""
    sign = 1 if objective.direction == "minimize" else -1
    if stopping.slack_amount is not None:
        return best + sign * stopping.slack_amount
    ratio = 1 + (stopping.slack_factor or 0.0)
    return best * ratio if sign * best >= 0 else best / ratio
