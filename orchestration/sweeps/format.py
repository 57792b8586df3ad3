"""A sweep as text: one line per trial, tables, and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.runs import runs_dir_args
from orchestration.status import ACTIVE_STATES, columns, format_time
from orchestration.sweeps.space import written
from orchestration.sweeps.status import Objective, SweepStatus, Trial, best_of, count_ended

MAX_REASON = 80


def trial_line(trial: Trial, trials: Sequence[Trial], planned: int, objective: Objective) -> str:
    """The line for a trial that has ended. trials: all trials of the sweep. planned: the number of trials."""
    best, ended = best_of(trials, objective), count_ended(trials)
    parts = [f"Trial {trial.number} ({ended} of {planned} finished): {format_settings(trial.settings)}: {trial.state}"]
    if trial.objective is not None:
        parts.append(f"{objective.metric} {short(trial.objective)}")
    if trial.reason:
        parts.append(shortened(trial.reason))
    if best is not None:
        parts.append(f"best so far {short(best.objective)} (trial {best.number})")
    return ", ".join(parts)


def format_settings(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={short(value)}" for name, value in settings.items())


def short(value: Any) -> str:
    """A value in four digits, which tell two trials apart; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else written(value)


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 1] + "…"


def sweep_lines(status: SweepStatus) -> list[str]:
    """A sweep in full: its state, its trials from the best to the worst, and the samples of the best."""
    progress = f"{status.ended_trials} of {status.planned_trials} trials finished."
    lines = [f"{status.name}: {status.state}, {progress} {status.reason}".rstrip(), *trial_table(status)]
    if status.best is not None:
        best = status.best
        lines += [f"Warning: {warning}" for warning in status.warnings]
        lines.append(
            f"{'No clear best. First:' if status.warnings else 'Best:'} trial {best.number}, "
            f"{format_settings(best.settings)}, {status.objective.metric} {short(best.objective)}. "
            f"Samples: {best.run_dir}/samples"
        )
    if status.report:
        lines.append(f"Report: {status.report}")
    return lines


def trial_table(status: SweepStatus) -> list[str]:
    """One line per trial, below a line of headings."""
    names = list(dict.fromkeys(name for trial in status.trials for name in trial.settings))
    headings = ("TRIAL", *(name.upper() for name in names), status.objective.metric.upper(), "KIMG", "STATE", "REASON")
    return columns([headings, *(_row(trial, names) for trial in status.trials)]) if status.trials else []


def _row(trial: Trial, names: list[str]) -> tuple[str, ...]:
    settings = (short(trial.settings.get(name)) for name in names)
    kimg = "-" if trial.images_seen is None else f"{trial.images_seen / 1000:g}"
    return str(trial.number), *settings, short(trial.objective), kimg, trial.state, shortened(trial.reason)


def sweep_table(sweeps: Sequence[SweepStatus]) -> list[str]:
    """One line per sweep, below a line of headings."""
    return columns([("SWEEP", "STATE", "TRIALS", "BEST", "STARTED", "FOLDER"), *map(sweep_row, sweeps)])


def sweep_row(status: SweepStatus) -> tuple[str, ...]:
    best = f"{status.objective.metric} {short(status.best.objective)}" if status.best else "-"
    trials = f"{len(status.trials)}/{status.planned_trials}"
    started = format_time(status.created)
    return status.name, status.state, trials, best, started, status.run_dir


def next_of_sweep(status: SweepStatus, args: Sequence[str], runs_dir: str) -> list[str]:
    """The next commands: resume a sweep that was stopped, train the best trial in full. args: those of `sweep`."""
    place = runs_dir_args(runs_dir)
    if status.state in ACTIVE_STATES:
        return [shlex.join(["msggan-aml", verb, status.name, *place]) for verb in ("status", "cancel")]
    lines = []
    if can_resume(status):
        lines.append(shlex.join(["msggan-aml", "sweep", *args, *place]))
    if status.best is not None:
        lines.append(shlex.join(["msggan-aml", "submit", "--from-trial", status.name, *place]))
    return lines


def can_resume(status: SweepStatus) -> bool:
    """Whether the same command would train more."""
    if status.state == "failed":
        return status.target == "local"  # failed trials are retried on this machine only
    return status.ended_trials < status.planned_trials
