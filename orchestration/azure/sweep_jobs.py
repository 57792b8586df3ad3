"""What is a sweep as a job of Azure ML? Its body, and what the service would refuse in it. Asks nobody."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from azure.ai.ml import sweep as sdk
from azure.ai.ml.entities import UserIdentityConfiguration
from azure.ai.ml.sweep import SweepJob, SweepJobLimits

from msggan.commands.options import to_argv
from msggan.config import TrainConfig, flag
from msggan.errors import UsageError
from orchestration.azure.history import SWEEP_TAG
from orchestration.azure.jobs import RUN_PLACEHOLDER, JobPlan, build_job, command_line
from orchestration.sweeps.space import Choice, Dimension, Interval
from orchestration.sweeps.spec import KNOWN_METRICS, EarlyStopping, SweepSpec

# A trial that starts again has the same AZUREML_RUN_ID, and finds its folder there.
TRIAL_FOLDER = f"{RUN_PLACEHOLDER}/trials/$AZUREML_RUN_ID"

# What is searched when a grid goes on: all options of a trial as one choice among what is left of the grid.
JOINT = "settings"

LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class RemainingTrials:
    """What is left of a sweep for its next job. combinations: those of a grid, None for what is drawn by the service.

    Drawn settings would be the same again with the same seed, so each job of a sweep has its own.
    """

    trials: int
    sampling_seed: int
    combinations: tuple[Mapping[str, Any], ...] | None = None


def whole(sweep: SweepSpec) -> RemainingTrials:
    return RemainingTrials(sweep.trials, sweep.sampling_seed)


def build_sweep(plan: JobPlan, sweep: SweepSpec, part: RemainingTrials | None = None) -> SweepJob:
    """The sweep as the SDK takes it. plan: the job that each trial is. Raises UsageError for what cannot be.

    Written out rather than by the SDK's `.sweep()`, which drops the experiment, the description and the time limit.
    """
    part = part or whole(sweep)
    problems = azure_problems(sweep)
    if problems:
        raise UsageError(problems)
    trial = build_job(plan)._to_job()
    trial.command = trial_command(plan, sweep, part)
    return SweepJob(
        name=plan.name,
        display_name=plan.name,
        description=describe(sweep),
        experiment_name=plan.settings.experiment,
        tags={**plan.tags, SWEEP_TAG: sweep.name},
        properties=dict(trial.properties),
        trial=trial,
        compute=plan.compute,
        inputs=trial.inputs,
        outputs=trial.outputs,
        identity=UserIdentityConfiguration() if plan.as_user else None,
        queue_settings=trial.queue_settings,
        resources=trial.resources,
        sampling_algorithm=_sampling(sweep, part),
        search_space=_search_space(sweep, part),
        objective=sdk.Objective(goal=sweep.objective.direction, primary_metric=sweep.objective.metric),
        limits=_limits(plan, sweep, part),
        early_termination=_policy(sweep.early_stopping),
    )


def build_sweep_body(
    plan: JobPlan, sweep: SweepSpec, scope: str, part: RemainingTrials | None = None
) -> dict[str, Any]:
    """The body that would be sent for `build_sweep`. scope: the workspace's path in the resource manager."""
    job = build_sweep(plan, sweep, part)
    if plan.compute is not None:
        job.compute = f"{scope}/computes/{plan.compute}"
    body: dict[str, Any] = job._to_rest_object().as_dict()
    return {"properties": body["properties"]}


def describe(sweep: SweepSpec) -> str:
    """What the sweep is for, as the portal shows it."""
    goal = "least" if sweep.objective.direction == "minimize" else "greatest"
    return f"Which settings have the {goal} {sweep.objective.metric}? {'; '.join(sweep.space.as_texts())}."


def trial_command(plan: JobPlan, sweep: SweepSpec, part: RemainingTrials) -> str:
    """The command of a trial, as its shell reads it once the service has put the drawn values in."""
    swept = [word for dimension in sweep.space.dimensions for word in _words(dimension)]
    if part.combinations is not None:
        swept = [_placeholder(JOINT)]
    return " ".join([command_line(plan.spec, TRIAL_FOLDER), *swept])


def _words(dimension: Dimension) -> list[str]:
    placeholder = _placeholder(dimension.name)
    return [placeholder] if _is_switch(dimension) else [flag(dimension.name), f'"{placeholder}"']


def _placeholder(name: str) -> str:
    return f"${{{{search_space.{name}}}}}"


