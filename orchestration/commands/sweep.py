"""The commands `msggan-aml sweep` and `sweep best`, and what `submit --from-trial` takes from a sweep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from msggan.commands.options import (
    AZURE,
    COMMON,
    SWEEP,
    Hardware,
    Number,
    data_argument,
    hardware_options,
    option,
    output_option,
    parse_with,
    refuse,
    train_options,
)
from msggan.commands.program import print_json
from msggan.config import Range, TrainConfig, explicit_values, flag, problems_of
from msggan.errors import UsageError
from orchestration.commands.terminal import (
    Bars,
    CommandsOrData,
    agree,
    debug_option,
    echo,
    place_of_runs,
    problems_here,
    settings_here,
    show_next,
    show_plan,
    target_option,
    tell,
)
from orchestration.copies import forget_download, is_copy
from orchestration.settings import JOB_SETTINGS, Flags, Settings, settings_options
from orchestration.spec import name_of_trial, source_problems, trial_named
from orchestration.status import Reporter
from orchestration.sweeps.space import SearchSpace, read_space
from orchestration.sweeps.spec import (
    DEFAULT_TRIALS,
    DIRECTIONS,
    SAMPLINGS,
    SweepSpec,
    default_trials,
    objective_of,
    sweep_name,
)
from orchestration.sweeps.status import SweepStatus, sweep_lines
from orchestration.sweeps.trials import POLICIES, EarlyStopping, Trial
from orchestration.targets import (
    SweepTarget,
    build_target,
    choose,
    named_problems,
    target_of,
)

# --- The options ------------------------------------------------------------------------------------------------------


def sweep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that only a sweep has; SweepSpec checks their values."""
    for add in reversed(_SWEEP_OPTIONS):
        command = add(command)
    return command


WHOLE, FRACTION = (Number(kind, Range(-math.inf)) for kind in (int, float))
_option = partial(option, section=SWEEP)
_SWEEP_OPTIONS = (
    option(
        "--over",
        section=COMMON,
        multiple=True,
        metavar="NAME[=VALUES]",
        help="An option to search: NAME (its default range), NAME=LOW..HIGH or NAME=a,b,c. May be repeated.",
    ),
    option(
        "--trials",
        section=COMMON,
        type=WHOLE,
        help=f"Number of trials.  [default: {DEFAULT_TRIALS}, at most all combinations; grid: all]",
    ),
    _option(
        "--concurrent", default=1, type=WHOLE, help="How many trials run at once, sharing the cores.  [default: 1]"
    ),
    _option(
        "--sampling",
        default=SAMPLINGS[0],
        metavar="|".join(SAMPLINGS),
        help="How the settings are drawn.  [default: random]",
    ),
    _option("--sampling-seed", default=0, type=WHOLE, help="Seed of the drawn settings.  [default: 0]"),
    _option("--timeout", metavar="HOURS", type=FRACTION, help="Limit of the whole sweep.  [default: none]"),
    _option("--objective", default="swd", metavar="METRIC", help="The metric to compare trials by.  [default: swd]"),
    _option(
        "--direction",
        metavar="|".join(DIRECTIONS),
        help="Whether a lower or a higher value is better.  [default: the metric's own]",
    ),
    _option(
        "--stop-early",
        default="none",
        metavar="|".join(POLICIES),
        help="Policy that stops bad trials early.  [default: none]",
    ),
    _option(
        "--stop-interval",
        default=1,
        metavar="N",
        type=WHOLE,
        help="Apply the policy at every N-th measurement.  [default: 1]",
    ),
    _option(
        "--stop-delay",
        default=0,
        metavar="N",
        type=WHOLE,
        help="Apply the policy from the N-th measurement on.  [default: 0]",
    ),
    _option(
        "--slack", metavar="RATIO", type=FRACTION, help="bandit: allowed distance from the best trial, as 0.2 for 20 %."
    ),
    _option("--slack-amount", metavar="DIFFERENCE", type=FRACTION, help="bandit: the same, as a difference."),
    _option(
        "--truncate", metavar="PERCENT", type=WHOLE, help="truncation: the share of trials to stop each time, 1 to 99."
    ),
    _option(
        "--max-failed-fraction",
        default=0.5,
        metavar="FRACTION",
        type=FRACTION,
        help="Give up when more than this fraction of the trials fails.  [default: 0.5]",
    ),
)


