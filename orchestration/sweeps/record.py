"""The record of a sweep, sweep.json, and the folder of a sweep on this machine.

sweep.json holds the specification of the sweep, here also the settings and the state of each trial. It is replaced as a
whole at each change, so that a sweep whose process is killed can be resumed. What the trials have measured is in their
own run folders.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from msggan.commands.options import to_argv
from msggan.config import explicit_values
from msggan.errors import RunFolderError, UsageError
from msggan.runs.files import write_whole
from msggan.runs.folder import DIED, PATIENCE_SECONDS, RunFolder, is_held, is_owned
from msggan.tracking.metrics_log import read_metrics
from orchestration.data_source import is_remote
from orchestration.spec import SWEEP_FILE, trial_path
from orchestration.sweeps.spec import SweepSpec
from orchestration.sweeps.trials import EarlyStopping, Objective, Trial, measured

FORMAT_VERSION = 3
# Keys of format 2, which is still read.
RENAMED = {"asked": "fixed", "again": "args", "said": "config", "most_failed": "max_failed_fraction"}
Request = TypeVar("Request", bound="SweepRequest")


@dataclass(kw_only=True)
class SweepRequest:
    """The specification of a sweep as sweep.json holds it, here and on Azure.

    fixed: what may not change when the sweep is resumed, as text. args: the command-line arguments that resume it.
    config: the training options that all trials share. space: what --over takes. planned: the number of trials.
    """

    fixed: dict[str, str]
    args: list[str]
    config: dict[str, Any]
    data: str
    space: list[str]
    objective: Objective
    early_stopping: EarlyStopping
    max_failed_fraction: float
    planned: int

    @classmethod
    def of(cls: type[Request], spec: SweepSpec, **more: Any) -> Request:
        """The request of a specification. more: further fields of the class."""
        return cls(
            fixed=fixed_part(spec),
            args=spec.to_argv(),
            config=explicit_values(spec.config),
            data=str(spec.data),
            space=spec.space.as_texts(),
            objective=spec.objective,
            early_stopping=spec.early_stopping,
            max_failed_fraction=spec.max_failed_fraction,
            planned=spec.trials,
            **more,
        )

    def to_bytes(self) -> bytes:
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1).encode()


def read_request(content: bytes, kind: type[Request], where: str) -> Request:
    """Reads what `to_bytes` wrote. where: the file, for errors. Raises `RunFolderError` if it cannot be read."""
    try:
        values = json.loads(content)
        version = values.pop("format_version")
        if version == 2:
            values = {RENAMED.get(name, name): value for name, value in values.items()}
            values["args"] = ["--max-failed-fraction" if arg == "--most-failed" else arg for arg in values["args"]]
        if version in (2, FORMAT_VERSION):
            objective, stopping = Objective(**values["objective"]), EarlyStopping(**values["early_stopping"])
            return kind(**{**values, "objective": objective, "early_stopping": stopping})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{where}: is not a valid sweep record.", "Remove it, or use another --name.") from error
    raise RunFolderError(
        f"{where}: was written by another version of msggan (format {version}, not {FORMAT_VERSION}).",
        "Use the version that started this sweep, or another --name.",
    )


def fixed_part(spec: SweepSpec) -> dict[str, str]:
    """What may not change when a sweep is resumed, by option."""
    stopping, data = spec.early_stopping, str(spec.data)
    return {
        "--data": data if is_remote(data) else os.path.abspath(data),
        "--over": " ".join(spec.space.as_texts()),
        "--sampling": spec.sampling,
        "--sampling-seed": str(spec.sampling_seed),
        "--objective": f"{spec.objective.metric} ({spec.objective.direction})",
        "--stop-early": stopping.policy if stopping.policy == "none" else repr(stopping),
        "options": " ".join(to_argv(spec.config)),
    }


def refuse_another_sweep(spec: SweepSpec, planned: int, fixed: Mapping[str, str]) -> None:
    """Raises `UsageError`, with what differs, if the name is taken by another sweep.

    planned, fixed: of that sweep; what `fixed` does not have is not compared.
    """
    different = [
        f"{name} was {fixed[name]} and is now {value}"
        for name, value in fixed_part(spec).items()
        if fixed.get(name, value) != value
    ]
    if spec.trials < planned:
        different.append(f"--trials was {planned} and is now {spec.trials}")
    if different:
        raise UsageError(
            [f"--name {spec.name}: is another sweep: {'; '.join(different)}."],
            "Use the same options to resume it (--trials may grow), or another --name.",
        )


# --- On this machine --------------------------------------------------------------------------------------------------


@dataclass
class TrialRecord:
    """A trial in sweep.json; state as in `Trial`."""

    settings: dict[str, Any]
    state: str = "queued"
    reason: str = ""


@dataclass(kw_only=True)
class SweepRecord(SweepRequest):
    """sweep.json of a sweep on this machine. threads: how many each trial computes with. created, ended: ISO 8601."""

    created: str
    threads: int
    state: str = "running"
    reason: str = ""
    ended: str | None = None
    process: int = 0
    machine: str = ""
    trials: list[TrialRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trials = [TrialRecord(**trial) if isinstance(trial, dict) else trial for trial in self.trials]

    def resume(self, spec: SweepSpec) -> None:
        """Updates what may change when a sweep is resumed; failed trials are retried."""
        self.args, self.planned, self.max_failed_fraction = spec.to_argv(), spec.trials, spec.max_failed_fraction
        self.state, self.reason, self.ended = "running", "", None
        self.process, self.machine = os.getpid(), platform.node()
        for trial in self.trials:
            if trial.state == "failed":
                trial.state, trial.reason = "interrupted", ""

    @property
    def failures(self) -> list[str]:
        """Why each failed trial failed."""
        return [trial.reason for trial in self.trials if trial.state == "failed"]


class SweepFolder:
    """The files of one sweep. Nothing is written before `owned`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record = self.path / SWEEP_FILE
        self.lock = self.path / "sweep.lock"
        self.report = self.path / "report.html"

    def __str__(self) -> str:
        return str(self.path)

    def trial(self, number: int) -> RunFolder:
        return RunFolder(trial_path(self.path, number))

    def load(self) -> SweepRecord | None:
        """The record, None if there is no sweep. Raises `RunFolderError` if it cannot be read."""
        try:
            content = self.record.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunFolderError(f"{self.record}: cannot be read ({error.strerror or error}).") from error
        return read_request(content, SweepRecord, str(self.record))

    def save(self, record: SweepRecord) -> None:
        """Raises `RunFolderError` if the record cannot be written."""
        try:
            write_whole(self.record, record.to_bytes())
        except OSError as error:
            raise RunFolderError(
                f"{self.record}: cannot be written ({error.strerror or error}).",
                "Free some space, or use a --runs-dir on another disk. The same command resumes the sweep.",
            ) from error

    def current(self) -> SweepRecord | None:
        """As `load`, with the state `interrupted` if the sweep's process has died."""
        record = self.load()
        if record is None or record.state != "running" or is_held(self.lock):
            return record
        record = self.load() or record  # it may have ended between the two checks
        return record if record.state != "running" else replace(record, state="interrupted", reason=DIED)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Within, the sweep belongs to this process. Raises `RunFolderError` if it belongs to another."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.lock)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=PATIENCE_SECONDS)
        except Timeout:
            record = self.load()
            by = f"process {record.process} on {record.machine}" if record else "another process"
            name = self.path.name
            raise RunFolderError(
                f"{self}: {by} is running this sweep.",
                f"See its status: msggan-aml status {name}. Stop it: msggan-aml cancel {name}.",
            ) from None
        except OSError as error:
            raise RunFolder(self.path).unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def read_trials(self, record: SweepRecord) -> list[Trial]:
        """The status of each trial, in order of their numbers."""
        return [self.read_trial(record, number) for number in range(len(record.trials))]

    def read_trial(self, record: SweepRecord, number: int) -> Trial:
        trial, folder = record.trials[number], self.trial(number)
        was_killed = trial.state == "running" and not is_owned(folder)
        return Trial(
            number=number,
            name=f"{self.path.name}/{number}",
            state="interrupted" if was_killed else trial.state,
            settings=trial.settings,
            run_dir=str(folder),
            reason=trial.reason,
            **measured(read_metrics(folder.metrics), record.objective),
        )
