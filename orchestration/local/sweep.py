"""How does a sweep run on this machine? Trials as processes, so many at once, by a list that survives a stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from msggan.commands.options import to_argv
from msggan.commands.program import EXIT_CODES
from msggan.commands.tracking_uri import NO_TRACKING, PARENT_VARIABLE, absolute_uri, without_password
from msggan.config import TrainConfig
from msggan.errors import MsgganError, RunFolderError, UsageError
from msggan.runs.folder import RunFolder
from msggan.runs.state import is_owned, terminate_holder
from msggan.tracking.mlflow_process import log_sweep_result
from orchestration.copies import Tell, copy_run
from orchestration.errors import JobFailedError
from orchestration.local.process import mlflow_of, variables_of
from orchestration.local.trial_process import AdoptedTrial, Outcome, TrialProcess
from orchestration.runs import DEFAULT_RUNS_DIR
from orchestration.spec import Download, RunSpec
from orchestration.sweeps.early_stopping import reason_to_stop
from orchestration.sweeps.folder import SweepFolder, SweepNote, TrialNote, now, sweep_names, this_machine
from orchestration.sweeps.report import write_report
from orchestration.sweeps.request import refuse_another_space
from orchestration.sweeps.space import read_space, written
from orchestration.sweeps.spec import CANCELLED, ENDED, SweepSpec, SweepStatus, Trial, sorted_trials, why_given_up
from orchestration.sweeps.words import next_of_sweep, trial_line

if TYPE_CHECKING:
    from orchestration.sweeps.sampling import Study

LOOK_SECONDS = 0.2
STOPS_WITHIN_SECONDS = 120
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def _silently(line: str) -> None:
    """Where nobody listens."""


@dataclass(frozen=True)
class LocalSweeps:
    """Sweeps on this machine. They live in `runs_dir`/NAME, among the runs; tell(line): for people."""

    runs_dir: str | Path = DEFAULT_RUNS_DIR
    python: str = sys.executable
    tracking_uri: str | None = None
    tell: Callable[[str], None] = _silently

    name = "local"

    def plan_sweep(self, spec: SweepSpec) -> dict[str, Any]:
        """What `submit_sweep` would start. Touches nothing."""
        settings = [] if spec.sampling == "bayesian" else _drawn(spec)
        shown = settings[0] if settings else dict.fromkeys(spec.space.names, "<chosen after the trials before>")
        variables = variables_of(self.mlflow, with_password=False)
        command = self.trial_command(spec, 0, settings[0] if settings else {})
        return {
            "target": self.name,
            "command": command + ([] if settings else [f"--over={text}" for text in spec.space.as_texts()]),
            "env": {**variables, **_thread_variables(threads_each(spec.concurrent))},
            "run_dir": str(self._folder(spec.name)),
            "trials": settings or [shown],
        }

    def sweep_question(self, spec: SweepSpec) -> str | None:
        """Nothing: this machine costs nothing."""
        return None

    def submit_sweep(self, spec: SweepSpec, *, detach: bool = False) -> SweepStatus:
        """Runs the trials that have not ended yet. Raises `UsageError` or `RunFolderError` if it cannot begin."""
        if detach:
            raise UsageError(["--detach: a sweep on this machine is followed."], "Stop it and go on whenever you like.")
        folder = self._folder(spec.name)
        if (folder.path / "config.json").exists():
            raise UsageError([f"--name {spec.name}: {folder} holds a run, not a sweep."], "Give another --name.")
        if there := folder.load():
            refuse_another_space(spec, there.planned, there.asked)
        with folder.owned():
            note = noted(spec, folder.load(), self.tell)
            sweep = _Sweep(self, spec, folder, note)
            with _stopping() as stop:
                sweep.run(stop)
        status = self.report(self.sweep_status(spec.name))
        self._log_to_mlflow(spec, status)
        return status

    def _log_to_mlflow(self, spec: SweepSpec, status: SweepStatus) -> None:
        """Logs the result of a sweep that has ended."""
        uri = self.mlflow
        if uri == NO_TRACKING or status.state not in EXIT_CODES:
            return
        folder, result = Path(status.run_dir), mlflow_result(spec, status)
        if problem := log_sweep_result(folder, absolute_uri(uri), result, python=self.python):
            self.tell(
                f"MLflow at {without_password(uri)} does not have the sweep's result yet ({problem}). "
                "The same command again logs it."
            )

    def sweeps(self) -> list[SweepStatus]:
        """Every sweep, the newest first; of one that cannot be read is told why."""
        found = []
        for name in sweep_names(str(self.runs_dir)):
            try:
                found.append(self.sweep_status(name))
            except RunFolderError as error:
                self.tell(f"{error.message} {error.hint}")
        return sorted(found, key=lambda sweep: sweep.created or "", reverse=True)

    def is_sweep(self, name: str) -> bool:
        return bool(name) and self._folder(name).note.is_file()

    def sweep_status(self, name: str) -> SweepStatus:
        """How a sweep and its trials stand. Raises `RunFolderError` where there is none."""
        folder = self._folder(name)
        note = folder.current()
        if note is None:
            raise RunFolderError(f"{folder}: holds no sweep.", "See what there is: msggan-aml list")
        status = SweepStatus(
            name=name,
            target=self.name,
            state=note.state,
            run_dir=str(folder),
            objective=note.objective,
            trials=sorted_trials(folder.read_trials(note), note.objective),
            reason=note.reason,
            report=str(folder.report) if folder.report.exists() else None,
            data=note.data,
            said=note.said,
            space=note.space,
            planned=note.planned,
            created=note.created,
            ended=note.ended,
        )
        return replace(status, next=next_of_sweep(status, note.again, str(self.runs_dir)))

    def report(self, status: SweepStatus) -> SweepStatus:
        """Writes the sweep's page; where that cannot be done it is said, and the sweep stands as it does."""
        folder = self._folder(status.name)
        facts = {"data": status.data, "each trial": " ".join(to_argv(TrainConfig(**status.said))) or "as by default"}
        grids = {trial.number: grid for trial in status.trials if (grid := folder.newest_grid(trial.number))}
        try:
            write_report(folder.report, status, space=read_space(status.space, TrainConfig()), facts=facts, grids=grids)
        except OSError as error:
            self.tell(f"{folder.report}: cannot be written ({error.strerror or error}).")
            return status
        self.tell(f"Report: {folder.report}")
        return replace(status, report=str(folder.report))

    def cancel_sweep(self, name: str) -> SweepStatus:
        """Stops a sweep politely and waits for its end. Raises `UsageError` if it is not running."""
        folder, status = self._folder(name), self.sweep_status(name)
        note = folder.load()
        if status.state != "running" or note is None:
            raise UsageError([f"{name}: is not running but {status.state}."])
        if note.machine != this_machine():
            raise RunFolderError(f"{folder}: runs on {note.machine}.", "Cancel it there.")
        if not terminate_holder(folder.lock, note.process) and folder.is_owned():
            raise RunFolderError(
                f"{folder}: is at work, but process {note.process} of this machine has nothing to do with it.",
                f"Cancel it on the machine where it runs, which calls itself {note.machine} too.",
            )
        give_up = time.monotonic() + STOPS_WITHIN_SECONDS
        while folder.is_owned():
            if time.monotonic() > give_up:
                raise JobFailedError(f"{folder}: process {note.process} was asked to stop and still works.", "Wait.")
            time.sleep(LOOK_SECONDS)
        return self.sweep_status(name)

    def download_trial(self, trial: Trial, to: Path, *, force: bool, tell: Tell) -> Download:
        """Copies a trial's run folder. Raises MsgganError where it cannot."""
        return copy_run(RunFolder(trial.run_dir), to, weights=False, force=force, tell=tell)

    def trial_environment(self, folder: SweepFolder, note: SweepNote) -> dict[str, str]:
        """The variables of a trial's process."""
        told = {**variables_of(self.mlflow, with_password=True), PARENT_VARIABLE: os.path.abspath(folder.path)}
        return {**os.environ, **_thread_variables(note.threads), **told}

    @property
    def mlflow(self) -> str:
        """The MLflow that the trials are told to, `none` for none."""
        return mlflow_of(self.runs_dir, self.tracking_uri)

    def _folder(self, name: str) -> SweepFolder:
        return SweepFolder(Path(self.runs_dir) / name)

    def trial_command(self, spec: SweepSpec, number: int, settings: dict[str, Any]) -> list[str]:
        """The command line that is a trial."""
        run = RunSpec(spec.with_settings(settings), spec.data, spec.name, spec.hardware)
        folder = self._folder(spec.name).trial(number)
        return run.command(data=str(spec.data), run_dir=str(folder), python=self.python)


