"""Sweeps on this machine: trials run as concurrent processes, and a record on disk lets a killed sweep resume."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from msggan.commands.program import (
    EXIT_CODES,
    NO_TRACKING,
    PARENT_VARIABLE,
    absolute_uri,
    signal_handlers,
    without_password,
)
from msggan.errors import MsgganError, RunFolderError, UsageError
from msggan.runs.folder import RunFolder, is_owned, now, read_state, state_of, terminate_holder
from msggan.tracking.metrics_log import log_sweep_result
from orchestration.copies import Progress, copy_run
from orchestration.local.process import POLL_SECONDS, STOP_TIMEOUT_SECONDS, BackgroundProcess, ExitResult, stop_owner
from orchestration.runs import names_in
from orchestration.spec import SWEEP_FILE, RunSpec
from orchestration.status import Download
from orchestration.sweeps.record import SweepFolder, SweepRecord, TrialRecord, refuse_another_sweep
from orchestration.sweeps.space import draw, format_value, propose
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.status import SweepStatus, next_of_sweep, trial_line
from orchestration.sweeps.trials import (
    CANCELLED,
    ENDED,
    Trial,
    failures_reason,
    reason_to_stop,
    sorted_trials,
    time_limit_reason,
)
from orchestration.targets import SweepTarget

if TYPE_CHECKING:
    from orchestration.local.target import LocalTarget

NEEDS_LESS_MEMORY = "A smaller --batch-size, --resolution or --concurrent needs less memory."
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
STATE_AFTER = {signal.SIGINT: "interrupted", signal.SIGTERM: "cancelled"}  # of a sweep that the signal has stopped


@dataclass(frozen=True)
class LocalSweeps(SweepTarget):
    """Sweeps on this machine, in the same folder as the runs of `target`."""

    target: LocalTarget

    name = "local"

    def plan_sweep(self, spec: SweepSpec) -> dict[str, Any]:
        drawn = [] if spec.sampling == "bayesian" else draw(spec.space, spec.sampling, spec.sampling_seed, spec.trials)
        unknown = dict.fromkeys(spec.space.names, "<chosen from the results of earlier trials>")
        command = self.trial_command(spec, 0, drawn[0] if drawn else {})
        return {
            "target": self.name,
            "command": command + ([] if drawn else [f"--over={text}" for text in spec.space.as_texts()]),
            "env": {
                **self.target.variables(with_password=False),
                **dict.fromkeys(THREAD_VARIABLES, str(threads_each(spec.concurrent))),
            },
            "run_dir": str(self._folder(spec.name)),
            "trials": drawn or [unknown],
        }

    def submit_sweep(self, spec: SweepSpec, *, detach: bool = False) -> SweepStatus:
        if detach:
            raise UsageError(
                ["--detach: is not available for sweeps on this machine."],
                "Stop the sweep with Ctrl-C; the same command resumes it.",
            )
        folder = self._folder(spec.name)
        if (folder.path / "config.json").exists():
            raise UsageError([f"--name {spec.name}: {folder} holds a run, not a sweep."], "Use another --name.")
        if existing := folder.load():
            refuse_another_sweep(spec, existing.planned, existing.fixed)
        with folder.owned():
            _Sweep(self, spec, folder).run()
        status, uri = self.report(self.sweep_status(spec.name)), self.target.mlflow
        if uri != NO_TRACKING and status.state in EXIT_CODES:
            result = mlflow_result(spec, status)
            if problem := log_sweep_result(folder.path, absolute_uri(uri), result, python=self.target.python):
                self.target.reporter.info(
                    f"MLflow at {without_password(uri)} does not have the sweep's result yet ({problem}). "
                    "The same command again logs it."
                )
        return status

    def sweeps(self, limit: int | None = None) -> list[SweepStatus]:
        found = []
        for name in names_in(str(self.target.runs_dir), SWEEP_FILE):
            try:
                found.append(self.sweep_status(name))
            except RunFolderError as error:
                self.target.reporter.info(f"{error.message} {error.hint}")
        return sorted(found, key=lambda sweep: sweep.created or "", reverse=True)[:limit]

    def is_sweep(self, name: str) -> bool:
        return bool(name) and self._folder(name).record.is_file()

    def sweep_status(self, name: str) -> SweepStatus:
        folder = self._folder(name)
        record = folder.current()
        if record is None:
            raise RunFolderError(f"{folder}: is not a sweep.", "List runs and sweeps: msggan-aml list")
        status = SweepStatus(
            name=name,
            target=self.name,
            state=record.state,
            run_dir=str(folder),
            objective=record.objective,
            trials=sorted_trials(folder.read_trials(record), record.objective),
            reason=record.reason,
            report=str(folder.report) if folder.report.exists() else None,
            data=record.data,
            config=record.config,
            space=record.space,
            planned=record.planned,
            created=record.created,
            ended=record.ended,
        )
        return replace(status, next=next_of_sweep(status, record.args, str(self.target.runs_dir)))

    def report(self, status: SweepStatus) -> SweepStatus:
        from orchestration.sweeps.report import newest_grid, report_result, write_report

        folder = self._folder(status.name)
        grids = {}
        for trial in status.trials:
            samples = folder.trial(trial.number).samples
            with suppress(OSError):  # such a trial has no picture in the report
                if newest := newest_grid(path.name for path in samples.glob("*.png")):
                    grids[trial.number] = (samples / newest).read_bytes()
        with report_result(folder.report, self.target.reporter.info):
            write_report(folder.report, status, grids)
            return replace(status, report=str(folder.report))
        return status

    def cancel_sweep(self, name: str) -> SweepStatus:
        folder, status = self._folder(name), self.sweep_status(name)
        record = folder.load()
        if status.state != "running" or record is None:
            raise UsageError([f"{name}: is not running; its state is {status.state}."])
        stop_owner(folder, folder.lock, record.process, record.machine)
        return self.sweep_status(name)

    def download_trial(self, trial: Trial, to: Path, *, force: bool, progress: Progress) -> Download:
        return copy_run(RunFolder(trial.run_dir), to, weights=False, force=force, progress=progress)

    def trial_command(self, spec: SweepSpec, number: int, settings: dict[str, Any]) -> list[str]:
        """The command line of a trial."""
        run = RunSpec(replace(spec.config, **settings), spec.data, spec.name, spec.hardware)
        folder = self._folder(spec.name).trial(number)
        return run.command(data=str(spec.data), run_dir=str(folder), python=self.target.python)

    def _folder(self, name: str) -> SweepFolder:
        return SweepFolder(Path(self.target.runs_dir) / name)


class _Sweep:
    """A running sweep: its running trials, and its record."""

    def __init__(self, sweeps: LocalSweeps, spec: SweepSpec, folder: SweepFolder) -> None:
        self.sweeps = sweeps
        self.spec = spec
        self.folder = folder
        self.info = sweeps.target.reporter.info
        self.record = start_or_resume(spec, folder.load(), self.info)
        self.running: dict[int, TrialProcess | AdoptedTrial] = {}
        self.evaluated: Counter[int] = Counter()  # the number of each trial's measurements that the policy has seen
        self.started = time.monotonic()
        self.stop_state = ""  # the state in which the sweep ends, once a signal has stopped it
        self.stop_requested = threading.Event()

    def run(self) -> None:
        """Runs trials until all have ended, the time limit, too many failures, or a stop by the user.

        Ctrl-C and SIGTERM stop the sweep; a second one changes nothing. A signal that this process ignores stays
        ignored: a job in a script's background (`&`) ignores Ctrl-C.
        """
        numbers = [number for number in STATE_AFTER if signal.getsignal(number) != signal.SIG_IGN]
        with signal_handlers(dict.fromkeys(numbers, self._stop)):
            self.folder.save(self.record)
            state, reason = "failed", "It ended with an internal error."
            try:
                self._adopt()
                state, reason = self._run_trials()
            except (OSError, MsgganError) as error:
                state, reason = "interrupted", str(error).split("\n")[0]
                raise
            finally:
                self._stop_all()
                self.record.state, self.record.reason, self.record.ended = state, reason, now()
                with suppress(RunFolderError):  # on a full disk the record stays that of a sweep which died
                    self.folder.save(self.record)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_state = self.stop_state or STATE_AFTER[signal.Signals(number)]
        self.stop_requested.set()

    def _run_trials(self) -> tuple[str, str]:
        """→ the state in which the sweep ends, and the reason."""
        while True:
            planned, failures, hours = self.record.planned, self.record.failures, self.spec.timeout_hours
            if self.stop_state:
                return self.stop_state, "Stopped. The same command resumes it."
            if len(failures) > self.spec.max_failed_fraction * planned:
                return "failed", failures_reason(failures, planned)
            if hours is not None and time.monotonic() - self.started > hours * 3600:
                return "completed", time_limit_reason(self.record.trials, planned)
            self._start_trials()
            if not self.running:
                all_failed = len(failures) == len(self.record.trials)
                return ("failed", failures_reason(failures, planned)) if all_failed else ("completed", "")
            for number, trial in list(self.running.items()):
                if outcome := trial.outcome():
                    is_single = outcome.state == "cancelled" and not self.stop_state
                    self._record_end(number, Outcome("stopped", CANCELLED) if is_single else outcome)
                elif self.spec.early_stopping.policy != "none":
                    self._apply_policy(number, trial)
            self.stop_requested.wait(POLL_SECONDS)

    def _adopt(self) -> None:
        """Continues with the trials that a killed sweep left running, so that none runs twice at once."""
        for number, trial in enumerate(self.record.trials):
            if is_owned(self.folder.trial(number)):
                self.running[number] = AdoptedTrial(self.folder.trial(number))
                if trial.state == "stopped":
                    self.running[number].stop()
            elif trial.state == "running":
                trial.state = "interrupted"

    def _start_trials(self) -> None:
        while len(self.running) < self.spec.concurrent and (number := self._next_number()) is not None:
            trial, folder = self.record.trials[number], self.folder.trial(number)
            trial.state, trial.reason = "running", ""
            self.folder.save(self.record)
            folder.path.mkdir(parents=True, exist_ok=True)
            environ = {
                **os.environ,
                **dict.fromkeys(THREAD_VARIABLES, str(self.record.threads)),
                **self.sweeps.target.variables(with_password=True),
                PARENT_VARIABLE: os.path.abspath(self.folder.path),
            }
            command = self.sweeps.trial_command(self.spec, number, trial.settings)
            self.running[number] = TrialProcess(command, environ, folder.log)
            self.evaluated[number] = 0

    def _next_number(self) -> int | None:
        """The first trial that is neither running nor ended; with Bayesian sampling a new one after those."""
        for number, trial in enumerate(self.record.trials):
            if number not in self.running and trial.state not in ENDED:
                return number
        if self.spec.sampling != "bayesian" or len(self.record.trials) >= self.record.planned:
            return None
        trials = self.folder.read_trials(self.record)
        settings = propose(self.spec.space, self.spec.objective, self.spec.sampling_seed, trials)
        self.record.trials.append(TrialRecord(settings))
        return len(self.record.trials) - 1

    def _record_end(self, number: int, outcome: Outcome) -> None:
        del self.running[number]
        record, trial = self.record.trials[number], self.folder.read_trial(self.record, number)
        if record.state != "stopped":
            record.state, record.reason = outcome.state, outcome.reason
        if record.state == "completed" and trial.objective is None:
            record.state, record.reason = "failed", f"It never logged {self.spec.objective.metric}."
        self.folder.save(self.record)
        trials = self.folder.read_trials(self.record)
        self.info(trial_line(trials[number], trials, self.record.planned, self.spec.objective))

    def _apply_policy(self, number: int, process: TrialProcess | AdoptedTrial) -> None:
        """Stops a trial by the policy. The decision is recorded first, for a sweep that is resumed."""
        record = self.record.trials[number]
        if record.state == "stopped":
            return
        curves = [trial.values for trial in self.folder.read_trials(self.record)]
        others = [curve for other, curve in enumerate(curves) if other != number and curve]
        policy, objective = self.spec.early_stopping, self.spec.objective
        reason = reason_to_stop(policy, objective, curves[number], others, after=self.evaluated[number])
        self.evaluated[number] = len(curves[number])
        if reason:
            record.state, record.reason = "stopped", reason
            self.folder.save(self.record)
            process.stop()

    def _stop_all(self) -> None:
        """Stops all running trials, each with a checkpoint, and waits for them."""
        for trial in self.running.values():
            trial.stop()
        deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
        while self.running and time.monotonic() < deadline:
            for number, trial in list(self.running.items()):
                if outcome := trial.outcome():
                    if outcome.state == "cancelled":
                        outcome = Outcome("interrupted")
                    with suppress(OSError, MsgganError):  # what ends the sweep may be a full disk
                        self._record_end(number, outcome)
            time.sleep(POLL_SECONDS)


def start_or_resume(spec: SweepSpec, record: SweepRecord | None, info: Callable[[str], None]) -> SweepRecord:
    """The record of a sweep that starts or resumes, with the settings of all trials, unless sampling is bayesian."""
    if record is None:
        record = SweepRecord.of(spec, created=now(), threads=threads_each(spec.concurrent))
    if record.failures:
        info("Retrying the failed trials.")
    record.resume(spec)
    if spec.sampling != "bayesian":
        drawn = draw(spec.space, spec.sampling, spec.sampling_seed, spec.trials)
        record.trials += [TrialRecord(settings) for settings in drawn[len(record.trials) :]]
        record.planned = len(record.trials)
    return record


def threads_each(concurrent: int) -> int:
    """The cores divided among the trials that run at once, at most OMP_NUM_THREADS each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    most = int(limit) if limit.isdigit() and int(limit) > 0 else cores
    return max(1, min(most, cores // concurrent))


def mlflow_result(spec: SweepSpec, status: SweepStatus) -> dict[str, Any]:
    """What `log_sweep_result` logs. What may change when the sweep is resumed is a tag."""
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
            "trials": format_value(status.planned),
            **{f"best.{name}": format_value(value) for name, value in (best.settings if best else {}).items()},
        },
        "files": [status.report] if status.report else [],
    }


