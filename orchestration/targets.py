"""The interface of a target, `Target`; the handle of a run, `Run`; and the choice of a target."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from msggan.commands.options import Hardware, collecting, refuse
from msggan.config import TrainConfig
from msggan.errors import UsageError
from orchestration.copies import Progress, is_copy
from orchestration.runs import find_run
from orchestration.settings import Settings, Workspace, read_settings
from orchestration.spec import RunSpec, default_name, name_of_trial, name_problems, source_problems, trial_named
from orchestration.status import Download, ProvisionPlan, Question, Reporter, RunStatus
from orchestration.sweeps.space import SearchSpace, read_space
from orchestration.sweeps.spec import SweepSpec, default_trials, sweep_name
from orchestration.sweeps.trials import Objective

if TYPE_CHECKING:
    from msggan.networks import Generator
    from orchestration.costs import CostReport
    from orchestration.sweeps.status import SweepStatus
    from orchestration.sweeps.trials import Trial

SomeTarget = TypeVar("SomeTarget", bound="Target")


class Target(ABC):
    """Where runs train: `LocalTarget`, this machine, or `AzureTarget`, an Azure ML workspace.

    A run is reference NAME, a trial of a sweep SWEEP/NUMBER. Every method raises MsgganError on failure.
    """

    name: ClassVar[str]
    reporter: Reporter  # prints for people: lines, and the progress of copies

    @classmethod
    def from_config(cls: type[SomeTarget], **settings: Any) -> SomeTarget:
        """A target with the settings that `msggan-aml` would use in the current folder; keywords take precedence.

        settings: any that `msggan-aml config show` lists, and the workspace's subscription_id, resource_group and
        workspace_name. Raises UsageError naming each keyword or value that is wrong.
        """
        found = read_settings({}, keywords=settings, folder=Path.cwd(), environ=os.environ)
        return cls.from_settings(found, Reporter())

    @classmethod
    @abstractmethod
    def from_settings(cls: type[SomeTarget], settings: Settings, reporter: Reporter) -> SomeTarget:
        """A target with these settings."""

    # --- Train --------------------------------------------------------------------------------------------------------

    def submit(
        self,
        config: TrainConfig,
        *,
        data: str | Path,
        name: str | None = None,
        device: str = "auto",
        workers: int = 0,
        max_cost: str | float | None = None,
    ) -> Run:
        """Starts a run, or resumes the one of that name. Returns once it trains here or its job is accepted.

        The run continues without this process. data: a folder, a zip or a pack; on Azure also an address. name: by
        default from the data's. device, workers: as `msggan-aml submit` takes them. max_cost: the maximum cost on
        Azure, in US dollars or as "4.50EUR", by default that of the settings.
        """
        spec = self.spec(config, data=data, name=name, hardware=Hardware(device, workers))
        target = self if max_cost is None else self.with_max_cost(max_cost)
        return Run(target, target.start(spec).name)

    def with_max_cost(self, max_cost: str | float) -> Target:
        """The same target with a maximum cost. On this machine runs cost nothing."""
        return self

    def plan(self, config: TrainConfig, *, data: str | Path, name: str | None = None) -> dict[str, Any]:
        """What `submit` would start, as plain values. Makes no requests and changes nothing."""
        return self.plan_run(self.spec(config, data=data, name=name))

    def spec(
        self, config: TrainConfig, *, data: str | Path, name: str | None = None, hardware: Hardware | None = None
    ) -> RunSpec:
        """The specification of a run, checked without making requests. Raises UsageError with every problem."""
        problems = source_problems(str(data)) + (name_problems(name) if name is not None else [])
        refuse(problems or self.problems(str(data), name))
        return RunSpec(config, data, default_name(data) if name is None else name, hardware or Hardware())

    @abstractmethod
    def problems(self, data: str | None, name: str | None) -> list[str]:
        """The reasons why this target cannot train on this data under this name, found without making requests."""

    def question(self, spec: RunSpec) -> Question | None:
        """The question to confirm before the run is started, by default none. Raises RefusedError."""
        return None

    @abstractmethod
    def plan_run(self, spec: RunSpec) -> dict[str, Any]:
        """What `start` would start, as plain values. Makes no requests and changes nothing."""

    def priced_plan(self, spec: RunSpec) -> dict[str, Any]:
        """`plan_run` with what the run costs, as the key `cost`, where it costs money. Only reads."""
        return self.plan_run(spec)

    @abstractmethod
    def start(self, spec: RunSpec) -> RunStatus:
        """Starts or resumes a run, and returns once it trains or its job is accepted."""

    @abstractmethod
    def run(self, spec: RunSpec) -> RunStatus:
        """Starts or resumes a run and follows it to its end. Ctrl-C stops a local run and leaves a job running."""

    @abstractmethod
    def start_from(self, name: str, copy_run: Callable[[Path], None]) -> None:
        """Prepares a run that has not started: it resumes from the run folder that `copy_run` writes to a path."""

    # --- Its runs -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def runs(self, limit: int | None = None) -> list[RunStatus]:
        """The runs, or the `limit` newest, the newest first. On Azure without a limit the newest 50."""

    @abstractmethod
    def status(self, name: str) -> RunStatus:
        """The status of a run. Raises RunFolderError if there is none."""

    @abstractmethod
    def logs(self, name: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """The last `tail` lines of a run's log, or all; with `follow` also each line written until its end."""

    @abstractmethod
    def cancel(self, name: str) -> RunStatus:
        """Stops a run with a checkpoint and waits until it has ended. Raises UsageError if it is not running."""

    def download(
        self, name: str, to: str | Path | None = None, *, weights: bool = False, force: bool = False
    ) -> Download:
        """Copies the run folder, or with `weights` just the newest and the best weights, to a new or empty folder.

        to: by default NAME-run, for a trial SWEEP-trial-NUMBER. Called again, it copies what has changed since; with
        `force` it also overwrites files that were changed in `to`.
        """
        trial = trial_named(name)
        folder = name_of_trial(*trial) if trial else f"{name}-run"
        return self.copy_run(name, Path(to or folder), weights=weights, force=force)

    @abstractmethod
    def copy_run(self, name: str, to: Path, *, weights: bool, force: bool) -> Download:
        """`download` with every argument given."""

    @abstractmethod
    def weights(self, name: str, *, best: bool = False, at_kimg: float | None = None) -> str:
        """The local folder with the run's generator, downloaded first if necessary.

        best, at_kimg: the weights that the folder has to have, as in `msggan.load_generator`.
        """

    def job_yaml(self, name: str) -> str:
        """The newest job of a run or a sweep in Azure ML's YAML."""
        raise UsageError([f"{name}: trains on this machine. Only a run on Azure has a job, which YAML describes."])

    def costs(self, name: str | None = None) -> CostReport:
        """What a run or a sweep has cost, or all of them, and what could be costing money now. Only reads."""
        raise UsageError(["Runs on this machine cost nothing."])

    # --- What training needs ------------------------------------------------------------------------------------------

    @abstractmethod
    def plan_provision(self, *, delete: bool = False) -> ProvisionPlan:
        """What `provision` would do, as a printable plan. Only reads. delete: plan to remove what it created."""

    @abstractmethod
    def provision(self, plan: ProvisionPlan | None = None, *, delete: bool = False) -> ProvisionPlan:
        """Creates what training needs, and verifies it. plan: as `plan_provision` returned it, by default a new one.

        Raises RefusedError, before anything is changed, if the plan refuses an item.
        """

    # --- Sweeps -------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def sweeps(self) -> SweepTarget:
        """The sweeps of this target: status, cancellation and results."""

    def sweep(
        self,
        config: TrainConfig,
        *,
        data: str | Path,
        over: Mapping[str, Any],
        name: str | None = None,
        trials: int | None = None,
        sampling: str = "random",
        objective: str = "swd",
        direction: str | None = None,
        detach: bool = False,
        device: str = "auto",
        workers: int = 0,
        max_cost: str | float | None = None,
        **options: Any,
    ) -> SweepStatus:
        """Runs a hyperparameter sweep to its end and returns its status, with `.best` and `.trials`.

        over: by field its search space: None for the field's own range, (low, high) for a range, a list for choices.
        trials: by default 20 or every combination. detach: on Azure, return once the job is accepted. max_cost: of
        all trials together, as for `submit`. options: further fields of `SweepSpec`.
        """
        spec = build_sweep_spec(
            config,
            data=data,
            over=over,
            name=name,
            trials=trials,
            sampling=sampling,
            objective=Objective(objective, direction or ""),
            hardware=Hardware(device, workers),
            **options,
        )
        refuse(self.problems(str(data), None))
        target = self if max_cost is None else self.with_max_cost(max_cost)
        return target.sweeps.submit_sweep(spec, detach=detach)


