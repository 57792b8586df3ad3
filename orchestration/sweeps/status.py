"""The status of a sweep: its trials, the best one and whether it is better by more than chance; and this as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from msggan.commands.program import EXIT_CODES
from msggan.config import TrainConfig
from msggan.errors import UsageError
from orchestration.runs import next_command
from orchestration.status import ACTIVE_STATES, columns, format_time
from orchestration.sweeps.space import format_value
from orchestration.sweeps.trials import Objective, Trial, best_of, count_ended, ranked_trials


@dataclass(frozen=True)
class SweepStatus:
    """A sweep on any target, with its trials from the best to the worst.

    data: the value of --data. config: the training options that are set for all trials. planned: the number of trials.
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
    config: dict[str, Any] = field(default_factory=dict)
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
        """Reasons why the best trial may be no better than the others, one sentence each."""
        return warnings_about(self.trials, self.objective)

    @property
    def planned_trials(self) -> int:
        return len(self.trials) if self.planned is None else self.planned

    @property
    def exit_code(self) -> int:
        """The exit code of `sweep`."""
        return EXIT_CODES.get(self.state, 0)

    def trial(self, number: int) -> Trial:
        """The trial of this number. Raises `UsageError` if there is none."""
        numbers = [trial.number for trial in self.trials]
        if number in numbers:
            return self.trials[numbers.index(number)]
        available = f"its trials are {min(numbers)} to {max(numbers)}" if numbers else "none has started"
        raise UsageError([f"{self.name}: has no trial {number}; {available}."])

    def config_of(self, trial: Trial) -> TrainConfig:
        """The configuration of a trial."""
        return TrainConfig(**{**self.config, **trial.settings})

    def as_json(self) -> dict[str, Any]:
        best = None if self.best is None else asdict(self.best)
        return {**asdict(self), "best": best, "warnings": self.warnings}


# --- Whether the best trial is better than the others -----------------------------------------------------------------

# docs/sweeps.md has the measurements behind both.
MIN_KIMG = 5  # in shorter trainings swd ranked the settings the other way round
SEED_SHARE = 0.1  # the share of swd by which another seed changes it


def warnings_about(trials: Sequence[Trial], objective: Objective) -> list[str]:
    """Reasons why the best trial may be no better than the others, one sentence each."""
    ranked = ranked_trials(trials, objective)
    if not ranked:
        return []
    is_distance = objective.metric.startswith("swd") and objective.direction == "minimize"
    warnings = _training_warnings(ranked[0], objective.metric) if is_distance else []
    best, worst = ranked[0].objective or 0.0, ranked[-1].objective or 0.0
    if "seed" in ranked[0].settings:
        warnings += _seed_warnings(ranked, objective.metric)
    elif is_distance and len(ranked) > 1 and best > (1 - SEED_SHARE) * worst:
        warnings.append(
            f"All trials lie between {objective.metric} {best:.4g} and {worst:.4g}. Another seed alone can change it "
            "as much: search the seed too, with --over seed=0,1."
        )
    return warnings


def _training_warnings(best: Trial, metric: str) -> list[str]:
    """The best trial was short, or its distance to the images has not fallen."""
    warnings = []
    kimg, values = (best.images_seen or 0) / 1000, best.values
    if kimg < MIN_KIMG:
        warnings.append(
            f"Trial {best.number} has trained only {kimg:g} kimg. Below {MIN_KIMG} kimg {metric} often ranks "
            "settings in the wrong order: use a larger --kimg."
        )
    if len(values) == 1:
        warnings.append(
            f"Trial {best.number} has measured {metric} only once, which does not show whether training lowers it: use "
            "a smaller --metric-kimg."
        )
    elif values and min(values) > (1 - SEED_SHARE) * values[0]:
        warnings.append(
            f"Training has not clearly lowered {metric} of trial {best.number}: the first measurement was "
            f"{values[0]:.4g}, the best {min(values):.4g}."
        )
    return warnings


