"""The status of a sweep: its trials, which of them is best, and whether the best is better than chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from msggan.commands.program import EXIT_CODES
from msggan.config import TrainConfig
from msggan.errors import UsageError

ENDED = ("completed", "stopped", "failed")  # a trial in one of these states is not started again
CANCELLED = "Cancelled by the user."  # a single trial, not its sweep


@dataclass(frozen=True)
class Objective:
    """The metric that trials are compared by. direction: minimize or maximize."""

    metric: str = "swd"
    direction: str = "minimize"

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
    interrupted. objective: its best value so far, None if it was not measured. curve: (images seen, objective) of each
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


@dataclass(frozen=True)
class SweepStatus:
    """A sweep on any target, with its trials from the best to the worst.

    data: the value of --data. config: the training options that are set for all trials. planned: the number of trials.
    Times in UTC, ISO 8601.
    """

    name: str
    target: str
    state: str
    run_dir: str
    objective: Objective
    trials: list[Trial]
    job_id: str | None = None
    portal_url: str | None = None
    reason: str = ""
    report: str | None = None
    data: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    space: list[str] = field(default_factory=list)
    planned: int | None = None
    created: str | None = None
    ended: str | None = None
    next: list[str] = field(default_factory=list)

    @property
    def best(self) -> Trial | None:
        return best_of(self.trials, self.objective)

    @property
    def warnings(self) -> list[str]:
        """Reasons why the best trial may be no better than the others, one sentence each."""
        return warnings_about(self.trials, self.objective)

    @property
    def ended_trials(self) -> int:
        """The number of trials that are not started again."""
        return count_ended(self.trials)

    @property
    def planned_trials(self) -> int:
        return len(self.trials) if self.planned is None else self.planned

    @property
    def exit_code(self) -> int:
        """The exit code of `sweep`."""
        return EXIT_CODES.get(self.state, 0)

    def trial(self, number: int) -> Trial:
        """The trial of this number. Raises `UsageError` if there is none."""
        found = [trial for trial in self.trials if trial.number == number]
        if found:
            return found[0]
        numbers = [trial.number for trial in self.trials]
        there = f"its trials are {min(numbers)} to {max(numbers)}" if numbers else "none has started"
        raise UsageError([f"{self.name}: has no trial {number}; {there}."])

    def config_of(self, trial: Trial) -> TrainConfig:
        """The configuration of a trial."""
        return TrainConfig(**{**self.config, **trial.settings})

    def as_json(self) -> dict[str, Any]:
        best = None if self.best is None else asdict(self.best)
        return {**asdict(self), "best": best, "warnings": self.warnings}


def count_ended(trials: Iterable[Trial]) -> int:
    return sum(trial.state in ENDED for trial in trials)


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


def measured(reports: Sequence[Mapping[str, Any]], objective: Objective) -> dict[str, Any]:
    """The fields of a `Trial` that follow from the reports in its metrics.jsonl."""
    values = ((int(report["images"]), report.get(objective.metric)) for report in reports if "images" in report)
    curve = tuple((images, value) for images, value in values if value is not None and math.isfinite(value))
    return {
        "curve": curve,
        "objective": objective.best(value for _, value in curve) if curve else None,
        "images_seen": int(reports[-1]["images"]) if reports else None,
    }


# --- Sweeps that are given up -----------------------------------------------------------------------------------------


def time_limit_reason(trials: Iterable[Any], planned: int) -> str:
    """Why a sweep ended at its time limit. trials: what has a `state`."""
    return f"Time limit reached after {count_ended(trials)} of {planned} trials."


def failures_reason(reasons: Sequence[str], planned: int) -> str:
    """Why a sweep is given up. reasons: why each failed trial failed, at least one."""
    most_common = Counter(reasons).most_common(1)[0][0]
    return f"{len(reasons)} of {planned} trials failed. Most common reason: {most_common}"


# --- Whether the best trial is better than the others -----------------------------------------------------------------

# docs/sweeps.md has the measurements behind both.
MIN_KIMG = 5  # in shorter trainings swd ranked the settings the other way round
SEED_SHARE = 0.1  # the share of swd by which another seed changes it


def warnings_about(trials: Sequence[Trial], objective: Objective) -> list[str]:
    """Reasons why the best trial may be no better than the others, one sentence each."""
    ranked = ranked_trials(trials, objective)
    if not ranked:
        return []
    is_distance = objective.metric.startswith("swd") and objective.direction == "minimize"
    warnings = _training_warnings(ranked[0], objective.metric) if is_distance else []
    if "seed" in ranked[0].settings:
        return warnings + _seed_warnings(ranked, objective)
    return warnings + (_spread_warnings(ranked, objective) if is_distance else [])


def _training_warnings(best: Trial, metric: str) -> list[str]:
    """The best trial was short, or its distance to the images has not fallen."""
    warnings = []
    kimg = (best.images_seen or 0) / 1000
    if kimg < MIN_KIMG:
        warnings.append(
            f"Trial {best.number} has trained only {kimg:g} kimg. Below {MIN_KIMG} kimg {metric} often ranks "
            "settings in the wrong order: use a larger --kimg."
        )
    values = [value for _, value in best.curve]
    if len(values) == 1:
        warnings.append(
            f"Trial {best.number} has measured {metric} only once, which does not show whether training lowers it: use "
            "a smaller --metric-kimg."
        )
    elif values and min(values) > (1 - SEED_SHARE) * values[0]:
        warnings.append(
            f"Training has not clearly lowered {metric} of trial {best.number}: the first measurement was "
            f"{values[0]:.4g}, the best {min(values):.4g}."
        )
    return warnings


def _spread_warnings(ranked: Sequence[Trial], objective: Objective) -> list[str]:
    """All trials are so close together that the seed alone may have ordered them."""
    best, worst = ranked[0].objective or 0.0, ranked[-1].objective or 0.0
    if len(ranked) == 1 or best <= (1 - SEED_SHARE) * worst:
        return []
    return [
        f"All trials lie between {objective.metric} {best:.4g} and {worst:.4g}. Another seed alone can change it as "
        "much: search the seed too, with --over seed=0,1."
    ]


def _seed_warnings(ranked: Sequence[Trial], objective: Objective) -> list[str]:
    """Other settings are closer to the best trial than another seed moves either."""
    best = ranked[0]
    rival = next((trial for trial in ranked if _without_seed(trial) != _without_seed(best)), None)
    if rival is None:
        return []
    spread = max(_spread_of_seeds(trial, ranked) for trial in (best, rival))
    behind = abs((rival.objective or 0.0) - (best.objective or 0.0))
    if behind > spread or not spread:
        return []
    return [
        f"Trial {rival.number} has other settings and is only {behind:.4g} behind trial {best.number} in "
        f"{objective.metric}, while another seed alone changes it by {spread:.4g}."
    ]


def _without_seed(trial: Trial) -> dict[str, Any]:
    return {name: value for name, value in trial.settings.items() if name != "seed"}


def _spread_of_seeds(trial: Trial, trials: Sequence[Trial]) -> float:
    """The range of the objective over the trials with these settings and any seed."""
    values = [other.objective or 0.0 for other in trials if _without_seed(other) == _without_seed(trial)]
    return max(values) - min(values)
