"""How does a run train on this machine? As a subprocess: the same command that a person could type."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msggan.commands.program import EXIT_CODES
from msggan.errors import MsgganError, RunFolderError, UsageError
from msggan.runs.folder import RunFolder
from msggan.runs.state import is_owned, read_note, terminate_holder
from orchestration.copies import Tell, copy_run
from orchestration.errors import JobFailedError
from orchestration.local.log_file import follow_lines, last_lines
from orchestration.local.process import Ending, follow, mlflow_of, silent_death, start, told_by, variables_of
from orchestration.reporter import Reporter
from orchestration.runs import DEFAULT_RUNS_DIR, next_commands, read_status, run_names
from orchestration.spec import Download, Run, RunSpec, RunStatus

if TYPE_CHECKING:
    from orchestration.local.sweep import LocalSweeps

RESUMES = "The same command again goes on from the newest checkpoint."
NEEDS_LESS_MEMORY = "A smaller --batch-size or --resolution needs less memory."
LOOK_SECONDS = 0.1
STOPS_WITHIN_SECONDS = 60


@dataclass(frozen=True)
class LocalTarget:
    """This machine. Runs live in `runs_dir`/NAME; `python` is the interpreter that trains.

    tracking_uri: the MLflow that runs are told to, `none` for none, by default a database among the runs. tell(line):
    for people.
    """

    runs_dir: str | Path = DEFAULT_RUNS_DIR
    python: str = sys.executable
    tracking_uri: str | None = None
    tell: Callable[[str], None] = Reporter().info

    name = "local"

    @property
    def sweeps(self) -> LocalSweeps:
        """The sweeps on this machine, which live among the runs."""
        from orchestration.local.sweep import LocalSweeps  # loaded when there is a question about one

        return LocalSweeps(self.runs_dir, self.python, self.tracking_uri, self.tell)

    def plan(self, spec: RunSpec) -> dict[str, Any]:
        """What `submit` would start. Touches nothing."""
        run_dir = str(self._folder(spec.name))
        return {
            "target": self.name,
            "command": spec.command(data=str(spec.data), run_dir=run_dir, python=self.python),
            "env": variables_of(self.mlflow, with_password=False),
            "run_dir": run_dir,
        }

    def question(self, spec: RunSpec) -> str | None:
        """Nothing: this machine costs nothing."""
        return None

    def submit(self, spec: RunSpec, *, detach: bool = False) -> Run:
        """Trains to the end or until stopped; with `detach` it returns when training has begun.

        Raises MsgganError if the run cannot begin or fails.
        """
        plan = self.plan(spec)
        environ = {**os.environ, **variables_of(self.mlflow, with_password=True)}
        if detach:
            return self._submit_detached(spec, plan["command"], environ)
        return self._built_run(spec, follow(plan["command"], environ))

    def runs(self) -> list[RunStatus]:
        """Every run, the newest first; also tells which configurations and records cannot be read."""
        found = []
        for name in run_names(str(self.runs_dir)):
            try:
                run = self.status(name)
            except MsgganError as error:
                self.tell(error.message)
                continue
            found.append(run)
            if run.images_total is None:
                self.tell(run.reason)
        return sorted(found, key=lambda run: run.created or "", reverse=True)

    def status(self, name: str) -> RunStatus:
        """How a run stands. Raises `RunFolderError` where there is none."""
        return read_status(name, str(self.runs_dir))

    def logs(self, name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """The lines that a run has written; with `follow` also those it writes until its end.

        Raises `RunFolderError` where there is no run, nor what one wrote that could not begin.
        """
        folder = self._folder(name)
        if not folder.log.is_file():
            self.status(name)
        if not follow:
            return iter(last_lines(folder.log, tail))
        return follow_lines(folder.log, tail, goes_on=lambda: is_owned(folder))

    def cancel(self, name: str) -> RunStatus:
        """Stops a run politely and waits for its end. Raises `UsageError` if it is not running."""
        folder, status = self._folder(name), self.status(name)
        note = read_note(folder)
        if status.state != "running" or note is None:
            raise UsageError([f"{status.name}: is not running but {status.state}."])
        if note.machine != platform.node():
            raise RunFolderError(f"{folder}: is being trained on {note.machine}.", "Cancel it there.")
        if not terminate_holder(folder.lock, note.process) and is_owned(folder):
            raise RunFolderError(
                f"{folder}: is being trained, but process {note.process} of this machine has nothing to do with it.",
                f"Cancel it on the machine that trains it, which calls itself {note.machine} too.",
            )
        _wait_for_end(folder, note.process)
        return self.status(name)

    def download(self, name: str, to: Path, *, weights: bool, force: bool, tell: Tell) -> Download:
        """Copies a run's folder, or just its generator. Raises MsgganError where it cannot."""
        self.status(name)
        return copy_run(self._folder(name), to, weights=weights, force=force, tell=tell)

    def begin_from(self, name: str, bring: Callable[[Path], None]) -> None:
        """Gives a run that has not begun the run folder that `bring` makes at a path: it goes on from there."""
        folder = self._folder(name)
        if not folder.config.exists():
            bring(folder.path)

    def weights(self, name: str) -> str:
        """Where the run's generator lies on this machine: its folder."""
        return str(self._folder(name))

    @property
    def mlflow(self) -> str:
        """The MLflow that runs are told to, `none` for none."""
        return mlflow_of(self.runs_dir, self.tracking_uri)

    def _folder(self, name: str) -> RunFolder:
        return RunFolder(Path(self.runs_dir) / name)

    def _submit_detached(self, spec: RunSpec, command: list[str], environ: dict[str, str]) -> Run:
        folder = self._folder(spec.name)
        is_new = not folder.path.exists()
        folder.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as result, folder.log.open("a") as log:
            child = start(command, environ, stdin=subprocess.DEVNULL, stdout=result, stderr=log, start_new_session=True)
            try:
                _wait_for_first_step(folder, child)
            except BaseException:  # Ctrl-C while the images are read
                child.terminate()
                child.wait()
                raise
            if child.returncode is None:
                return self.status(spec.name).as_submitted()
            result.seek(0)
            ending = Ending(child.returncode, result.read(), wrote_to_stderr=False)
        if is_new and not folder.config.exists():
            _remove_traces(folder)
        run = self._built_run(spec, ending)
        if run.notice:
            self.tell(run.notice)
        return run

    def _built_run(self, spec: RunSpec, ending: Ending) -> Run:
        return build_run(spec, str(self._folder(spec.name)), ending, runs_dir=str(self.runs_dir))