@dataclass(frozen=True)
class Run:
    """The handle of a run. `target.submit(…)` returns it; `Run(target, "photos")` is the handle of an existing run."""

    target: Target = field(repr=False)
    name: str

    def status(self) -> RunStatus:
        """Its state, progress, metrics and location."""
        return self.target.status(self.name)

    def wait(self) -> RunStatus:
        """Prints the run's log to its end and returns the final status. Ctrl-C only stops following."""
        try:
            for line in self.target.logs(self.name, follow=True):
                self.target.reporter.info(line)
        except KeyboardInterrupt:
            self.target.reporter.info(f"Stopped following. {self.name} continues; cancel() stops it.")
            raise
        return self.status()

    def logs(self, tail: int | None = None) -> list[str]:
        """The lines that it has written, or the last `tail` of them."""
        return list(self.target.logs(self.name, tail=tail))

    def cancel(self) -> RunStatus:
        """Stops it with a checkpoint; the same `submit` resumes it."""
        return self.target.cancel(self.name)

    def download(self, to: str | Path | None = None, *, weights: bool = False, force: bool = False) -> Download:
        """Copies its run folder to `to`, by default NAME-run; see `Target.download`."""
        return self.target.download(self.name, to, weights=weights, force=force)

    def generator(self, device: str = "cpu", *, best: bool = False, at_kimg: float | None = None) -> Generator:
        """Its generator, as `msggan.load_generator` returns it; downloaded first if the run is on Azure."""
        from msggan import load_generator

        folder = self.target.weights(self.name, best=best, at_kimg=at_kimg)
        return load_generator(folder, device=device, best=best, at_kimg=at_kimg)


