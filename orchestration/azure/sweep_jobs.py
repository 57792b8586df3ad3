"""A sweep as a job of Azure ML: its body, what the service would refuse, and what its next job has to try."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from azure.ai.ml import sweep as sdk
from azure.ai.ml.sweep import SweepJob, SweepJobLimits

from msggan.commands.options import to_argv
from msggan.config import TrainConfig, flag
from msggan.errors import UsageError
from orchestration.azure.jobs import (
    RUN_PLACEHOLDER,
    SWEEP_TAG,
    JobPlan,
    build_identity,
    build_job,
    command_line,
    rest_body,
    seconds,
)
from orchestration.spec import RunSpec
from orchestration.sweeps.space import Choice, Dimension, Interval
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.trials import ENDED, EarlyStopping, Trial

# A trial that starts again has the same AZUREML_RUN_ID, and finds its folder there.
TRIAL_FOLDER = f"{RUN_PLACEHOLDER}/trials/$AZUREML_RUN_ID"

# The search space of a grid that is resumed: the options of each combination that is left, as one choice.
JOINT = "settings"

MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class RemainingTrials:
    """The trials that the next job of a sweep runs.

    sampling_seed: differs for each job of a sweep, or the service would draw the same settings again. combinations:
    those that are left of a grid, None if the service draws the settings.
    """

    trials: int
    sampling_seed: int
    combinations: tuple[Mapping[str, Any], ...] | None = None


def all_trials(sweep: SweepSpec) -> RemainingTrials:
    return RemainingTrials(sweep.trials, sweep.sampling_seed)


def remaining_trials(sweep: SweepSpec, trials: Sequence[Trial], earlier_jobs: int) -> RemainingTrials | None:
    """What the next job of a sweep has to try, None if every trial has ended. trials: those of its earlier jobs."""
    if not earlier_jobs:
        return all_trials(sweep)
    ended = [trial for trial in trials if trial.state in ENDED]
    count = sweep.trials - len(ended)
    if sweep.sampling != "grid":
        return RemainingTrials(count, sweep.sampling_seed + earlier_jobs) if count > 0 else None
    tried = [trial.settings for trial in ended]
    grid = itertools.islice(sweep.space.combinations(), sweep.trials)
    untried = tuple(settings for settings in grid if settings not in tried)
    return RemainingTrials(len(untried), sweep.sampling_seed, untried) if untried else None


def trial_run(sweep: SweepSpec) -> RunSpec:
    """What all trials have in common, as a run."""
    return RunSpec(sweep.config, sweep.data, sweep.name, sweep.hardware)


class TrialSweepJob(SweepJob):
    """A sweep job whose resources are those of its trial, where the service's description has them.

    The SDK copies them to the sweep. Only a serverless sweep keeps the copy, as the size of its machines: nothing
    describes where the service reads that, and this is what all users of the SDK send.
    """

    def _to_rest_object(self) -> Any:
        body = super()._to_rest_object()
        if self.compute:
            body.properties.pop("resources", None)
        return body


def build_sweep(plan: JobPlan, sweep: SweepSpec, remaining: RemainingTrials | None = None) -> SweepJob:
    """The sweep as the SDK's job. plan: the job of a trial. Raises `UsageError` for what the service refuses.

    The SDK's own `.sweep()` drops the experiment, the description and the time limit.
    """
    remaining = remaining or all_trials(sweep)
    refuse_on_azure(sweep)
    trial = build_job(plan)._to_job()
    trial.command = trial_command(plan, sweep, remaining)
    space: dict[str, Any]
    sampling: Any
    if remaining.combinations is None:
        space = {dimension.name: _distribution(dimension) for dimension in sweep.space.dimensions}
    else:
        texts: list[Any] = [shlex.join(to_argv(TrainConfig(**settings))) for settings in remaining.combinations]
        space = {JOINT: sdk.Choice(texts)}
    if sweep.sampling in ("random", "sobol"):
        sampling = sdk.RandomSamplingAlgorithm(rule=sweep.sampling.title(), seed=remaining.sampling_seed)
    else:
        sampling = {"grid": sdk.GridSamplingAlgorithm, "bayesian": sdk.BayesianSamplingAlgorithm}[sweep.sampling]()
    return TrialSweepJob(
        name=plan.name,
        display_name=plan.name,
        description=plan.settings.description or _description(sweep),
        experiment_name=plan.settings.experiment,
        tags={**plan.settings.tags, **plan.tags, SWEEP_TAG: sweep.name},
        properties=dict(trial.properties),
        trial=trial,
        compute=plan.compute,
        inputs=trial.inputs,
        outputs=trial.outputs,
        identity=build_identity(plan.identity),
        queue_settings=trial.queue_settings,
        sampling_algorithm=sampling,
        search_space=space,
        objective=sdk.Objective(goal=sweep.objective.direction, primary_metric=sweep.objective.metric),
        limits=SweepJobLimits(
            max_total_trials=remaining.trials,
            max_concurrent_trials=min(sweep.concurrent, remaining.trials),
            timeout=None if sweep.timeout_hours is None else seconds(sweep.timeout_hours),
            trial_timeout=seconds(plan.settings.timeout_hours),
        ),
        early_termination=_policy(sweep.early_stopping),
    )


def build_sweep_body(
    plan: JobPlan, sweep: SweepSpec, scope: str, remaining: RemainingTrials | None = None
) -> dict[str, Any]:
    """The request body of `build_sweep`. scope: the workspace's path in Azure Resource Manager."""
    return rest_body(build_sweep(plan, sweep, remaining), plan, scope)


