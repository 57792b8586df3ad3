"""What is a sweep? Its specification, checked; its trials; which of them is best."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from msggan.commands.options import Hardware, must_be_one_of, nearest, to_argv
from msggan.commands.program import EXIT_CODES
from msggan.config import TrainConfig
from msggan.errors import UsageError
from orchestration.spec import default_name, name_problems
from orchestration.sweeps.space import Interval, SearchSpace, written

SAMPLINGS = ("random", "grid", "bayesian", "sobol")
POLICIES = ("none", "median", "bandit", "truncation")
DIRECTIONS = ("minimize", "maximize")
# What metrics.jsonl has, and which way it is better. swd_16, swd_32 … are among them.
KNOWN_METRICS = {"swd": "minimize", "d_loss": "minimize", "g_loss": "minimize", "images_per_second": "maximize"}
MOST_TRIALS = 1000
DEFAULT_TRIALS = 20
ENDED = ("completed", "stopped", "failed")  # a trial that is not begun again
CANCELLED = "Somebody cancelled it."  # and not its sweep


@dataclass(frozen=True)
class Objective:
    """The metric that the trials are judged by, and which way it is better."""

    metric: str = "swd"
    direction: str = "minimize"

    def is_better(self, value: float, other: float) -> bool:
        return value < other if self.direction == "minimize" else value > other

    def sort_key(self, value: float | None) -> float:
        """Ascending from the best; what has no value comes last."""
        if value is None or not math.isfinite(value):
            return math.inf
        return value if self.direction == "minimize" else -value


@dataclass(frozen=True)
class EarlyStopping:
    """When a trial that does badly is ended, in Azure ML's terms. An interval is one measurement of the objective.

    policy: none, median, bandit or truncation. interval: decide at each so many-th measurement. delay: not before
    that many. slack_factor, slack_amount: how far from the best a trial may be (bandit), as a ratio or a difference.
    percentage: the share of the trials that is ended at each decision (truncation), 1 to 99.
    """

    policy: str = "none"
    interval: int = 1
    delay: int = 0
    slack_factor: float | None = None
    slack_amount: float | None = None
    percentage: int | None = None


def default_trials(space: SearchSpace, sampling: str) -> int:
    """All of a grid; otherwise a number that fits a night, at most all."""
    if space.size is None:
        return DEFAULT_TRIALS
    return space.size if sampling == "grid" else min(DEFAULT_TRIALS, space.size)


def sweep_name(data: str | Path) -> str:
    """The default name of a sweep, from its data's."""
    return f"{default_name(data)[:50]}-sweep"


@dataclass(frozen=True)
class SweepSpec:
    """A sweep to be: a run's specification with some fields left to be searched. Raises `UsageError` if it cannot be.

    trials: None for every combination of a grid. timeout_hours: of the whole sweep, None for none. most_failed: the
    share of the trials, 0 to 1, that may fail before the sweep is given up.
    """

    config: TrainConfig
    data: str | Path
    name: str
    space: SearchSpace
    objective: Objective = field(default_factory=Objective)
    sampling: str = "random"
    sampling_seed: int = 0
    trials: int = 20
    concurrent: int = 1
    timeout_hours: float | None = None
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    most_failed: float = 0.5
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        problems = name_problems(self.name) + spec_problems(self)
        if problems:
            raise UsageError(problems)

    def with_settings(self, settings: dict[str, Any]) -> TrainConfig:
        """The configuration of the trial that has these settings."""
        return replace(self.config, **settings)

    def to_argv(self) -> list[str]:
        """The options that say this sweep; nothing for what is as by default."""
        stopping, plain, unstopped = self.early_stopping, _defaults(), EarlyStopping()
        words = ["--data", str(self.data)]
        words += [word for text in self.space.as_texts() for word in ("--over", text)]
        values = [
            ("--trials", self.trials, None),
            ("--concurrent", self.concurrent, plain["concurrent"]),
            ("--sampling", self.sampling, plain["sampling"]),
            ("--sampling-seed", self.sampling_seed, plain["sampling_seed"]),
            ("--timeout", self.timeout_hours, None),
            ("--objective", self.objective.metric, Objective().metric),
            ("--direction", self.objective.direction, objective_of(self.objective.metric, None).direction),
            ("--stop-early", stopping.policy, unstopped.policy),
            ("--stop-interval", stopping.interval, unstopped.interval),
            ("--stop-delay", stopping.delay, unstopped.delay),
            ("--slack", stopping.slack_factor, None),
            ("--slack-amount", stopping.slack_amount, None),
            ("--truncate", stopping.percentage, None),
            ("--most-failed", self.most_failed, plain["most_failed"]),
            ("--name", self.name, None),
        ]
        for option, value, default in values:
            words += [] if value is None or value == default else [option, written(value)]
        return [*words, *to_argv(self.config), *self.hardware.to_argv()]