class _Sweep:
    """A sweep at work: which trials run, and what is noted of those that have ended."""

    def __init__(self, here: LocalSweeps, spec: SweepSpec, folder: SweepFolder, note: SweepNote) -> None:
        self.here = here
        self.spec = spec
        self.folder = folder
        self.note = note
        self.running: dict[int, TrialProcess | AdoptedTrial] = {}
        self.judged: Counter[int] = Counter()  # measurements of each running trial that the policy has seen
        self.started = time.monotonic()
        self.study: Study

    def run(self, stop: _Stop) -> None:
        """Until every trial has ended, the time is up, too many have failed, or somebody stops it."""
        self.folder.save(self.note)
        from orchestration.sweeps.sampling import Study  # Optuna takes a second to load

        spec, state, reason = self.spec, "failed", "It ended in an error of its own."
        try:
            self.study = Study(
                self.folder.database,
                spec.name,
                spec.space,
                spec.objective,
                seed=spec.sampling_seed,
                trials=self._begun(),
            )
            self._adopt()
            state, reason = self._work(stop)
        except (OSError, MsgganError) as error:
            state, reason = "interrupted", str(error).split("\n")[0]
            raise
        finally:
            self._stop_all()
            self.note.state, self.note.reason, self.note.ended = state, reason, now()
            with suppress(OSError):  # on a full disk the note stays that of a sweep which died
                self.folder.save(self.note)

    def _begun(self) -> list[Trial]:
        """The trials up to the last that has begun, as they stand."""
        trials = self.folder.read_trials(self.note)
        begun = [trial.number for trial in trials if trial.state != "queued"]
        return trials[: max(begun, default=-1) + 1]

    def _work(self, stop: _Stop) -> tuple[str, str]:
        """→ the state in which the sweep ends, and why."""
        while True:
            if stop.state:
                return stop.state, "It was stopped. The same command goes on."
            if reason := self._given_up():
                return "failed", reason
            if self._time_is_up():
                done = sum(trial.state in ENDED for trial in self.note.trials)
                return "completed", f"Its time was up after {done} of {self.note.planned} trials."
            self._begin_what_fits()
            if not self.running:
                return self._at_the_end()
            self._look(stop)
            stop.wait(LOOK_SECONDS)

    def _at_the_end(self) -> tuple[str, str]:
        failed = self._reasons_of_failures()
        if len(failed) == len(self.note.trials):
            return "failed", why_given_up(failed, self.note.planned)
        return "completed", ""

    def _given_up(self) -> str:
        failed = self._reasons_of_failures()
        return (
            why_given_up(failed, self.note.planned) if len(failed) > self.spec.most_failed * self.note.planned else ""
        )

    def _reasons_of_failures(self) -> list[str]:
        return [trial.reason for trial in self.note.trials if trial.state == "failed"]

    def _time_is_up(self) -> bool:
        hours = self.spec.timeout_hours
        return hours is not None and time.monotonic() - self.started > hours * 3600

    def _adopt(self) -> None:
        """Takes over what a killed sweep left at work, so that no trial is trained twice at once."""
        for number, trial in enumerate(self.note.trials):
            if is_owned(self.folder.trial(number)):
                self.running[number] = AdoptedTrial(self.folder.trial(number))
                if trial.state == "stopped":
                    self.running[number].stop()
            elif trial.state == "running":
                trial.state = "interrupted"

    def _begin_what_fits(self) -> None:
        while len(self.running) < self.spec.concurrent and (number := self._next_number()) is not None:
            trial = self.note.trials[number]
            self.study.begin(number, trial.settings)
            trial.state, trial.reason = "running", ""
            self.folder.save(self.note)
            command = self.here.trial_command(self.spec, number, trial.settings)
            self.running[number] = TrialProcess(
                self.folder.trial(number), command, self.here.trial_environment(self.folder, self.note)
            )
            self.judged[number] = 0

    def _next_number(self) -> int | None:
        """The first trial that is neither at work nor at its end; a new one where Bayesian sampling may choose it."""
        for number, trial in enumerate(self.note.trials):
            if number not in self.running and trial.state not in ENDED:
                return number
        if self.spec.sampling != "bayesian" or len(self.note.trials) >= self.note.planned:
            return None
        self.note.trials.append(TrialNote(self.study.propose(len(self.note.trials))))
        return len(self.note.trials) - 1

    def _look(self, stop: _Stop) -> None:
        """Notes what has ended, and stops early what does badly."""
        for number, process in list(self.running.items()):
            outcome = process.outcome()
            if outcome is not None:
                by_hand = outcome.state == "cancelled" and not stop.state
                self._note_end(number, Outcome("stopped", CANCELLED) if by_hand else outcome)
            elif self.spec.early_stopping.policy != "none":
                self._judge(number, process)

    def _note_end(self, number: int, outcome: Outcome) -> None:
        del self.running[number]
        noted, trial = self.note.trials[number], self.folder.read_trial(self.note, number)
        if noted.state != "stopped":
            noted.state, noted.reason = outcome.state, outcome.reason
        if noted.state == "completed" and trial.objective is None:
            noted.state, noted.reason = "failed", f"It never logged {self.spec.objective.metric}."
        if noted.state in ENDED:
            self.study.end(number, noted.state, trial.objective)
        self.folder.save(self.note)
        trials = self.folder.read_trials(self.note)
        self.here.tell(trial_line(trials[number], trials, self.note.planned, self.spec.objective))

    def _judge(self, number: int, process: TrialProcess | AdoptedTrial) -> None:
        """Stops a trial by the policy. It is noted first: whoever continues the sweep knows."""
        if self.note.trials[number].state == "stopped":
            return
        trials = self.folder.read_trials(self.note)
        curves = [[value for _, value in trial.curve] for trial in trials]
        others = [curve for other, curve in enumerate(curves) if other != number and curve]
        policy, objective = self.spec.early_stopping, self.spec.objective
        reason = reason_to_stop(policy, objective, curves[number], others, after=self.judged[number])
        self.judged[number] = len(curves[number])
        if reason:
            noted = self.note.trials[number]
            noted.state, noted.reason = "stopped", reason
            self.folder.save(self.note)
            process.stop()

    def _stop_all(self) -> None:
        """Asks all that still run to end with a checkpoint, and waits for them."""
        for process in self.running.values():
            process.stop()
        give_up = time.monotonic() + STOPS_WITHIN_SECONDS
        while self.running and time.monotonic() < give_up:
            for number, process in list(self.running.items()):
                outcome = process.outcome()
                if outcome is not None:
                    if outcome.state == "cancelled":
                        outcome = Outcome("interrupted")
                    with suppress(OSError, MsgganError):  # what ends the sweep may be a full disk
                        self._note_end(number, outcome)
            time.sleep(LOOK_SECONDS)