class SweepTarget(Protocol):
    """The sweeps of a target."""

    def plan_sweep(self, spec: SweepSpec) -> dict[str, Any]:
        """What `submit_sweep` would do, as plain values. Makes no requests and changes nothing."""

    def priced_sweep(self, spec: SweepSpec) -> dict[str, Any]:
        """`plan_sweep` with what it costs, as the key `cost`, where it costs money. Only reads."""
        return self.plan_sweep(spec)

    def sweep_question(self, spec: SweepSpec) -> Question | None:
        """The question to confirm before `submit_sweep`, by default none."""
        return None

    def submit_sweep(self, spec: SweepSpec, *, detach: bool = False) -> SweepStatus:
        """Starts the sweep, or resumes the one of that name, and follows it to its end, unless `detach`."""

    def sweeps(self, limit: int | None = None) -> list[SweepStatus]:
        """The sweeps, or the `limit` newest, the newest first; reports those that cannot be read.

        On Azure without a limit the newest 50.
        """

    def is_sweep(self, name: str) -> bool:
        """Whether there is a sweep of this name."""

    def sweep_status(self, name: str) -> SweepStatus:
        """The status of a sweep and its trials. Raises RunFolderError if there is none."""

    def cancel_sweep(self, name: str) -> SweepStatus:
        """Stops a sweep and its trials, and waits for their end. Raises UsageError if it is not running."""

    def report(self, status: SweepStatus) -> SweepStatus:
        """Writes the report of a sweep and returns the status with its path."""

    def download_trial(self, trial: Trial, to: Path, *, force: bool, progress: Progress) -> Download:
        """Copies a trial's run folder. progress(done, total): called with bytes."""


def build_sweep_spec(
    config: TrainConfig,
    *,
    data: str | Path,
    over: Sequence[str] | Mapping[str, Any],
    name: str | None,
    trials: int | None,
    sampling: str,
    **options: Any,
) -> SweepSpec:
    """The specification of a sweep with its defaults. Raises UsageError with every problem, also with the data.

    options: further fields of `SweepSpec`.
    """
    problems, space = source_problems(str(data)), SearchSpace(())
    with collecting(problems):
        space = read_space(over, config)
    with collecting(problems):
        spec = SweepSpec(
            config=config,
            data=data,
            name=name or sweep_name(data or "data"),
            space=space,
            sampling=sampling,
            trials=default_trials(space, sampling) if trials is None else trials,
            **options,
        )
    refuse(problems)
    return spec


def choose(target: str, workspace: Workspace | None) -> tuple[str, str]:
    """The target for the value of --target and the configured workspace, and the reason, as a clause."""
    if target != "auto":
        return target, "set by --target"
    if workspace is None:
        return "local", "no Azure ML workspace is configured"
    return "azure", f"workspace {workspace.workspace_name} is set in {workspace.source}"


def build_target(name: str, settings: Settings, reporter: Reporter) -> Target:
    """The target of that name. Its module is imported here: Azure's SDK takes seconds to import."""
    if name == "azure":
        from orchestration.azure.client import open_session

        session = open_session(settings)
        from orchestration.azure.target import AzureTarget

        return AzureTarget(settings, reporter, session=session)
    from orchestration.local.target import LocalTarget

    return LocalTarget.from_settings(settings, reporter)


def build_targets(target: str, settings: Settings, reporter: Reporter) -> list[Target]:
    """The targets to list: for `auto`, this machine and, if a workspace is configured, Azure."""
    names = [target] if target != "auto" else ["local", *(["azure"] if settings.workspace else [])]
    return [build_target(name, settings, reporter) for name in names]


def target_of(reference: str, target: str, settings: Settings, reporter: Reporter) -> tuple[Target, str]:
    """The target of a run, a sweep or a trial, and its name on that target. Raises `UsageError` if it is not found.

    reference: a run or a sweep NAME, a trial SWEEP/NUMBER, or the folder of one. What the runs folder contains is on
    this machine, unless it is a copy of a run on Azure.
    """
    if _is_on_azure(reference, target, settings):
        return build_target("azure", settings, reporter), reference
    name, runs_dir = find_run(reference, settings.runs_dir)
    from orchestration.local.target import LocalTarget

    return LocalTarget(runs_dir, reporter=reporter), name


def _is_on_azure(reference: str, target: str, settings: Settings) -> bool:
    """Whether to look for a run on Azure: its name is valid, and the runs folder does not contain it."""
    if target != "auto":
        return target == "azure"
    trial = trial_named(reference)
    name = trial[0] if trial else reference
    local = os.path.join(settings.runs_dir, name)
    return settings.workspace is not None and not name_problems(name) and (not os.path.exists(local) or is_copy(local))