def _defaults() -> dict[str, Any]:
    return {spec.name: spec.default for spec in fields(SweepSpec)}


@dataclass(frozen=True)
class Trial:
    """One trial: its number from 0, its settings, how it stands and what it has reached.

    state: queued, preparing, running, completed, stopped (early, by the policy), failed, cancelled or interrupted.
    objective: its best value so far, None if none was measured. curve: (images seen, objective) of each measurement.
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
    """How a sweep stands, whoever runs it, with its trials from the best to the worst.

    data: what --data named. said: what the person said for all trials. planned: how many trials there are to be.
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
    said: dict[str, Any] = field(default_factory=dict)
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
        """Why the best trial may be no better than the others; empty where it clearly is, or where there is none."""
        return warnings_about(self.trials, self.objective)

    def trial(self, number: int) -> Trial:
        """The trial of this number. Raises `UsageError` where there is none."""
        found = [trial for trial in self.trials if trial.number == number]
        if found:
            return found[0]
        numbers = [trial.number for trial in self.trials]
        there = f"its trials are {min(numbers)} to {max(numbers)}" if numbers else "none has begun"
        raise UsageError([f"{self.name}: has no trial {number}; {there}."])

    @property
    def exit_code(self) -> int:
        """What `sweep` ends with."""
        return EXIT_CODES.get(self.state, 0)

    def config_of(self, trial: Trial) -> TrainConfig:
        """What the trial was told to train. It may be told again for a longer run."""
        return TrainConfig(**{**self.said, **trial.settings})

    def as_json(self) -> dict[str, Any]:
        content = asdict(self)
        return {**content, "best": None if self.best is None else asdict(self.best), "warnings": self.warnings}


def sorted_trials(trials: Iterable[Trial], objective: Objective) -> list[Trial]:
    """From the best to the worst; then those that failed, and those without a value, in order of their numbers."""
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


# --- Whether the best trial is better than the others -----------------------------------------------------------------

# docs/sweeps.md has the measurements behind both.
FEWEST_KIMG = 5  # in shorter trainings swd ranked the settings the other way round
SEED_SHARE = 0.1  # the share of swd by which another seed changes it


def warnings_about(trials: Sequence[Trial], objective: Objective) -> list[str]:
    """Why the best trial may be no better than the others, a sentence each."""
    ranked = ranked_trials(trials, objective)
    if not ranked:
        return []
    is_distance = objective.metric.startswith("swd") and objective.direction == "minimize"
    warnings = _training_warnings(ranked[0], objective.metric) if is_distance else []
    if "seed" in ranked[0].settings:
        return warnings + _seed_warnings(ranked, objective)
    return warnings + (_spread_warnings(ranked, objective) if is_distance else [])


def _training_warnings(best: Trial, metric: str) -> list[str]:
    """Complaints about a best trial that was too short, or whose distance to the images has not fallen."""
    warnings = []
    kimg = (best.images_seen or 0) / 1000
    if kimg < FEWEST_KIMG:
        warnings.append(
            f"Trial {best.number} has trained only {kimg:g} kimg. Below {FEWEST_KIMG} kimg {metric} often ranks "
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
            f"Training has not clearly lowered {metric} of trial {best.number}: it was {values[0]:.4g} when it was "
            f"first measured and is {min(values):.4g} at best."
        )
    return warnings