def build_run(spec: RunSpec, run_dir: str, ending: Ending, *, runs_dir: str) -> Run:
    """The run that the child told of; raises its error, or one that says how it died without a word."""
    told = told_by(ending)
    if told.get("state") in EXIT_CODES:
        return Run(
            name=spec.name,
            target=LocalTarget.name,
            state=told["state"],
            run_dir=told["run_dir"],
            images_seen=told["images_seen"],
            metrics=told["metrics"],
            next=next_commands(spec, runs_dir, told["state"], told["images_seen"]),
            notice=told.get("notice", ""),
        )
    if ending.terminated_by_us:  # SIGTERM came before the child could have answered it
        again = next_commands(spec, runs_dir, "cancelled", 0)
        return Run(name=spec.name, target=LocalTarget.name, state="cancelled", run_dir=run_dir, next=again)
    raise silent_death(ending.status, process="training", hint=RESUMES, if_out_of_memory=NEEDS_LESS_MEMORY)


def _wait_for_first_step(folder: RunFolder, child: subprocess.Popen[str]) -> None:
    """Returns when the child has begun to train, or has ended."""
    while child.poll() is None:
        note = read_note(folder)
        if note is not None and note.process == child.pid and note.state == "running":
            return
        time.sleep(LOOK_SECONDS)


def _wait_for_end(folder: RunFolder, process: int) -> None:
    give_up = time.monotonic() + STOPS_WITHIN_SECONDS
    while is_owned(folder):
        if time.monotonic() > give_up:
            raise JobFailedError(
                f"{folder}: process {process} was asked to stop and still works after {STOPS_WITHIN_SECONDS} s.",
                f"Wait for its step to end, or stop it by force: kill -9 {process}. Its last checkpoint is good.",
            )
        time.sleep(LOOK_SECONDS)


def _remove_traces(folder: RunFolder) -> None:
    """Of a run that could not begin."""
    for path in (folder.log, folder.lock):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody else has put something there
        folder.path.rmdir()
