"""The commands `msggan-aml sweep` and `sweep best`, and what `submit --from-trial` takes from a sweep."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from msggan.commands.options import (
    AZURE,
    COMMON,
    collecting,
    data_argument,
    option,
    options_of,
    output_option,
    pop_fields,
    refuse,
    train_options,
)
from msggan.config import TrainConfig, explicit_values, flag, parse, problems_of
from msggan.errors import UsageError
from orchestration.commands.groups import CommandsOrData
from orchestration.commands.terminal import (
    answer,
    debug_option,
    ignored_here,
    info,
    location_options,
    read_settings_here,
    reporter,
    settings_options,
    settings_or_refuse,
    show,
    show_plan,
    target_option,
)
from orchestration.copies import forget_download, is_copy
from orchestration.settings import JOB_SETTINGS, Flags, Settings
from orchestration.spec import name_of_trial, trial_named
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.status import SweepStatus, sweep_lines
from orchestration.sweeps.trials import Trial
from orchestration.targets import SweepTarget, build_sweep_spec, build_target, choose, target_of


@click.group(
    name="sweep",
    cls=CommandsOrData,
    invoke_without_command=True,
)
@data_argument
@option(
    "--over",
    section=COMMON,
    multiple=True,
    metavar="NAME[=VALUES]",
    help="An option to search: NAME (its default range), NAME=LOW..HIGH or NAME=a,b,c. May be repeated.",
)
@options_of(SweepSpec)
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
@output_option
@click.pass_context
def sweep(
    context: click.Context,
    /,
    *,
    data: str | None,
    over: tuple[str, ...],
    target: str,
    name: str | None,
    flags: Flags,
    dry_run: bool,
    detach: bool,
    yes: bool,
    output: str,
    problems: list[str],
    **values: Any,
) -> int:
    """Search for good settings: train many short trials on the images at PATH and report the best.

    --over names an option to search and may be repeated; every other training option is the same for all trials. A
    sweep that was interrupted resumes with the same command.
    """
    if context.invoked_subcommand is not None:
        return 0
    config = TrainConfig()
    with collecting(problems):
        settings = read_settings_here(flags)
    with collecting(problems):
        options = pop_fields(SweepSpec, values)
        config = parse(values)
    with collecting(problems):
        spec = build_sweep_spec(config, data=data or "", over=over, name=name, **options)
    refuse(problems)

    chosen, reason = choose(target, settings.workspace)
    serving = build_target(chosen, settings, reporter())
    refuse([*serving.problems(data, None), *ignored_here(chosen, flags)])
    info(f"Target: {chosen} ({reason}).")
    if dry_run:
        show_plan(output, serving.sweeps.priced_sweep(spec))
        return 0
    answer(serving.sweeps.sweep_question(spec), yes=yes)
    status = serving.sweeps.submit_sweep(spec, detach=detach)
    show(output, status.as_json(), sweep_lines(status), status.next)
    return status.exit_code


@sweep.command(name="best", short_help="Show the best settings that a sweep found.")
@click.argument("name", metavar="NAME")
@option(
    "--download",
    "folder",
    metavar="FOLDER",
    help="Copy the best trial's run folder to a new or an empty folder.",
)
@option("--force", is_flag=True, help="Overwrite files of an earlier download that have changed.")
@location_options
@output_option
def best(
    *, name: str, folder: str | None, force: bool, target: str, flags: Flags, output: str, problems: list[str]
) -> None:
    """Show the best settings that a sweep found, its samples, and the command that continues the best trial."""
    settings = settings_or_refuse(flags, problems)
    sweeps, status = find_sweep(name, target, settings)
    trial = best_trial(status)
    status = sweeps.report(status)
    if folder is not None:
        progress = partial(reporter().progress, "Copying")
        copied = sweeps.download_trial(trial, Path(folder), force=force, progress=progress)
        info(f"{copied.path}: {copied.files} files, {copied.bytes / 2**20:.1f} MiB.")
    show(output, status.as_json(), sweep_lines(status), status.next)


def find_sweep(name: str, target: str, settings: Settings) -> tuple[SweepTarget, SweepStatus]:
    """The target that has a sweep, and its status. Raises `UsageError` if there is none."""
    try:
        serving, sweep = target_of(name, target, settings, reporter())
        is_sweep = serving.sweeps.is_sweep(sweep)
    except UsageError:
        is_sweep = False
    if not is_sweep:
        workspace = settings.workspace if target != "local" else None
        searched = settings.runs_dir + (f" or workspace {workspace.workspace_name}" if workspace else "")
        raise UsageError([f"No sweep {name!r} in {searched}."], "List runs and sweeps: msggan-aml list")
    return serving.sweeps, serving.sweeps.sweep_status(sweep)


def best_trial(status: SweepStatus) -> Trial:
    if status.best is None:
        metric = status.objective.metric
        raise UsageError(
            [f"{status.name}: no trial has measured {metric} yet."], f"See its status: msggan-aml status {status.name}"
        )
    return status.best


# --- submit --from-trial ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceTrial:
    """The trial of `submit --from-trial`. config: its configuration, merged into the command's. name: by default."""

    sweeps: SweepTarget
    trial: Trial
    config: TrainConfig
    data: str
    name: str

    def copy_to(self, folder: Path) -> None:
        """Copies the trial's run folder to a new run's. Raises `UsageError` if it has already trained --kimg."""
        trained_kimg = (self.trial.images_seen or 0) / 1000
        if self.config.kimg is not None and self.config.kimg <= trained_kimg:
            raise UsageError(
                [f"--kimg {self.config.kimg:g}: trial {self.trial.number} has trained {trained_kimg:g} kimg already."],
                f"Use a larger --kimg, as {10 * trained_kimg:g}, or --from-scratch.",
            )
        was_copy = is_copy(folder)
        if was_copy:
            forget_download(folder)
        self.sweeps.download_trial(self.trial, folder, force=was_copy, progress=lambda done, total: None)
        forget_download(folder)


def find_source_trial(reference: str, config: TrainConfig, settings: Settings) -> SourceTrial:
    """The trial that SWEEP or SWEEP/NUMBER names.

    The sweep is looked for on this machine and then on Azure, wherever the run is to train. The length of a trial and
    its intervals are not merged. Raises `UsageError` naming each option that conflicts.
    """
    sweep_and_number = trial_named(reference)
    if "/" in reference and sweep_and_number is None:
        raise UsageError([f"--from-trial {reference}: must be SWEEP or SWEEP/NUMBER."])
    sweeps, status = find_sweep(sweep_and_number[0] if sweep_and_number else reference, "auto", settings)
    trial = status.trial(sweep_and_number[1]) if sweep_and_number else best_trial(status)
    fixed = {spec.name for spec in fields(TrainConfig) if not spec.metadata["may_change"]}
    merged = {field: value for field, value in explicit_values(status.config_of(trial)).items() if field in fixed}
    different = [
        f"--from-trial {reference}: its {field} is {merged[field]}, not {value}. Remove {flag(field)}."
        for field, value in explicit_values(config).items()
        if field in merged and merged[field] != value
    ]
    refuse(different or problems_of({**merged, **explicit_values(config)}))
    return SourceTrial(
        sweeps=sweeps,
        trial=trial,
        config=replace(config, **merged),
        data=status.data,
        name=name_of_trial(status.name, trial.number) if sweep_and_number else f"{status.name}-best",
    )
