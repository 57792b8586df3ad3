"""What lies in the folder of a sweep on this machine, and how does the sweep stand by it?

`sweep.json` says what was asked, which settings each trial has and how it ended; it is replaced whole at each change,
so that a sweep whose process is killed can be continued. The trials' numbers are read from their own run folders.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from msggan.errors import RunFolderError
from msggan.runs.files import write_whole
from msggan.runs.folder import RunFolder
from msggan.runs.state import is_owned, state_of
from msggan.tracking.metrics_log import read_metrics
from orchestration.runs import names_in
from orchestration.spec import SWEEP_NOTE, trial_path
from orchestration.sweeps.report import newest_grid
from orchestration.sweeps.request import SweepRequest, read_request
from orchestration.sweeps.spec import Trial, reached

PATIENCE_SECONDS = 1.0
DIED = "Its process ended without a word: it was killed, or the machine went down."


@dataclass
class TrialNote:
    """What sweep.json says of a trial; state as in `Trial`."""

    settings: dict[str, Any]
    state: str = "queued"
    reason: str = ""


@dataclass(kw_only=True)
class SweepNote(SweepRequest):
    """What sweep.json says of a sweep on this machine. threads: how many a trial computes with."""

    created: str  # in UTC, ISO 8601
    threads: int
    state: str = "running"
    reason: str = ""
    ended: str | None = None
    process: int = 0
    machine: str = ""
    trials: list[TrialNote] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trials = [TrialNote(**trial) if isinstance(trial, dict) else trial for trial in self.trials]


class SweepFolder:
    """The files of one sweep. Nothing is written before `owned`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.note = self.path / SWEEP_NOTE
        self.database = self.path / "sweep.db"
        self.lock = self.path / "sweep.lock"
        self.report = self.path / "report.html"

    def __str__(self) -> str:
        return str(self.path)

    def trial(self, number: int) -> RunFolder:
        return RunFolder(trial_path(self.path, number))

    def newest_grid(self, number: int) -> Path | None:
        """A trial's last sample grid, in full resolution."""
        samples = self.trial(number).samples
        newest = newest_grid(path.name for path in samples.glob("*.png"))
        return None if newest is None else samples / newest

    def load(self) -> SweepNote | None:
        """What was noted, None where there is no sweep. Raises `RunFolderError` if it cannot be read."""
        try:
            content = self.note.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunFolderError(f"{self.note}: cannot be read ({error.strerror or error}).") from error
        return read_request(content, SweepNote, str(self.note))

    def save(self, note: SweepNote) -> None:
        write_whole(self.note, note.to_bytes())

    def current(self) -> SweepNote | None:
        """As `load`, with a sweep that died without a word as `interrupted`."""
        note = self.load()
        if note is None or note.state != "running" or self.is_owned():
            return note
        note = self.load() or note  # it may have ended between the two looks
        return note if note.state != "running" else replace(note, state="interrupted", reason=DIED)

    def is_owned(self) -> bool:
        """Whether a living process works on the sweep."""
        if not self.lock.exists():
            return False
        lock = FileLock(self.lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # a folder that may only be read: nobody can own it either
            return False
        lock.release()
        return False

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Within, the sweep belongs to this process. Raises `RunFolderError` where it belongs to another."""
        lock = FileLock(self.lock)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=PATIENCE_SECONDS)
        except Timeout:
            note = self.load()
            by = f"process {note.process} on {note.machine}" if note else "another process"
            name = self.path.name
            raise RunFolderError(
                f"{self}: {by} is working on this sweep.",
                f"See how it stands: msggan-aml status {name}. Stop it: msggan-aml cancel {name}.",
            ) from None
        except OSError as error:
            raise RunFolder(self.path).unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def read_trials(self, note: SweepNote) -> list[Trial]:
        """How each trial stands, in order of their numbers."""
        return [self.read_trial(note, number) for number in range(len(note.trials))]

    def read_trial(self, note: SweepNote, number: int) -> Trial:
        noted, folder = note.trials[number], self.trial(number)
        return Trial(
            number=number,
            name=f"{self.path.name}/{number}",
            state=_living_state(noted, folder),
            settings=noted.settings,
            run_dir=str(folder),
            reason=noted.reason,
            **reached(read_metrics(folder.metrics), note.objective),
        )


def _living_state(noted: TrialNote, folder: RunFolder) -> str:
    """A trial that is noted as running may have been left alone by a sweep that was killed."""
    if noted.state != "running" or is_owned(folder):
        return noted.state
    state = state_of(folder)
    return "interrupted" if state is None or state.state != "running" else noted.state


def sweep_names(runs_dir: str) -> list[str]:
    """The sweeps in a folder, in order of their names."""
    return names_in(runs_dir, SWEEP_NOTE)


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def this_machine() -> str:
    return platform.node()