# --- msggan-aml sweep -------------------------------------------------------------------------------------------------


@click.group(
    name="sweep",
    cls=CommandsOrData,
    short_help="Search for good settings with many short trials.",
    invoke_without_command=True,
)
@data_argument
@sweep_options
@target_option("Where to train.  [default: auto]")
@option(
    "--name",
    section=COMMON,
    help="Name of the sweep; a sweep of this name is resumed.  [default: the data's name with -sweep]",
)
@settings_options(*JOB_SETTINGS)
@debug_option
@option("--dry-run", section=COMMON, is_flag=True, help="Print what would be started, and exit.")
@option("--detach", section=COMMON, is_flag=True, help="On Azure: return when the job is submitted.")
@option("--yes", section=AZURE, is_flag=True, help="Do not ask for confirmation of costs.")
@train_options
@hardware_options
@output_option
@click.pass_context
def sweep(context: click.Context, /, *, problems: list[str], **given: Any) -> int:
    """Search for good settings: train many short trials on the images at PATH and report the best.

    --over names an option to search and may be repeated; every other training option is the same for all trials. A
    sweep that was interrupted resumes with the same command.
    """
    return 0 if context.invoked_subcommand is not None else run_sweep(problems=problems, **given)


def run_sweep(
    *,
    data: str | None,
    over: tuple[str, ...],
    sampling: str,
    objective: str,
    direction: str | None,
    stop_early: str,
    target: str,
    name: str | None,
    flags: Flags,
    dry_run: bool,
    detach: bool,
    yes: bool,
    device: str,
    workers: int,
    output: str,
    problems: list[str],
    trials: int | None,
    concurrent: int,
    sampling_seed: int,
    timeout: float | None,
    stop_interval: int,
    stop_delay: int,
    slack: float | None,
    slack_amount: float | None,
    truncate: int | None,
    max_failed_fraction: float,
    **texts: Any,
) -> int:
    """The command itself. texts: the values of TrainConfig's options, as typed."""
    problems = [*source_problems(data), *problems, *problems_here(flags)]
    config, space = config_and_space(texts, over, problems)
    settings = settings_here(flags)
    choice = choose(target, settings.workspace)
    stopping = EarlyStopping(
        policy=stop_early,
        interval=stop_interval,
        delay=stop_delay,
        slack_factor=slack,
        slack_amount=slack_amount,
        percentage=truncate,
    )
    try:
        spec = SweepSpec(
            config=config,
            data=str(data or "."),
            name=name or sweep_name(data or "x"),
            space=space,
            objective=objective_of(objective, direction),
            sampling=sampling,
            sampling_seed=sampling_seed,
            trials=default_trials(space, sampling) if trials is None else trials,
            concurrent=concurrent,
            timeout_hours=timeout,
            early_stopping=stopping,
            max_failed_fraction=max_failed_fraction,
            hardware=Hardware(device, workers),
        )
    except UsageError as error:
        problems += error.problems
    refuse(problems)

    with Bars() as bars:
        target_here = build_target(choice.target, settings, Reporter(tell, bars.show))
        refuse(target_here.problems(data, None))
        serving = target_here.sweeps
        tell(f"Target: {choice.target} ({choice.reason}).")
        if dry_run:
            show_plan(serving.plan_sweep(spec), output)
            return 0
        if question := serving.sweep_question(spec):
            tell(question)
            agree("Go on?", yes=yes)
        status = serving.submit_sweep(spec, detach=detach)
    show_sweep(status, output)
    return status.exit_code


def config_and_space(
    texts: Mapping[str, Any], over: tuple[str, ...], problems: list[str]
) -> tuple[TrainConfig, SearchSpace]:
    """The shared configuration and the search space; their problems are added to `problems`."""
    config, space = TrainConfig(), SearchSpace(())
    try:
        config = parse_with([], texts)
    except UsageError as error:
        problems += error.problems
    try:
        space = read_space(over, config)
    except UsageError as error:
        problems += error.problems
    return config, space


