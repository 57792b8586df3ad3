"""How is a sweep told of in words: a line a trial, a table of them, and what to type next?"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.reporter import columns
from orchestration.runs import runs_dir_args
from orchestration.spec import GOES_ON
from orchestration.sweeps.space import written
from orchestration.sweeps.spec import ENDED, Objective, SweepStatus, Trial, best_of

LONGEST_REASON = 80


def trial_line(trial: Trial, trials: Sequence[Trial], planned: int, objective: Objective) -> str:
    """The line for a trial that has ended. trials: all of the sweep, as they stand. planned: how many there will be."""
    best, ended = best_of(trials, objective), sum(other.state in ENDED for other in trials)
    parts = [f"Trial {trial.number} ({ended} of {planned} ended): {settings_in_words(trial.settings)}: {trial.state}"]
    if trial.objective is not None:
        parts.append(f"{objective.metric} {number_in_words(trial.objective)}")
    if trial.reason:
        parts.append(shortened(trial.reason))
    if best is not None:
        parts.append(f"best so far {number_in_words(best.objective)} (trial {best.number})")
    return ", ".join(parts)


def settings_in_words(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={short(value)}" for name, value in settings.items())


def short(value: Any) -> str:
    """A value of a setting for people: four digits tell two trials apart."""
    return f"{value:.4g}" if isinstance(value, float) else written(value)


def number_in_words(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"


def sweep_lines(status: SweepStatus) -> list[str]:
    """A sweep in full: how it stands, its trials from the best to the worst, and the best one's pictures."""
    ended = sum(trial.state in ENDED for trial in status.trials)
    planned = planned_of(status)
    lines = [f"{status.name}: {status.state}, {ended} of {planned} trials have ended. {status.reason}".rstrip()]
    lines += trial_table(status)
    if status.best is not None:
        best = status.best
        lines += [f"Warning: {warning}" for warning in status.warnings]
        lines.append(
            f"{'No clear best. First is' if status.warnings else 'Best:'} trial {best.number}, "
            f"{settings_in_words(best.settings)}, {status.objective.metric} {number_in_words(best.objective)}. "
            f"Samples: {best.run_dir}/samples"
        )
    if status.report:
        lines.append(f"Report: {status.report}")
    return lines


def trial_table(status: SweepStatus) -> list[str]:
    """A line a trial, in columns, under their headings."""
    names = list(dict.fromkeys(name for trial in status.trials for name in trial.settings))
    headings = ("TRIAL", *(name.upper() for name in names), status.objective.metric.upper(), "KIMG", "ENDED", "WHY")
    return columns([headings, *(_row(trial, names) for trial in status.trials)]) if status.trials else []


def _row(trial: Trial, names: list[str]) -> tuple[str, ...]:
    settings = (short(trial.settings[name]) if name in trial.settings else "-" for name in names)
    kimg = "-" if trial.images_seen is None else f"{trial.images_seen / 1000:g}"
    objective = number_in_words(trial.objective)
    return str(trial.number), *settings, objective, kimg, trial.state, shortened(trial.reason)


def sweep_table(sweeps: Sequence[SweepStatus]) -> list[str]:
    """A line a sweep, in columns, under their headings."""
    return columns([("SWEEP", "STATE", "TRIALS", "BEST", "BEGAN", "FOLDER"), *map(sweep_row, sweeps)])


def sweep_row(status: SweepStatus) -> tuple[str, ...]:
    """A sweep in one line of a list."""
    best = f"{status.objective.metric} {number_in_words(status.best.objective)}" if status.best else "-"
    planned = planned_of(status)
    began = status.created.replace("T", " ").replace("Z", " UTC") if status.created else "-"
    return status.name, status.state, f"{len(status.trials)}/{planned}", best, began, status.run_dir


def next_of_sweep(status: SweepStatus, again: Sequence[str], runs_dir: str) -> list[str]:
    """What to type next: to train the best trial in full; to go on with a sweep that was stopped."""
    place = runs_dir_args(runs_dir)
    if status.state in GOES_ON:
        return [shlex.join(["msggan-aml", verb, status.name, *place]) for verb in ("status", "cancel")]
    lines = []
    if has_more_to_do(status):
        lines.append(shlex.join(["msggan-aml", "sweep", *again, *place]))
    if status.best is not None:
        lines.append(shlex.join(["msggan-aml", "submit", "--from-trial", status.name, *place]))
    return lines


def has_more_to_do(status: SweepStatus) -> bool:
    """Whether the same command would go on."""
    if status.state == "failed":
        return status.target == "local"  # here failed trials are tried again
    return sum(trial.state in ENDED for trial in status.trials) < planned_of(status)


def planned_of(status: SweepStatus) -> int:
    return len(status.trials) if status.planned is None else status.planned