def _spread_warnings(ranked: Sequence[Trial], objective: Objective) -> list[str]:
    """A complaint where all trials lie so close together that the seed alone may have ordered them."""
    best, worst = ranked[0].objective or 0.0, ranked[-1].objective or 0.0
    if len(ranked) == 1 or best <= (1 - SEED_SHARE) * worst:
        return []
    return [
        f"All trials lie between {objective.metric} {best:.4g} and {worst:.4g}. Another seed alone can change it as "
        "much: search it too, with --over seed=0,1."
    ]


def _seed_warnings(ranked: Sequence[Trial], objective: Objective) -> list[str]:
    """A complaint where other settings come closer to the best trial than its own do with another seed."""
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
    """How far apart the values of a trial and of those lie that have its settings and another seed."""
    values = [other.objective or 0.0 for other in trials if _without_seed(other) == _without_seed(trial)]
    return max(values) - min(values)


def why_given_up(reasons: Sequence[str], planned: int) -> str:
    """Why a sweep is given up. reasons: why its trials failed, of at least one."""
    commonest = Counter(reasons).most_common(1)[0][0]
    return f"{len(reasons)} of {planned} trials failed, most often so: {commonest}"


def reached(reports: Sequence[Mapping[str, Any]], objective: Objective) -> dict[str, Any]:
    """Of a `Trial`, what its reports say: its curve, the best of it, and the images seen."""
    curve = curve_of(reports, objective)
    ranked = sorted((value for _, value in curve), key=objective.sort_key)
    return {
        "curve": curve,
        "objective": ranked[0] if ranked else None,
        "images_seen": int(reports[-1]["images"]) if reports else None,
    }


def curve_of(reports: Iterable[Mapping[str, Any]], objective: Objective) -> tuple[tuple[int, float], ...]:
    """(images seen, objective) of each report that measured it."""
    measured = ((int(report["images"]), report.get(objective.metric)) for report in reports if "images" in report)
    return tuple((images, value) for images, value in measured if value is not None and math.isfinite(value))


# --- What cannot be ---------------------------------------------------------------------------------------------------


def objective_problems(metric: str, direction: str | None) -> list[str]:
    """Every complaint about the texts of --objective and --direction."""
    problems = []
    if direction is not None and direction not in DIRECTIONS:
        problems.append(f"--direction {direction}: {must_be_one_of(direction, DIRECTIONS)}")
    if not is_known(metric):
        near = nearest(metric, KNOWN_METRICS)
        suggestion = (
            f"Did you mean {near[0]}?" if near else f"There are {', '.join(KNOWN_METRICS)} and swd_16, swd_32 …"
        )
        problems.append(f"--objective {metric}: no run logs this. {suggestion}")
    return problems


def scale_problems(metric: str, config: TrainConfig) -> list[str]:
    """A complaint where the metric is of a scale that images of the configured resolution do not have."""
    match = re.fullmatch(r"swd_(\d+)", metric)
    if match is None or config.resolution is None:  # the images will tell
        return []
    scales = [1 << power for power in range(2, 11) if 16 <= 1 << power <= config.resolution] or [config.resolution]
    if int(match[1]) in scales:
        return []
    there = ", ".join(["swd", *(f"swd_{scale}" for scale in scales)])
    return [f"--objective {metric}: is never logged at --resolution {config.resolution}. There are {there}."]


def is_known(metric: str) -> bool:
    return metric in KNOWN_METRICS or re.fullmatch(r"swd_(4|8|16|32|64|128|256|512|1024)", metric) is not None


def objective_of(metric: str, direction: str | None) -> Objective:
    """The objective; the direction in which the metric is better, unless another is said."""
    return Objective(metric, direction or KNOWN_METRICS.get(metric, "minimize"))


def spec_problems(spec: SweepSpec) -> list[str]:
    """Every complaint about a sweep as a whole, a sentence each."""
    return [
        *_sampling_problems(spec),
        *_number_problems(spec),
        *early_stopping_problems(spec.early_stopping),
        *(scale_problems(spec.objective.metric, spec.config) if is_known(spec.objective.metric) else []),
    ]