def _description(sweep: SweepSpec) -> str:
    """The description that the portal shows."""
    goal = "least" if sweep.objective.direction == "minimize" else "greatest"
    return f"Which settings have the {goal} {sweep.objective.metric}? {'; '.join(sweep.space.as_texts())}."


def trial_command(plan: JobPlan, sweep: SweepSpec, remaining: RemainingTrials) -> str:
    """The command of a trial; the service replaces the placeholders by the drawn values."""
    if remaining.combinations is not None:
        args = [_placeholder(JOINT)]
    else:
        args = []
        for dimension in sweep.space.dimensions:
            placeholder = _placeholder(dimension.name)
            args += [placeholder] if _is_switch(dimension) else [flag(dimension.name), f'"{placeholder}"']
    return " ".join([command_line(plan, TRIAL_FOLDER), *args])


def _placeholder(name: str) -> str:
    return f"${{{{search_space.{name}}}}}"


def _is_switch(dimension: Dimension) -> bool:
    """Whether the field is a flag without a value, --mirror or --no-mirror: then the flag itself is drawn."""
    return isinstance(dimension, Choice) and all(isinstance(value, bool) for value in dimension.values)


def _distribution(dimension: Dimension) -> sdk.Choice | sdk.Uniform | sdk.LogUniform:
    if isinstance(dimension, Choice):
        if _is_switch(dimension):
            return sdk.Choice([switch(dimension.name, bool(value)) for value in dimension.values])
        return sdk.Choice(list(dimension.values))
    if dimension.log:
        return sdk.LogUniform(math.log(dimension.low), math.log(dimension.high))  # it takes the logarithms
    return sdk.Uniform(dimension.low, dimension.high)


def switch(name: str, value: bool) -> str:
    """The flag that sets a boolean: --mirror, --no-mirror."""
    return flag(name) if value else f"--no-{flag(name).removeprefix('--')}"


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


# --- What the service refuses and the SDK does not check --------------------------------------------------------------


def refuse_on_azure(sweep: SweepSpec) -> None:
    """Raises `UsageError` for what the service would refuse, before any request."""
    if problems := azure_problems(sweep):
        raise UsageError(problems)


def azure_problems(sweep: SweepSpec) -> list[str]:
    """Every problem with a sweep that only Azure has, one sentence each.

    The rules are Microsoft's, of sweep jobs: Bayesian sampling takes choice, uniform and quniform only and no early
    termination (azureml.train.hyperdrive.BayesianParameterSampling, whose service also runs sweep jobs).
    """
    problems = []
    if sweep.sampling == "bayesian":
        for dimension in sweep.space.dimensions:
            if isinstance(dimension, Interval) and dimension.log:
                values = (dimension.low, math.sqrt(dimension.low * dimension.high), dimension.high)
                problems.append(
                    f"--sampling bayesian: on Azure it takes no range on a log scale, as --over {dimension} is. "
                    f"List values, as in {dimension.name}={','.join(f'{value:.3g}' for value in values)}, "
                    "or use --sampling random."
                )
        if sweep.early_stopping.policy != "none":
            problems.append(
                f"--stop-early {sweep.early_stopping.policy}: is not available on Azure with --sampling bayesian. "
                "Remove it, or use --sampling random."
            )
    if not 0 <= sweep.sampling_seed <= MAX_SEED:
        problems.append(f"--sampling-seed {sweep.sampling_seed}: must be from 0 to {MAX_SEED} on Azure.")
    return problems
