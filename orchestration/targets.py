"""Where does a run go? What a target can do, and which one serves when nobody says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from msggan.errors import UsageError
from orchestration.data_source import is_remote
from orchestration.reporter import Reporter
from orchestration.runs import find_run, is_copy, run_problems
from orchestration.settings import Settings
from orchestration.spec import Download, Run, RunSpec, RunStatus, name_problems, trial_named
from orchestration.sweeps.spec import SweepSpec, SweepStatus, Trial
from orchestration.workspace import Workspace

TARGETS = ("auto", "local", "azure")


class Target(Protocol):
    """A place where runs train."""

    @property
    def name(self) -> str: ...

    @property
    def sweeps(self) -> SweepTarget:
        """The sweeps of the same place."""
        ...

    def plan(self, spec: RunSpec) -> dict[str, Any]:
        """What `submit` would do, as plain values. Touches nothing."""
        ...

    def question(self, spec: RunSpec) -> str | None:
        """What a person has to agree to before `submit`, None where there is nothing."""
        ...

    def submit(self, spec: RunSpec, *, detach: bool = False) -> Run:
        """Starts the run, or resumes the one of that name, and follows it to its end; with `detach` it lets it go."""
        ...

    def runs(self) -> list[RunStatus]:
        """Every run, the newest first."""
        ...

    def status(self, name: str) -> RunStatus:
        """How a run stands."""
        ...

    def logs(self, name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """The last `tail` lines that a run has written, or all; with `follow` also those it writes until its end."""
        ...

    def cancel(self, name: str) -> RunStatus:
        """Stops a run and waits for its end."""
        ...

    def download(
        self, name: str, to: Path, *, weights: bool, force: bool, tell: Callable[[int, int], None]
    ) -> Download:
        """Copies the result out, or with `weights` just the generator; tells of bytes done and bytes in all."""
        ...

    def begin_from(self, name: str, bring: Callable[[Path], None]) -> None:
        """Gives a run that has not begun the run folder that `bring` makes at a path: it goes on from there."""
        ...

    def weights(self, name: str) -> str:
        """Where the run's generator lies on this machine, brought here first if need be: a run folder or a file."""
        ...


class SweepTarget(Protocol):
    """A place where sweeps run."""

    def plan_sweep(self, spec: SweepSpec) -> dict[str, Any]:
        """What `submit_sweep` would do, as plain values. Touches nothing."""
        ...

    def sweep_question(self, spec: SweepSpec) -> str | None:
        """What a person has to agree to before `submit_sweep`, None where there is nothing."""
        ...

    def submit_sweep(self, spec: SweepSpec, *, detach: bool = False) -> SweepStatus:
        """Starts the sweep, or goes on with the one of that name, and follows it; with `detach` it lets it go."""
        ...

    def sweeps(self) -> list[SweepStatus]:
        """Every sweep, the newest first."""
        ...

    def is_sweep(self, name: str) -> bool:
        """Whether there is a sweep of this name."""
        ...

    def sweep_status(self, name: str) -> SweepStatus:
        """How a sweep and its trials stand."""
        ...

    def cancel_sweep(self, name: str) -> SweepStatus:
        """Stops a sweep and its trials, and waits for their end."""
        ...

    def report(self, status: SweepStatus) -> SweepStatus:
        """Writes the page of a sweep that stands so; the status then names it."""
        ...

    def download_trial(self, trial: Trial, to: Path, *, force: bool, tell: Callable[[int, int], None]) -> Download:
        """Copies a trial's run folder out; tells of bytes done and bytes in all."""
        ...


@dataclass(frozen=True)
class Choice:
    """The target that serves, and why, as the end of a sentence."""

    target: str
    reason: str


def choose(asked: str, workspace: Workspace | None) -> Choice:
    """The target for what --target says, where `workspace` is configured."""
    if asked != "auto":
        return Choice(asked, "as --target says")
    if workspace is None:
        return Choice("local", "no Azure ML workspace is configured")
    return Choice("azure", f"{workspace.source} names workspace {workspace.workspace_name}")


def data_problems_of(target: str, data: str | None) -> list[str]:
    """Why a target cannot read what --data names, though another might."""
    if target != "local" or not data or not is_remote(data):
        return []
    return [
        f"--data {data}: only a job on Azure can read this. Download the images and give their folder, "
        "or train there: --target azure."
    ]


def build_target(name: str, settings: Settings, reporter: Reporter) -> Target:
    if name == "azure":
        from orchestration.azure.target import AzureTarget  # a target is loaded when it serves

        return AzureTarget(settings, reporter)
    from orchestration.local.target import LocalTarget

    return LocalTarget(settings.runs_dir, tracking_uri=settings.tracking_uri, tell=reporter.info)


def build_targets(asked: str, settings: Settings, reporter: Reporter) -> list[Target]:
    """The targets whose runs are meant when none is named: this machine, and Azure where it is configured."""
    names = [asked] if asked != "auto" else ["local", *(["azure"] if settings.workspace else [])]
    return [build_target(name, settings, reporter) for name in names]


def named_problems(named: str, asked: str, settings: Settings) -> list[str]:
    """Every complaint about what names a run that can be made without asking Azure."""
    if _is_elsewhere(named, asked, settings):
        return []
    return run_problems(named, settings.runs_dir)


def target_of(named: str, asked: str, settings: Settings, reporter: Reporter) -> tuple[Target, str]:
    """The target that has what is named, and its name there. Raises `UsageError` if nothing is found.

    NAME is a run or a sweep, SWEEP/NUMBER a trial, FOLDER where one of these lies. What the folder of the runs has is
    of this machine, unless it is only a copy of what Azure has.
    """
    if _is_elsewhere(named, asked, settings):
        return build_target("azure", settings, reporter), named
    path = find_run(named, settings.runs_dir)
    if path is None:
        raise UsageError(run_problems(named, settings.runs_dir))
    folder, name = os.path.split(os.path.abspath(path))
    from orchestration.local.target import LocalTarget

    return LocalTarget(os.path.relpath(folder), tell=reporter.info), name


def _is_elsewhere(named: str, asked: str, settings: Settings) -> bool:
    """Whether what is meant is on Azure: a name of a run or of a trial, which the folder of the runs does not have."""
    if asked != "auto":
        return asked == "azure"
    trial = trial_named(named)
    top = trial[0] if trial else named
    here = os.path.join(settings.runs_dir, top)
    return settings.workspace is not None and not name_problems(top) and (not os.path.exists(here) or is_copy(here))