def _seed_warnings(ranked: Sequence[Trial], metric: str) -> list[str]:
    """Other settings are closer to the best trial than another seed moves either."""
    best, by_settings = ranked[0], dict[str, list[Trial]]()
    for trial in ranked:
        settings = {name: value for name, value in trial.settings.items() if name != "seed"}
        by_settings.setdefault(repr(settings), []).append(trial)
    if len(by_settings) == 1:
        return []
    first, second, *_ = by_settings.values()
    spread = max(abs((same[-1].objective or 0.0) - (same[0].objective or 0.0)) for same in (first, second))
    behind = abs((second[0].objective or 0.0) - (best.objective or 0.0))
    if behind > spread or not spread:
        return []
    return [
        f"Trial {second[0].number} has other settings and is only {behind:.4g} behind trial {best.number} in "
        f"{metric}, while another seed alone changes it by {spread:.4g}."
    ]


# --- As text ----------------------------------------------------------------------------------------------------------

MAX_REASON = 80


def sweep_lines(status: SweepStatus) -> list[str]:
    """The state of a sweep, its trials from the best to the worst, and the samples of the best."""
    progress = f"{count_ended(status.trials)} of {status.planned_trials} trials finished."
    lines = [f"{status.name}: {status.state}, {progress} {status.reason}".rstrip(), *_trial_table(status)]
    if best := status.best:
        lines += [f"Warning: {warning}" for warning in status.warnings]
        lines.append(
            f"{'No clear best. First:' if status.warnings else 'Best:'} trial {best.number}, "
            f"{_format_settings(best.settings)}, {status.objective.metric} {short(best.objective)}. "
            f"Samples: {best.run_dir}/samples"
        )
    return [*lines, f"Report: {status.report}"] if status.report else lines


def _trial_table(status: SweepStatus) -> list[str]:
    if not status.trials:
        return []
    names = list(dict.fromkeys(name for trial in status.trials for name in trial.settings))
    headings = ["TRIAL", *(name.upper() for name in names), status.objective.metric.upper(), "KIMG", "STATE", "REASON"]
    rows = [
        [
            str(trial.number),
            *(short(trial.settings.get(name)) for name in names),
            short(trial.objective),
            "-" if trial.images_seen is None else f"{trial.images_seen / 1000:g}",
            trial.state,
            _shortened(trial.reason),
        ]
        for trial in status.trials
    ]
    return columns([headings, *rows])


def sweep_table(sweeps: Sequence[SweepStatus]) -> list[str]:
    """One line per sweep, below a line of headings."""
    rows = [
        (
            status.name,
            status.state,
            f"{len(status.trials)}/{status.planned_trials}",
            f"{status.objective.metric} {short(status.best.objective)}" if status.best else "-",
            format_time(status.created),
            status.run_dir,
        )
        for status in sweeps
    ]
    return columns([("SWEEP", "STATE", "TRIALS", "BEST", "STARTED", "FOLDER"), *rows])


def trial_line(trial: Trial, trials: Sequence[Trial], planned: int, objective: Objective) -> str:
    """The line for a trial that has ended. trials: all trials of the sweep. planned: the number of trials."""
    best, ended = best_of(trials, objective), count_ended(trials)
    parts = [f"Trial {trial.number} ({ended} of {planned} finished): {_format_settings(trial.settings)}: {trial.state}"]
    if trial.objective is not None:
        parts.append(f"{objective.metric} {short(trial.objective)}")
    if trial.reason:
        parts.append(_shortened(trial.reason))
    if best is not None:
        parts.append(f"best {short(best.objective)} (trial {best.number})")
    return ", ".join(parts)


def _format_settings(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={short(value)}" for name, value in settings.items())


def short(value: Any) -> str:
    """A value with four digits, enough to tell trials apart; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 1] + "…"


def next_of_sweep(status: SweepStatus, args: Sequence[str], runs_dir: str) -> list[str]:
    """The next commands: follow or cancel the sweep, else resume it and train its best trial further.

    args: the arguments of `msggan-aml sweep` that give this sweep.
    """
    if status.state in ACTIVE_STATES:
        commands = [["status", status.name], ["cancel", status.name]]
    else:
        can_resume = count_ended(status.trials) < status.planned_trials
        if status.state == "failed":  # failed trials are retried on this machine only
            can_resume = status.target == "local"
        commands = [["sweep", *args]] if can_resume else []
        commands += [["submit", "--from-trial", status.name]] if status.best is not None else []
    return [next_command(runs_dir, *command) for command in commands]
