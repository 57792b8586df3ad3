"""The specification of a sweep, and every problem that it can have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from msggan.commands.options import COMMON, Hardware, argv_of, must_be_one_of, nearest, option_field, to_argv
from msggan.config import TrainConfig
from msggan.errors import UsageError
from orchestration.spec import default_name, name_problems
from orchestration.sweeps.space import MAX_TRIALS, Interval, SearchSpace, format_value
from orchestration.sweeps.trials import (
    DIRECTIONS,
    FRACTION,
    KNOWN_METRICS,
    WHOLE,
    EarlyStopping,
    Objective,
    early_stopping_problems,
    sweep_field,
)

SAMPLINGS = ("random", "grid", "bayesian", "sobol")
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
    trials: int = option_field(
        DEFAULT_TRIALS,
        f"Number of trials.  [default: {DEFAULT_TRIALS}, at most all combinations; grid: all]",
        default=None,
        section=COMMON,
        type=WHOLE,
    )
    concurrent: int = sweep_field(1, "How many trials run at once, sharing the cores.", type=WHOLE)
    sampling: str = sweep_field("random", "How the settings are drawn.", metavar="|".join(SAMPLINGS))
    sampling_seed: int = sweep_field(0, "Seed of the drawn settings.  [default: 0]", type=WHOLE)
    timeout_hours: float | None = sweep_field(
        None, "Limit of the whole sweep.  [default: none]", flag="--timeout", metavar="HOURS", type=FRACTION
    )
    objective: Objective = field(default_factory=Objective)
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    max_failed_fraction: float = sweep_field(
        0.5, "Give up when more than this fraction of the trials fails.", metavar="FRACTION", type=FRACTION
    )
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        problems = name_problems(self.name) + spec_problems(self)
        if problems:
            raise UsageError(problems)

    def to_argv(self) -> list[str]:
        """The options of `msggan-aml sweep` that give this sweep; defaults are left out."""
        over = [arg for text in self.space.as_texts() for arg in ("--over", text)]
        left_out = ["config", "data", "name", "space", "trials", "hardware"]
        if self.objective == Objective(self.objective.metric):
            left_out.append("direction")
        options = ["--data", str(self.data), *over, "--trials", str(self.trials), *argv_of(self, left_out=left_out)]
        return [*options, "--name", self.name, *to_argv(self.config), *argv_of(self.hardware)]


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