def _is_switch(dimension: Dimension) -> bool:
    """Whether the field is said by a flag alone, --mirror or --no-mirror: then the flag is what is drawn."""
    return isinstance(dimension, Choice) and all(isinstance(value, bool) for value in dimension.values)


def _search_space(sweep: SweepSpec, part: RemainingTrials) -> dict[str, Any]:
    if part.combinations is not None:
        return {JOINT: sdk.Choice([shlex.join(to_argv(TrainConfig(**settings))) for settings in part.combinations])}
    return {dimension.name: _distribution(dimension) for dimension in sweep.space.dimensions}


def _distribution(dimension: Dimension) -> sdk.Choice | sdk.Uniform | sdk.LogUniform:
    if isinstance(dimension, Choice):
        if _is_switch(dimension):
            return sdk.Choice([switch(dimension.name, value) for value in dimension.values])
        return sdk.Choice(list(dimension.values))
    if dimension.log:
        return sdk.LogUniform(math.log(dimension.low), math.log(dimension.high))  # it takes the logarithms
    return sdk.Uniform(dimension.low, dimension.high)


def switch(name: str, value: bool) -> str:
    """The flag that says yes or no: --mirror, --no-mirror."""
    return flag(name) if value else f"--no-{flag(name).removeprefix('--')}"


def _sampling(sweep: SweepSpec, part: RemainingTrials) -> Any:
    if sweep.sampling in ("random", "sobol"):
        return sdk.RandomSamplingAlgorithm(rule=sweep.sampling.title(), seed=part.sampling_seed)
    return {"grid": sdk.GridSamplingAlgorithm, "bayesian": sdk.BayesianSamplingAlgorithm}[sweep.sampling]()


def _limits(plan: JobPlan, sweep: SweepSpec, part: RemainingTrials) -> SweepJobLimits:
    return SweepJobLimits(
        max_total_trials=part.trials,
        max_concurrent_trials=min(sweep.concurrent, part.trials),
        timeout=None if sweep.timeout_hours is None else _seconds(sweep.timeout_hours),
        trial_timeout=_seconds(plan.settings.timeout_hours),
    )


def _seconds(hours: float) -> int:
    return max(1, round(hours * 3600))


def _policy(stopping: EarlyStopping) -> Any | None:
    when = {"evaluation_interval": stopping.interval, "delay_evaluation": stopping.delay}
    if stopping.policy == "median":
        return sdk.MedianStoppingPolicy(**when)
    if stopping.policy == "truncation":
        return sdk.TruncationSelectionPolicy(**when, truncation_percentage=stopping.percentage or 0)
    if stopping.policy == "bandit":
        return sdk.BanditPolicy(
            **when, slack_factor=stopping.slack_factor or 0, slack_amount=stopping.slack_amount or 0
        )
    return None


# --- What the service refuses, and the SDK does not look at ----------------------------------------------------------


def azure_problems(sweep: SweepSpec) -> list[str]:
    """Every complaint about a sweep that only Azure has, a sentence each.

    The rules are Microsoft's, of sweep jobs: Bayesian sampling takes choice, uniform and quniform only and no policy of
    early termination (azureml.train.hyperdrive.BayesianParameterSampling, whose service runs sweep jobs too); the
    objective is one of the metrics that MLflow is told.
    """
    problems = []
    if sweep.objective.metric not in KNOWN_METRICS:
        problems.append(
            f"--objective {sweep.objective.metric}: on Azure it is one of the metrics that MLflow is told: "
            f"{', '.join(KNOWN_METRICS)}."
        )
    if sweep.sampling == "bayesian":
        problems += [
            _not_bayesian(dimension)
            for dimension in sweep.space.dimensions
            if isinstance(dimension, Interval) and dimension.log
        ]
        if sweep.early_stopping.policy != "none":
            problems.append(
                f"--stop-early {sweep.early_stopping.policy}: Azure ends no trial early where the next ones are drawn "
                "from what the others reached. Leave it out, or try --sampling random."
            )
    if not 0 <= sweep.sampling_seed <= LARGEST_SEED:
        problems.append(f"--sampling-seed {sweep.sampling_seed}: must be 0 or more, at most {LARGEST_SEED} on Azure.")
    return problems


def _not_bayesian(dimension: Interval) -> str:
    middle = math.sqrt(dimension.low * dimension.high)
    return (
        f"--sampling bayesian: on Azure it takes no range that is searched in the logarithm, as --over {dimension} is. "
        f"Name values, as in {dimension.name}={dimension.low:.3g},{middle:.3g},{dimension.high:.3g}, "
        "or try --sampling random."
    )