def _sampling_problems(spec: SweepSpec) -> list[str]:
    if spec.sampling not in SAMPLINGS:
        return [f"--sampling {spec.sampling}: {must_be_one_of(spec.sampling, SAMPLINGS)}"]
    if spec.sampling == "grid":
        return [
            f"--sampling grid: --over {dimension} has no end of values. Name them, as in "
            f"{dimension.name}={dimension.low:.12g},{dimension.high:.12g}, or try --sampling sobol."
            for dimension in spec.space.dimensions
            if isinstance(dimension, Interval)
        ]
    return []


def _number_problems(spec: SweepSpec) -> list[str]:
    problems = _trials_problems(spec)
    if spec.concurrent < 1:
        problems.append(f"--concurrent {spec.concurrent}: must be 1 or more.")
    elif spec.concurrent > spec.trials > 0:
        problems.append(
            f"--concurrent {spec.concurrent}: is more than --trials {spec.trials}. Give --concurrent {spec.trials}."
        )
    if spec.timeout_hours is not None and not spec.timeout_hours > 0:
        problems.append(f"--timeout {spec.timeout_hours:g}: must be more than 0 hours.")
    if not 0 <= spec.most_failed <= 1:
        problems.append(f"--most-failed {spec.most_failed:g}: must be a share from 0 to 1.")
    return problems


def _trials_problems(spec: SweepSpec) -> list[str]:
    if not 1 <= spec.trials <= MOST_TRIALS:
        return [f"--trials {spec.trials}: must be 1 or more, at most {MOST_TRIALS}."]
    size = spec.space.size
    if not spec.space.dimensions or size is None or spec.trials <= size:
        return []
    there = "is only 1 combination" if size == 1 else f"are only {size} combinations"
    return [f"--trials {spec.trials}: there {there}. Give --trials {size}."]


def early_stopping_problems(stopping: EarlyStopping) -> list[str]:
    """Every complaint about --stop-early and what goes with it."""
    if stopping.policy not in POLICIES:
        return [f"--stop-early {stopping.policy}: {must_be_one_of(stopping.policy, POLICIES)}"]
    problems = []
    if stopping.interval < 1:
        problems.append(f"--stop-interval {stopping.interval}: must be 1 or more.")
    if stopping.delay < 0:
        problems.append(f"--stop-delay {stopping.delay}: must be 0 or more.")
    given = {
        "slack_factor": stopping.slack_factor,
        "slack_amount": stopping.slack_amount,
        "percentage": stopping.percentage,
    }
    belongs = {"bandit": ("slack_factor", "slack_amount"), "truncation": ("percentage",)}.get(stopping.policy, ())
    flags = {"slack_factor": "--slack", "slack_amount": "--slack-amount", "percentage": "--truncate"}
    problems += [
        f"{flags[name]}: goes with --stop-early {'truncation' if name == 'percentage' else 'bandit'} only."
        for name, value in given.items()
        if value is not None and name not in belongs
    ]
    return problems + _policy_problems(stopping)


def _policy_problems(stopping: EarlyStopping) -> list[str]:
    if stopping.policy == "bandit":
        slacks = [slack for slack in (stopping.slack_factor, stopping.slack_amount) if slack is not None]
        if len(slacks) != 1:
            return ["--stop-early bandit: needs one of --slack RATIO, as 0.2, and --slack-amount DIFFERENCE."]
        return [] if slacks[0] > 0 else ["--stop-early bandit: its slack must be more than 0, as --slack 0.2."]
    if stopping.policy == "truncation" and not 1 <= (stopping.percentage or 0) <= 99:
        return ["--stop-early truncation: needs --truncate PERCENT, from 1 to 99."]
    return []


def differences(spec: Sequence[tuple[str, Any]], stored: Sequence[tuple[str, Any]]) -> list[str]:
    """What two descriptions of a sweep say differently, a clause each: for a name that is used again."""
    there = dict(stored)
    return [f"{name} is {there.get(name)} there and {value} here" for name, value in spec if there.get(name) != value]