class _Stop:
    """Whether somebody wants the sweep to stop, and what state that is."""

    def __init__(self) -> None:
        self.state = ""
        self._event = threading.Event()

    def ask(self, state: str) -> None:
        self.state = self.state or state
        self._event.set()

    def wait(self, seconds: float) -> None:
        self._event.wait(seconds)


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """Within, Ctrl-C and SIGTERM ask the sweep to stop; a second one while it stops changes nothing.

    A signal that this process ignores stays ignored: a job in a script's background (`&`) ignores Ctrl-C.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # handlers are the main thread's
        return
    states = {signal.SIGINT: "interrupted", signal.SIGTERM: "cancelled"}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.ask(states[signal.Signals(number)])

    numbers = [number for number in states if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def mlflow_result(spec: SweepSpec, status: SweepStatus) -> dict[str, Any]:
    """What `log_sweep_result` logs. What may change when the sweep is continued is a tag."""
    objective, best = spec.objective, status.best
    return {
        "state": status.state,
        "ended": status.ended,
        "params": {
            **{f"over.{dimension.name}": str(dimension).partition("=")[2] for dimension in spec.space.dimensions},
            "sampling": spec.sampling,
            "objective": f"{objective.metric} ({objective.direction})",
        },
        "metrics": {f"best_{objective.metric}": best.objective, "best_trial": best.number} if best else {},
        "tags": {
            "trials": written(status.planned),
            **{f"best.{name}": written(value) for name, value in (best.settings if best else {}).items()},
        },
        "files": [status.report] if status.report else [],
    }


# --- What is noted of a sweep -----------------------------------------------------------------------------------------


def noted(spec: SweepSpec, note: SweepNote | None, tell: Callable[[str], None]) -> SweepNote:
    """The note of a sweep that begins or goes on: all its trials, but for bayesian, drawn.

    Trials that failed are tried again: somebody has mended what ailed them, or hopes so.
    """
    if note is None:
        note = SweepNote.of(spec, created=now(), threads=threads_each(spec.concurrent))
    failed = [trial for trial in note.trials if trial.state == "failed"]
    if failed:
        tell("The trials that failed are tried again.")
    for trial in failed:
        trial.state, trial.reason = "interrupted", ""
    note.renew(spec)
    note.state, note.reason, note.ended = "running", "", None
    note.process, note.machine = os.getpid(), this_machine()
    if spec.sampling != "bayesian":
        note.trials += [TrialNote(settings) for settings in _drawn(spec)[len(note.trials) :]]
        note.planned = len(note.trials)
    return note


def _drawn(spec: SweepSpec) -> list[dict[str, Any]]:
    from orchestration.sweeps.sampling import draw  # Optuna takes a second to load

    return draw(spec.space, spec.sampling, spec.sampling_seed, spec.trials)


def threads_each(concurrent: int) -> int:
    """The cores divided among the trials that run at once; fewer where the environment says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said_threads = os.environ.get("OMP_NUM_THREADS", "")
    most = int(said_threads) if said_threads.isdigit() and int(said_threads) > 0 else cores
    return max(1, min(most, cores // concurrent))


def _thread_variables(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in THREAD_VARIABLES}
