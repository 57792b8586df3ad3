"""The specification of a sweep, and every problem that it can have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from msggan.commands.options import Hardware, must_be_one_of, nearest, to_argv
from msggan.config import TrainConfig
from msggan.errors import UsageError
from orchestration.spec import default_name, name_problems
from orchestration.sweeps.space import MAX_TRIALS, Interval, SearchSpace, format_value
from orchestration.sweeps.trials import POLICY_OPTIONS, EarlyStopping, Objective, early_stopping_problems

SAMPLINGS = ("random", "grid", "bayesian", "sobol")
DIRECTIONS = ("minimize", "maximize")
# The metrics in metrics.jsonl and their better direction; besides swd_16, swd_32 …
KNOWN_METRICS = {"swd": "minimize", "d_loss": "minimize", "g_loss": "minimize", "images_per_second": "maximize"}
DEFAULT_TRIALS = 20


@dataclass(frozen=True)
class SweepSpec:
    """The specification of a sweep. Raises `UsageError` with every problem at once.

    config: the options that all trials share. timeout_hours: the limit of the whole sweep, None for none.
    max_failed_fraction: the sweep is given up when more than this fraction of the trials, 0 to 1, fails.
    """

    config: TrainConfig
    data: str | Path
    name: str
    space: SearchSpace
    objective: Objective = field(default_factory=Objective)
    sampling: str = "random"
    sampling_seed: int = 0
    trials: int = DEFAULT_TRIALS
    concurrent: int = 1
    timeout_hours: float | None = None
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    max_failed_fraction: float = 0.5
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        problems = name_problems(self.name) + spec_problems(self)
        if problems:
            raise UsageError(problems)

    def to_argv(self) -> list[str]:
        """The options of `msggan-aml sweep` that give this sweep; defaults are left out."""
        defaults = {spec.name: spec.default for spec in fields(SweepSpec)}
        stopping, unset = self.early_stopping, EarlyStopping()
        values = [
            ("--data", self.data, None),
            *(("--over", text, None) for text in self.space.as_texts()),
            ("--trials", self.trials, None),
            ("--concurrent", self.concurrent, defaults["concurrent"]),
            ("--sampling", self.sampling, defaults["sampling"]),
            ("--sampling-seed", self.sampling_seed, defaults["sampling_seed"]),
            ("--timeout", self.timeout_hours, None),
            ("--objective", self.objective.metric, Objective().metric),
            ("--direction", self.objective.direction, objective_of(self.objective.metric, None).direction),
            ("--stop-early", stopping.policy, unset.policy),
            ("--stop-interval", stopping.interval, unset.interval),
            ("--stop-delay", stopping.delay, unset.delay),
            *((option, getattr(stopping, name), None) for name, (option, _) in POLICY_OPTIONS.items()),
            ("--max-failed-fraction", self.max_failed_fraction, defaults["max_failed_fraction"]),
            ("--name", self.name, None),
        ]
        set_values = [(option, value) for option, value, default in values if value not in (None, default)]
        args = [arg for option, value in set_values for arg in (option, format_value(value))]
        return [*args, *to_argv(self.config), *self.hardware.to_argv()]


def objective_of(metric: str, direction: str | None) -> Objective:
    """The objective; without a direction, the metric's own."""
    return Objective(metric, direction or KNOWN_METRICS.get(metric, "minimize"))


def default_trials(space: SearchSpace, sampling: str) -> int:
    """Every combination of a grid; otherwise at most `DEFAULT_TRIALS`."""
    if space.size is None:
        return DEFAULT_TRIALS
    return space.size if sampling == "grid" else min(DEFAULT_TRIALS, space.size)


def sweep_name(data: str | Path) -> str:
    """The default name of a sweep, from the name of its data."""
    return f"{default_name(data)[:50]}-sweep"


# --- Problems ---------------------------------------------------------------------------------------------------------


def spec_problems(spec: SweepSpec) -> list[str]:
    """Every problem with a sweep, one sentence each."""
    problems = objective_problems(spec.objective, spec.config)
    if spec.sampling not in SAMPLINGS:
        problems.append(f"--sampling {spec.sampling}: {must_be_one_of(spec.sampling, SAMPLINGS)}")
    if spec.sampling == "grid":
        problems += [
            f"--sampling grid: --over {dimension} is a continuous range. List values, as in "
            f"{dimension.name}={format_value(dimension.low)},{format_value(dimension.high)}, or use --sampling sobol."
            for dimension in spec.space.dimensions
            if isinstance(dimension, Interval)
        ]
    size = spec.space.size
    if not 1 <= spec.trials <= MAX_TRIALS:
        problems.append(f"--trials {spec.trials}: must be from 1 to {MAX_TRIALS}.")
    elif spec.space.dimensions and size is not None and spec.trials > size:
        count = "is only 1 combination" if size == 1 else f"are only {size} combinations"
        problems.append(f"--trials {spec.trials}: there {count}. Use --trials {size}.")
    if spec.concurrent < 1:
        problems.append(f"--concurrent {spec.concurrent}: must be 1 or more.")
    elif spec.concurrent > spec.trials > 0:
        problems.append(
            f"--concurrent {spec.concurrent}: is more than --trials {spec.trials}. Use --concurrent {spec.trials}."
        )
    if spec.timeout_hours is not None and not spec.timeout_hours > 0:
        problems.append(f"--timeout {spec.timeout_hours:g}: must be more than 0 hours.")
    if not 0 <= spec.max_failed_fraction <= 1:
        problems.append(f"--max-failed-fraction {spec.max_failed_fraction:g}: must be from 0 to 1.")
    return problems + early_stopping_problems(spec.early_stopping)


def objective_problems(objective: Objective, config: TrainConfig) -> list[str]:
    """Problems with --objective and --direction. Which scales exist is known where --resolution is set."""
    metric, direction, resolution = objective.metric, objective.direction, config.resolution
    problems = []
    if direction not in DIRECTIONS:
        problems.append(f"--direction {direction}: {must_be_one_of(direction, DIRECTIONS)}")
    scale = re.fullmatch(r"swd_(4|8|16|32|64|128|256|512|1024)", metric)
    if metric not in KNOWN_METRICS and scale is None:
        near = nearest(metric, KNOWN_METRICS)
        known = f"Did you mean {near[0]}?" if near else f"Available: {', '.join(KNOWN_METRICS)}, swd_16, swd_32 …"
        problems.append(f"--objective {metric}: no run logs this. {known}")
    if scale and resolution is not None:
        scales = [1 << power for power in range(2, 11) if 16 <= 1 << power <= resolution] or [resolution]
        if int(scale[1]) not in scales:
            logged = ", ".join(["swd", *(f"swd_{scale}" for scale in scales)])
            problems.append(f"--objective {metric}: is not logged at --resolution {resolution}. Available: {logged}.")
    return problems
