"""What is a sweep as a job of Azure ML? Its body, and what the service would refuse in it. Asks nobody."""

from __future__ import annotations

import math
from typing import Any

from azure.ai.ml import sweep as sdk
from azure.ai.ml.entities import UserIdentityConfiguration
from azure.ai.ml.sweep import SweepJob, SweepJobLimits

from msggan.config import flag
from msggan.errors import UsageError
from orchestration.azure.jobs import RUN_PLACEHOLDER, JobPlan, build_job, command_line
from orchestration.search_space import Choice, Dimension, Interval
from orchestration.sweep import EarlyStopping, SweepSpec

SWEEP_TAG = "msggan.sweep"

# A trial that starts again has the same AZUREML_RUN_ID, and finds its folder there.
TRIAL_FOLDER = f"{RUN_PLACEHOLDER}/trials/$AZUREML_RUN_ID"

LARGEST_SEED = 2**31 - 1


def build_sweep(plan: JobPlan, sweep: SweepSpec) -> SweepJob:
    """The sweep as the SDK takes it. plan: the job that each trial is. Raises UsageError for what cannot be.

    Written out rather than by the SDK's `.sweep()`, which drops the experiment, the description and the time limit.
    """
    problems = azure_problems(sweep)
    if problems:
        raise UsageError(problems)
    trial = build_job(plan)._to_job()
    trial.command = trial_command(plan, sweep)
    return SweepJob(
        name=plan.name,
        display_name=plan.name,
        description=describe(sweep),
        experiment_name=plan.experiment,
        tags={**plan.tags, SWEEP_TAG: sweep.name},
        properties=dict(trial.properties),
        trial=trial,
        compute=plan.compute,
        inputs=trial.inputs,
        outputs=trial.outputs,
        identity=UserIdentityConfiguration() if plan.as_user else None,
        queue_settings=trial.queue_settings,
        resources=trial.resources,
        sampling_algorithm=_sampling(sweep),
        search_space={dimension.name: _distribution(dimension) for dimension in sweep.space.dimensions},
        objective=sdk.Objective(goal=sweep.objective.direction, primary_metric=sweep.objective.metric),
        limits=_limits(plan, sweep),
        early_termination=_policy(sweep.early_stopping),
    )


def build_sweep_body(plan: JobPlan, sweep: SweepSpec, scope: str) -> dict[str, Any]:
    """The body that would be sent for `build_sweep`. scope: the workspace's path in the resource manager."""
    job = build_sweep(plan, sweep)
    if plan.compute is not None:
        job.compute = f"{scope}/computes/{plan.compute}"
    body: dict[str, Any] = job._to_rest_object().as_dict()
    return {"properties": body["properties"]}


def describe(sweep: SweepSpec) -> str:
    """What the sweep is for, as the portal shows it."""
    goal = "least" if sweep.objective.direction == "minimize" else "greatest"
    return f"Which settings have the {goal} {sweep.objective.metric}? {'; '.join(sweep.space.as_texts())}."


def trial_command(plan: JobPlan, sweep: SweepSpec) -> str:
    """The command of a trial, as its shell reads it once the service has put the drawn values in."""
    swept = [word for dimension in sweep.space.dimensions for word in _words(dimension)]
    return " ".join([command_line(plan.spec, TRIAL_FOLDER), *swept])


def _words(dimension: Dimension) -> list[str]:
    placeholder = f"${{{{search_space.{dimension.name}}}}}"
    return [placeholder] if _is_switch(dimension) else [flag(dimension.name), f'"{placeholder}"']


def _is_switch(dimension: Dimension) -> bool:
    """Whether the field is said by a flag alone, --mirror or --no-mirror: then the flag is what is drawn."""
    return isinstance(dimension, Choice) and all(isinstance(value, bool) for value in dimension.values)


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


def _sampling(sweep: SweepSpec) -> Any:
    if sweep.sampling in ("random", "sobol"):
        return sdk.RandomSamplingAlgorithm(rule=sweep.sampling.title(), seed=sweep.sampling_seed)
    return {"grid": sdk.GridSamplingAlgorithm, "bayesian": sdk.BayesianSamplingAlgorithm}[sweep.sampling]()


def _limits(plan: JobPlan, sweep: SweepSpec) -> SweepJobLimits:
    return SweepJobLimits(
        max_total_trials=sweep.trials,
        max_concurrent_trials=sweep.concurrent,
        timeout=None if sweep.timeout_hours is None else _seconds(sweep.timeout_hours),
        trial_timeout=_seconds(plan.timeout_hours),
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
    """Every complaint about a sweep that only Azure has, a sentence each. The rules are Microsoft's, of sweep jobs."""
    problems = []
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