# --- The processes of trials ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a trial's process ended. state: completed, failed, cancelled or interrupted."""

    state: str
    reason: str = ""


class TrialProcess(BackgroundProcess):
    """A trial that this process has started."""

    def outcome(self) -> Outcome | None:
        """How it ended, None while it is running."""
        return None if self.is_running() else _outcome_of(self.result())

    def stop(self) -> None:
        """Stops it after the current step, with a checkpoint."""
        self.process.terminate()


class AdoptedTrial:
    """A trial that was left running when its sweep was killed; its run folder shows its state."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def outcome(self) -> Outcome | None:
        if is_owned(self._folder):
            return None
        state = state_of(self._folder)
        if state is None or state.state not in EXIT_CODES:
            return Outcome("interrupted")
        return Outcome(state.state, state.reason)

    def stop(self) -> None:
        state = read_state(self._folder)
        if state is not None and state.state == "running" and state.machine == platform.node():
            terminate_holder(self._folder.lock, state.process)


def _outcome_of(result: ExitResult) -> Outcome:
    try:
        response = result.response()
        if response.get("state") in EXIT_CODES:
            return Outcome(str(response["state"]))
        if result.status in (-signal.SIGTERM, EXIT_CODES["cancelled"]):  # SIGTERM came before training started
            return Outcome("cancelled")
        raise result.no_response_error(process="training", memory_hint=NEEDS_LESS_MEMORY)
    except MsgganError as error:
        if error.exit_code == EXIT_CODES["cancelled"]:
            return Outcome("cancelled")
        return Outcome("failed", " ".join(error.message.split()))
