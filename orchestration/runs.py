"""The runs on this machine: lookup by name or path, status, and the commands to run next."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from msggan.commands.options import argv_of, nearest, to_argv
from msggan.config import TrainConfig, explicit_values
from msggan.errors import RunFolderError, UsageError
from msggan.runs.folder import UNREADABLE_HINT, RunFolder, state_of
from msggan.tracking.metrics_log import newest_values, read_metrics
from orchestration.spec import SWEEP_FILE, TRIALS_FOLDER, RunSpec, sweep_hint, trial_path
from orchestration.status import ACTIVE_STATES, RunStatus

MAX_NAMES_LISTED = 8
DEFAULT_RUNS_DIR = "runs"


def find_run(reference: str, runs_dir: str) -> tuple[str, str]:
    """The name and the runs folder of a run, a sweep or a trial. Raises `UsageError` if it does not exist.

    reference: a NAME in `runs_dir`, else the path of its folder, else a trial as `find_trial` takes it.
    """
    trial = find_trial(reference, runs_dir)
    of_trial = [str(trial_path(*trial))] if trial else []
    for path in (os.path.join(runs_dir, reference), reference, *of_trial):
        if reference and os.path.exists(path):
            folder, name = os.path.split(os.path.abspath(path))
            return trial_at(Path(os.path.relpath(path))) or (name, os.path.relpath(folder))
    if trial:
        sweep, number = trial
        show = next_command(str(sweep.parent), "status", sweep.name)
        raise UsageError([f"{sweep.name}: trial {number} has not started. Show its trials: {show}"])
    names = names_in(runs_dir, "config.json", SWEEP_FILE)
    raise UsageError([f"No run {reference!r} in {runs_dir}, and no such folder. {_names_hint(reference, names)}"])


def find_trial(reference: str, runs_dir: str) -> tuple[Path, int] | None:
    """The folder of the sweep and the number of the trial, None if there is no such sweep.

    reference: SWEEP/NUMBER or SWEEP/trials/NUMBER. SWEEP: its name in `runs_dir` or the path of its folder.
    """
    path = Path(reference)
    sweep = path.parent.parent if path.parent.name == TRIALS_FOLDER else path.parent
    if re.fullmatch(r"[0-9]{1,4}", path.name) and sweep.name:
        for folder in (Path(runs_dir) / sweep, sweep):
            if (folder / SWEEP_FILE).is_file():
                return folder, int(path.name)
    return None


def run_names(runs_dir: str) -> list[str]:
    """The names of the runs in a folder, sorted."""
    return names_in(runs_dir, "config.json")


def names_in(runs_dir: str, *files: str) -> list[str]:
    """The names of the folders in `runs_dir` that contain one of these files, sorted."""
    try:
        names = os.listdir(runs_dir)
    except OSError:
        return []
    return sorted(name for name in names if any(os.path.isfile(os.path.join(runs_dir, name, file)) for file in files))


def folder_of(name: str, runs_dir: str | Path) -> RunFolder:
    """The run folder of a run NAME or of a trial SWEEP/NUMBER, whether or not it exists."""
    trial = find_trial(name, str(runs_dir))
    return RunFolder(trial_path(*trial) if trial else Path(runs_dir) / name)


def read_status(name: str, runs_dir: str) -> RunStatus:
    """The status of a run NAME or of a trial SWEEP/NUMBER. Raises `RunFolderError` if there is none.

    If its configuration cannot be read, the state is the recorded one, and `reason` describes the problem.
    """
    folder = folder_of(name, runs_dir)
    if (folder.path / SWEEP_FILE).is_file():
        raise RunFolderError(f"{folder}: is a sweep, not a run.", sweep_hint(name))
    trial, state = trial_at(folder.path), state_of(folder)
    config, problem = None, None
    try:
        config = folder.load_config()
    except RunFolderError as error:
        problem = error
    if state is None and folder.state.exists():
        problem = problem or RunFolderError(f"{folder.state}: is not a record that msggan wrote.", UNREADABLE_HINT)
    if state is None or (config is None and problem is None):
        raise problem or _not_started(folder, trial)
    reports = read_metrics(folder.metrics)
    images_seen = max(state.images_seen, int(reports[-1]["images"]) if reports else 0)
    if trial:
        name, runs_dir = trial
        next_lines = next_of_trial(name, runs_dir, state.state)
    elif problem and state.state != "running":
        next_lines = []  # nothing can resume it
    else:
        next_lines = next_commands(RunSpec(TrainConfig(), state.data, name), runs_dir, state.state, images_seen)
    return RunStatus(
        name=name,
        target="local",
        state=state.state,
        run_dir=str(folder),
        images_seen=images_seen,
        metrics=newest_values(reports),
        next=next_lines,
        images_total=round(config.kimg * 1000) if config else None,
        created=state.created,
        ended=state.ended,
        reason="\n".join(filter(None, [state.reason, str(problem or "")])),
    )


def runs_dir_args(runs_dir: str) -> list[str]:
    """The --runs-dir option of a command, [] for the default."""
    return ["--runs-dir", runs_dir] if runs_dir != DEFAULT_RUNS_DIR else []


def next_command(runs_dir: str, *args: str) -> str:
    """A command of `msggan-aml` to run next."""
    return shlex.join(["msggan-aml", *args, *runs_dir_args(runs_dir)])


def next_commands(spec: RunSpec, runs_dir: str, state: str, images_seen: int) -> list[str]:
    """The commands to run next: follow or cancel a running run, sample a completed one, else resume it."""
    if state == "running":
        return [next_command(runs_dir, "logs", spec.name, "--follow"), next_command(runs_dir, "cancel", spec.name)]
    # A workspace may be configured by then: a local run must not be resumed as a job on Azure.
    submit = ["submit", "--data", str(spec.data), "--name", spec.name, "--target", "local", *runs_dir_args(runs_dir)]
    kimg = _kimg_to_continue(spec.config.kimg or 0, state, images_seen)
    options = [*to_argv(TrainConfig(**{**explicit_values(spec.config), "kimg": kimg})), *argv_of(spec.hardware)]
    sample = [next_command(runs_dir, "sample", spec.name)] if state == "completed" else []
    return [*sample, shlex.join(["msggan-aml", *submit, *options])]


def _kimg_to_continue(kimg: float, state: str, images_seen: int) -> float | None:
    """The --kimg with which a run continues. None: the recorded one, which it has not reached."""
    if state == "completed":
        return 2 * kimg if 2000 * kimg > images_seen else 2 * images_seen / 1000
    return kimg if 1000 * kimg > images_seen else None


def next_of_trial(trial: str, runs_dir: str, state: str) -> list[str]:
    """The commands to run next for a trial SWEEP/NUMBER: follow it, use its result, or show why it ended."""
    if state in ACTIVE_STATES:
        commands = [["logs", trial, "--follow"], ["cancel", trial]]
    elif state == "completed":
        commands = [["sample", trial], ["submit", "--from-trial", trial]]
    else:
        commands = [["logs", trial, "--tail", "40"]]
    return [next_command(runs_dir, *command) for command in commands]


def trial_at(folder: Path) -> tuple[str, str] | None:
    """SWEEP/NUMBER and the runs folder if `folder` is the run folder of a trial, else None."""
    path = Path(os.path.abspath(folder))
    sweep = path.parent.parent
    if path.parent.name != TRIALS_FOLDER or not path.name.isdecimal() or not (sweep / SWEEP_FILE).is_file():
        return None
    runs_dir = sweep.parent if folder.is_absolute() else os.path.relpath(sweep.parent)
    return f"{sweep.name}/{int(path.name)}", str(runs_dir)


def _not_started(folder: RunFolder, trial: tuple[str, str] | None) -> RunFolderError:
    if trial is None:
        return RunFolderError(f"{folder}: contains no run.", "List the runs: msggan-aml list")
    name, _ = trial
    sweep = name.partition("/")[0]
    return RunFolderError(
        f"{name}: has not started to train.",
        f"Show its log: msggan-aml logs {name}. Show its sweep: msggan-aml status {sweep}",
    )


def _names_hint(reference: str, names: list[str]) -> str:
    if near := nearest(reference, names):
        return f"Did you mean {' or '.join(near)}?"
    if not names:
        return "There are no runs yet. Start one: msggan-aml submit --data FOLDER"
    more = f" and {len(names) - MAX_NAMES_LISTED} more" if len(names) > MAX_NAMES_LISTED else ""
    return f"Available: {', '.join(names[:MAX_NAMES_LISTED])}{more}."
