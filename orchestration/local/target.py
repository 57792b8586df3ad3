"""This machine as a target: each run is a subprocess, `python -m msggan.train`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msggan.commands.program import EXIT_CODES
from msggan.errors import MsgganError, RunFolderError, UsageError
from msggan.runs.folder import RunFolder, is_owned, read_state, terminate_holder
from orchestration.copies import copy_run
from orchestration.errors import JobFailedError
from orchestration.local.process import (
    Ending,
    follow,
    follow_lines,
    last_lines,
    mlflow_of,
    silent_death,
    start,
    told_by,
    variables_of,
)
from orchestration.runs import DEFAULT_RUNS_DIR, folder_of, next_commands, read_status, run_names
from orchestration.settings import Settings
from orchestration.spec import RunSpec, is_remote, sweep_hint
from orchestration.status import Download, Item, ProvisionPlan, Reporter, RunStatus, Step
from orchestration.targets import Target

if TYPE_CHECKING:
    from orchestration.local.sweep import LocalSweeps

RESUMES = "Run the same command again to resume from the newest checkpoint."
NEEDS_LESS_MEMORY = "A smaller --batch-size or --resolution needs less memory."
LOOK_SECONDS = 0.1
STOPS_WITHIN_SECONDS = 60


@dataclass(frozen=True)
class LocalTarget(Target):
    """This machine. Runs are in `runs_dir`/NAME; `python` is the interpreter that trains.

    tracking_uri: the MLflow tracking URI, `none` for no tracking, by default a database in `runs_dir`.
    """

    runs_dir: str | Path = DEFAULT_RUNS_DIR
    python: str = sys.executable
    tracking_uri: str | None = None
    reporter: Reporter = field(default_factory=Reporter)

    name = "local"

    @classmethod
    def from_settings(cls, settings: Settings, reporter: Reporter) -> LocalTarget:
        return cls(settings.runs_dir, tracking_uri=settings.tracking_uri, reporter=reporter)

    @property
    def sweeps(self) -> LocalSweeps:
        """The sweeps on this machine, in the same folder as the runs."""
        from orchestration.local.sweep import LocalSweeps  # imported on first use: it is large

        return LocalSweeps(self.runs_dir, self.python, self.tracking_uri, self.reporter.info)

    @property
    def mlflow(self) -> str:
        """The MLflow tracking URI, `none` for no tracking."""
        return mlflow_of(self.runs_dir, self.tracking_uri)

    # --- Train --------------------------------------------------------------------------------------------------------

    def problems(self, data: str | None, name: str | None) -> list[str]:
        problems = []
        if data and is_remote(data):
            problems.append(
                f"--data {data}: only a job on Azure can read this. Download the images and use their folder, "
                "or train on Azure: --target azure."
            )
        if name is not None and self.sweeps.is_sweep(name):
            problems.append(
                f"--name {name}: is a sweep. Use another name, or train its best trial in full: --from-trial {name}."
            )
        return problems

    def question(self, spec: RunSpec) -> str | None:
        return None  # local runs cost nothing

    def plan_run(self, spec: RunSpec) -> dict[str, Any]:
        run_dir = str(self._folder(spec.name))
        return {
            "target": self.name,
            "command": spec.command(data=str(spec.data), run_dir=run_dir, python=self.python),
            "env": variables_of(self.mlflow, with_password=False),
            "run_dir": run_dir,
        }

    def run(self, spec: RunSpec) -> RunStatus:
        return self._built_run(spec, follow(self.plan_run(spec)["command"], self._environ()))

    def start(self, spec: RunSpec) -> RunStatus:
        folder = self._folder(spec.name)
        is_new = not folder.path.exists()
        folder.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as result, folder.log.open("a") as log:
            child = start(
                self.plan_run(spec)["command"],
                self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=result,
                stderr=log,
                start_new_session=True,
            )
            try:
                _wait_for_first_step(folder, child)
            except BaseException:  # such as Ctrl-C while the images are read
                child.terminate()
                child.wait()
                raise
            if child.returncode is None:
                # Waits for the child, so that no zombie process remains in a notebook.
                threading.Thread(target=child.wait, daemon=True).start()
                return self.status(spec.name)
            result.seek(0)
            ending = Ending(child.returncode, result.read(), wrote_to_stderr=False)
        if is_new and not folder.config.exists():
            _remove_traces(folder)
        run = self._built_run(spec, ending)
        if run.notice:
            self.reporter.info(run.notice)
        return run

    def start_from(self, name: str, copy_run: Callable[[Path], None]) -> None:
        folder = self._folder(name)
        if not folder.config.exists():
            copy_run(folder.path)

    # --- Its runs -----------------------------------------------------------------------------------------------------

    def runs(self) -> list[RunStatus]:
        """Every run, the newest first; reports those that cannot be read."""
        found = []
        for name in run_names(str(self.runs_dir)):
            try:
                run = self.status(name)
            except MsgganError as error:
                self.reporter.info(error.message)
                continue
            found.append(run)
            if run.images_total is None:
                self.reporter.info(run.reason)
        return sorted(found, key=lambda run: run.created or "", reverse=True)

    def status(self, name: str) -> RunStatus:
        return read_status(name, str(self.runs_dir))

    def logs(self, name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        folder = self._folder(name)
        if not folder.log.is_file():  # a run that could not start may have left only a log
            self.status(name)
        if not follow:
            return iter(last_lines(folder.log, tail))
        return follow_lines(folder.log, tail, continues=lambda: is_owned(folder))

    def cancel(self, name: str) -> RunStatus:
        folder, status = self._folder(name), self.status(name)
        note = read_state(folder)
        if status.state != "running" or note is None:
            raise UsageError([f"{status.name}: is not running; its state is {status.state}."])
        if note.machine != platform.node():
            raise RunFolderError(f"{folder}: is being trained on {note.machine}.", "Cancel it there.")
        if not terminate_holder(folder.lock, note.process) and is_owned(folder):
            raise RunFolderError(
                f"{folder}: is being trained, but not by process {note.process} of this machine.",
                f"Cancel it on the machine that trains it, which is also named {note.machine}.",
            )
        _wait_for_end(folder, note.process)
        return self.status(name)

    def copy_run(self, name: str, to: Path, *, weights: bool, force: bool) -> Download:
        self.status(name)
        copying = partial(self.reporter.progress, "Copying")
        return copy_run(self._folder(name), to, weights=weights, force=force, progress=copying)

    def weights(self, name: str) -> str:
        if self.sweeps.is_sweep(name):
            raise UsageError([f"{name}: is a sweep, not a run."], sweep_hint(name))
        return str(self._folder(name))

    # --- What training needs ------------------------------------------------------------------------------------------

    def plan_provision(self, *, delete: bool = False) -> ProvisionPlan:
        reason = "needs no provisioning"
        return ProvisionPlan((Step(Item("machine", platform.node() or "localhost", "keep", reason=reason)),))

    def provision(self, plan: ProvisionPlan | None = None, *, delete: bool = False) -> ProvisionPlan:
        plan = plan or self.plan_provision(delete=delete)
        self.reporter.info(repr(plan))
        return plan

    def _folder(self, name: str) -> RunFolder:
        return folder_of(name, self.runs_dir)

    def _environ(self) -> dict[str, str]:
        return {**os.environ, **variables_of(self.mlflow, with_password=True)}

    def _built_run(self, spec: RunSpec, ending: Ending) -> RunStatus:
        return build_run(spec, str(self._folder(spec.name)), ending, runs_dir=str(self.runs_dir))


def build_run(spec: RunSpec, run_dir: str, ending: Ending, *, runs_dir: str) -> RunStatus:
    """The status from the child's result. Raises the child's error, or JobFailedError if it left no result."""
    told = told_by(ending)
    if told.get("state") in EXIT_CODES:
        return RunStatus(
            name=spec.name,
            target=LocalTarget.name,
            state=told["state"],
            run_dir=told["run_dir"],
            images_seen=told["images_seen"],
            metrics=told["metrics"],
            next=next_commands(spec, runs_dir, told["state"], told["images_seen"]),
            notice=told.get("notice", ""),
        )
    if ending.terminated_by_us:  # by SIGTERM, before the child could handle it
        again = next_commands(spec, runs_dir, "cancelled", 0)
        return RunStatus(name=spec.name, target=LocalTarget.name, state="cancelled", run_dir=run_dir, next=again)
    raise silent_death(ending.status, process="training", hint=RESUMES, if_out_of_memory=NEEDS_LESS_MEMORY)


def _wait_for_first_step(folder: RunFolder, child: subprocess.Popen[str]) -> None:
    """Waits until the child trains or has ended."""
    while child.poll() is None:
        note = read_state(folder)
        if note is not None and note.process == child.pid and note.state == "running":
            return
        time.sleep(LOOK_SECONDS)


def _wait_for_end(folder: RunFolder, process: int) -> None:
    give_up = time.monotonic() + STOPS_WITHIN_SECONDS
    while is_owned(folder):
        if time.monotonic() > give_up:
            raise JobFailedError(
                f"{folder}: process {process} has not stopped within {STOPS_WITHIN_SECONDS} s.",
                f"Wait for its current step to end, or kill it: kill -9 {process}. Its last checkpoint is kept.",
            )
        time.sleep(LOOK_SECONDS)


def _remove_traces(folder: RunFolder) -> None:
    """Removes the files of a run that could not start."""
    for path in (folder.log, folder.lock):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it contains other files
        folder.path.rmdir()