@sweep.command(name="best", short_help="Show the best settings that a sweep found.")
@click.argument("name", metavar="NAME")
@option(
    "--download",
    "folder",
    metavar="FOLDER",
    help="Copy the best trial's run folder to a new or an empty folder.",
)
@option("--force", is_flag=True, help="Overwrite files of an earlier download that have changed.")
@place_of_runs
@output_option
def best(
    *, name: str, folder: str | None, force: bool, target: str, flags: Flags, output: str, problems: list[str]
) -> int:
    """Show the best settings that a sweep found, its samples, and the command that trains it in full."""
    refuse([*problems, *problems_here(flags)])
    with Bars() as bars:
        serving, status = find_sweep(name, target, settings_here(flags), Reporter(tell, bars.show))
        trial = best_trial(status)
        status = serving.report(status)
        if folder is not None:
            copied = serving.download_trial(trial, Path(folder), force=force, tell=partial(bars.show, "Copying"))
            tell(f"{copied.path}: {copied.files} files, {copied.bytes / 2**20:.1f} MiB.")
    show_sweep(status, output)
    return 0


def find_sweep(name: str, target: str, settings: Settings, reporter: Reporter) -> tuple[SweepTarget, SweepStatus]:
    """The target that has a sweep, and its status. Raises `UsageError` if there is none."""
    workspace = settings.workspace if target != "local" else None
    where = settings.runs_dir + (f" or workspace {workspace.workspace_name}" if workspace else "")
    missing = UsageError([f"No sweep {name!r} in {where}."], "List runs and sweeps: msggan-aml list")
    if named_problems(name, target, settings):
        raise missing
    place, name = target_of(name, target, settings, reporter)
    if not place.sweeps.is_sweep(name):
        raise missing
    return place.sweeps, place.sweeps.sweep_status(name)


def best_trial(status: SweepStatus) -> Trial:
    if status.best is None:
        metric = status.objective.metric
        raise UsageError(
            [f"{status.name}: no trial has measured {metric} yet."], f"See its status: msggan-aml status {status.name}"
        )
    return status.best


# --- submit --from-trial ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TakenOver:
    """What `submit --from-trial` takes from a sweep: the trial's configuration, its data and a default name."""

    serving: SweepTarget
    trial: Trial
    config: TrainConfig
    data: str
    name: str


def take_over(reference: str, config: TrainConfig, settings: Settings, reporter: Reporter) -> TakenOver:
    """The trial that SWEEP or SWEEP/NUMBER names, its configuration merged into `config`.

    The sweep is looked for on this machine and then on Azure, wherever the run is to train. The length of a trial and
    its intervals are not taken over. Raises `UsageError` naming each option that conflicts.
    """
    named = trial_named(reference)
    if "/" in reference and named is None:
        raise UsageError([f"--from-trial {reference}: must be SWEEP or SWEEP/NUMBER."])
    serving, status = find_sweep(named[0] if named else reference, "auto", settings, reporter)
    trial = status.trial(named[1]) if named else best_trial(status)
    lasting = {spec.name for spec in fields(TrainConfig) if not spec.metadata["may_change"]}
    found = {field: value for field, value in explicit_values(status.config_of(trial)).items() if field in lasting}
    different = [
        f"--from-trial {reference}: its {field} is {found[field]}, not {value}. Remove {flag(field)}."
        for field, value in explicit_values(config).items()
        if field in found and found[field] != value
    ]
    refuse(different or problems_of({**found, **explicit_values(config)}))
    return TakenOver(
        serving=serving,
        trial=trial,
        config=replace(config, **found),
        data=status.data,
        name=name_of_trial(status.name, trial.number) if named else f"{status.name}-best",
    )


def bring_checkpoint(taken: TakenOver, folder: Path) -> None:
    """Copies the trial's run folder to a new run's. Raises `UsageError` if it is trained as far as asked."""
    trained_kimg = (taken.trial.images_seen or 0) / 1000
    if taken.config.kimg is not None and taken.config.kimg <= trained_kimg:
        raise UsageError(
            [f"--kimg {taken.config.kimg:g}: trial {taken.trial.number} has trained {trained_kimg:g} kimg already."],
            f"Use a larger --kimg, as {10 * trained_kimg:g}, or --from-scratch.",
        )
    was_copy = is_copy(folder)
    if was_copy:
        forget_download(folder)
    taken.serving.download_trial(taken.trial, folder, force=was_copy, tell=lambda done, total: None)
    forget_download(folder)


# --- What is shown ----------------------------------------------------------------------------------------------------


def show_sweep(status: SweepStatus, output: str) -> None:
    if output == "json":
        print_json(status.as_json())
        return
    echo(sweep_lines(status))
    show_next(status.next)
