"""This machine as a target: each run is a subprocess, `python -m msggan.train`."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msggan.commands.program import (
    EXIT_CODES,
    OUTPUT_VARIABLE,
    TRACKING_VARIABLES,
    default_tracking_uri,
    without_password,
)
from msggan.errors import MsgganError, UsageError
from msggan.runs.folder import RunFolder, attempt_of, is_owned, read_state
from orchestration.copies import copy_run
from orchestration.data_source import is_remote
from orchestration.local.process import (
    POLL_SECONDS,
    BackgroundProcess,
    ExitResult,
    follow,
    follow_lines,
    last_lines,
    stop_owner,
)
from orchestration.runs import DEFAULT_RUNS_DIR, folder_of, next_commands, read_status, run_names
from orchestration.settings import Settings
from orchestration.spec import RunSpec, sweep_hint
from orchestration.status import Download, Item, ProvisionPlan, Reporter, RunStatus, Step
from orchestration.targets import Target

if TYPE_CHECKING:
    from orchestration.local.sweep import LocalSweeps

RESUMES = "Run the same command again to resume from the newest checkpoint."
NEEDS_LESS_MEMORY = "A smaller --batch-size or --resolution needs less memory."


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

        return LocalSweeps(self)

    @property
    def mlflow(self) -> str:
        """The MLflow tracking URI, `none` for no tracking."""
        return self.tracking_uri or default_tracking_uri(self.runs_dir)

    def variables(self, *, with_password: bool) -> dict[str, str]:
        """The environment variables of a run. A tracking URI with a password is left out unless `with_password`."""
        is_shown = with_password or self.mlflow == without_password(self.mlflow)
        return {OUTPUT_VARIABLE: "json", **({TRACKING_VARIABLES[0]: self.mlflow} if is_shown else {})}

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
                f"--name {name}: is a sweep. Use another name, or train its best trial further: --from-trial {name}."
            )
        return problems

    def plan_run(self, spec: RunSpec) -> dict[str, Any]:
        run_dir = str(self._folder(spec.name))
        return {
            "target": self.name,
            "command": spec.command(data=str(spec.data), run_dir=run_dir, python=self.python),
            "env": self.variables(with_password=False),
            "run_dir": run_dir,
        }

    def run(self, spec: RunSpec) -> RunStatus:
        return build_run(spec, follow(self.plan_run(spec)["command"], self._environ()), str(self.runs_dir))

    def start(self, spec: RunSpec) -> RunStatus:
        folder = self._folder(spec.name)
        is_new = not folder.path.exists()
        folder.path.mkdir(parents=True, exist_ok=True)
        before = attempt_of(folder)
        child = BackgroundProcess(self.plan_run(spec)["command"], self._environ(), folder.log)
        try:
            _wait_for_first_step(folder, child, before)
        except BaseException:  # such as Ctrl-C while the images are read
            child.process.terminate()
            child.result()
            raise
        if child.is_running():
            child.detach()
            return self.status(spec.name)
        result = child.result()
        if is_new and not folder.config.exists():  # it could not start
            folder.log.unlink(missing_ok=True)
            folder.lock.unlink(missing_ok=True)
            with suppress(OSError):  # it contains other files
                folder.path.rmdir()
        run = build_run(spec, result, str(self.runs_dir))
        if run.notice:
            self.reporter.info(run.notice)
        return run

    def start_from(self, name: str, copy_run: Callable[[Path], None]) -> None:
        folder = self._folder(name)
        if not folder.config.exists():
            copy_run(folder.path)

    # --- Its runs -----------------------------------------------------------------------------------------------------

    def runs(self, limit: int | None = None) -> list[RunStatus]:
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
        return sorted(found, key=lambda run: run.created or "", reverse=True)[:limit]

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
        recorded = read_state(folder)
        if status.state != "running" or recorded is None:
            raise UsageError([f"{status.name}: is not running; its state is {status.state}."])
        stop_owner(folder, folder.lock, recorded.process, recorded.machine)
        return self.status(name)

    def copy_run(self, name: str, to: Path, *, weights: bool, force: bool) -> Download:
        self.status(name)
        copying = partial(self.reporter.progress, "Copying")
        return copy_run(self._folder(name), to, weights=weights, force=force, progress=copying)

    def weights(self, name: str, *, best: bool = False, at_kimg: float | None = None) -> str:
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
        return {**os.environ, **self.variables(with_password=True)}


def _wait_for_first_step(folder: RunFolder, child: BackgroundProcess, before: str) -> None:
    """Waits until the child trains or has ended. before: the attempt before it."""
    while child.is_running():
        state = read_state(folder)
        if state is not None and state.attempt != before and state.state == "running":
            return
        time.sleep(POLL_SECONDS)


def build_run(spec: RunSpec, result: ExitResult, runs_dir: str) -> RunStatus:
    """The status of a run whose process has ended. Raises its error, or JobFailedError if it left no response."""
    response = result.response()
    if response.get("state") in EXIT_CODES:
        state, images_seen = response["state"], response["images_seen"]
    elif result.terminated_by_us:  # by SIGTERM, before the child could handle it
        state, images_seen = "cancelled", None
    else:
        raise result.no_response_error(process="training", hint=RESUMES, memory_hint=NEEDS_LESS_MEMORY)
    return RunStatus(
        name=spec.name,
        target=LocalTarget.name,
        state=state,
        run_dir=response.get("run_dir", str(folder_of(spec.name, runs_dir))),
        images_seen=images_seen,
        metrics=response.get("metrics", {}),
        next=next_commands(spec, runs_dir, state, images_seen or 0),
        notice=response.get("notice", ""),
    )
