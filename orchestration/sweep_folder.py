"""What lies in the folder of a sweep on this machine, and how does the sweep stand by it?

`sweep.json` says what was asked, which settings each trial has and how it ended; it is replaced whole at each change,
so that a sweep whose process is killed can be continued. The trials' numbers are read from their own run folders.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from msggan.errors import RunFolderError
from msggan.files import write_whole
from msggan.run_folder import RunFolder
from msggan.run_state import is_owned, state_of
from msggan.tracking import read_metrics
from orchestration.sweep import Objective, Trial

FORMAT_VERSION = 1
PATIENCE_SECONDS = 1.0
DIED = "Its process ended without a word: it was killed, or the machine went down."


@dataclass
class TrialNote:
    """What sweep.json says of a trial; state as in `Trial`."""

    settings: dict[str, Any]
    state: str = "queued"
    reason: str = ""


@dataclass
class SweepNote:
    """What sweep.json says of a sweep.

    asked: what may not change when the sweep is continued, in words. said: the configuration that all trials share.
    again: the options that continue it. threads: how many a trial computes with.
    """

    asked: dict[str, str]
    again: list[str]
    said: dict[str, Any]
    data: str
    space: list[str]
    objective: Objective
    planned: int
    threads: int
    created: str
    state: str = "running"
    reason: str = ""
    ended: str | None = None
    process: int = 0
    machine: str = ""
    trials: list[TrialNote] = field(default_factory=list)


class SweepFolder:
    """The files of one sweep. Nothing is written before `owned`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.note = self.path / "sweep.json"
        self.database = self.path / "sweep.db"
        self.lock = self.path / "sweep.lock"
        self.report = self.path / "report.html"

    def __str__(self) -> str:
        return str(self.path)

    def trial(self, number: int) -> RunFolder:
        return RunFolder(self.path / "trials" / f"{number:03d}")

    def newest_grid(self, number: int) -> Path | None:
        """A trial's last sample grid, in full resolution."""
        found = {}
        for path in self.trial(number).samples.glob("*px.png"):
            if match := re.fullmatch(r"(\d{9,})_(\d+)px", path.stem):
                found[int(match[1]), int(match[2])] = path
        return found[max(found)] if found else None

    def load(self) -> SweepNote | None:
        """What was noted, None where there is no sweep. Raises `RunFolderError` if it cannot be read."""
        try:
            values = json.loads(self.note.read_bytes())
            version = values.pop("format_version")
            if version == FORMAT_VERSION:
                trials = [TrialNote(**trial) for trial in values.pop("trials")]
                return SweepNote(**{**values, "trials": trials, "objective": Objective(**values["objective"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(f"{self.note}: is no sweep that msggan wrote.", "Give another --name.") from error
        raise RunFolderError(
            f"{self.note}: was written by another version of msggan (format {version}, not {FORMAT_VERSION}).",
            "Use the msggan that began this sweep, or give another --name.",
        )

    def save(self, note: SweepNote) -> None:
        content = {"format_version": FORMAT_VERSION, **asdict(note)}
        write_whole(self.note, json.dumps(content, indent=1).encode())

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
        reports = read_metrics(folder.metrics)
        curve = curve_of(reports, note.objective)
        ranked = sorted((value for _, value in curve), key=note.objective.sort_key)
        return Trial(
            number=number,
            name=f"{self.path.name}/{number}",
            state=_living_state(noted, folder),
            settings=noted.settings,
            objective=ranked[0] if ranked else None,
            images_seen=int(reports[-1]["images"]) if reports else None,
            run_dir=str(folder),
            reason=noted.reason,
            curve=curve,
        )


def curve_of(reports: list[dict[str, float]], objective: Objective) -> tuple[tuple[int, float], ...]:
    """(images seen, objective) of each report that measured it."""
    measured = ((int(report["images"]), report.get(objective.metric)) for report in reports if "images" in report)
    return tuple((images, value) for images, value in measured if value is not None and math.isfinite(value))


def _living_state(noted: TrialNote, folder: RunFolder) -> str:
    """A trial that is noted as running may have been left alone by a sweep that was killed."""
    if noted.state != "running" or is_owned(folder):
        return noted.state
    state = state_of(folder)
    return "interrupted" if state is None or state.state != "running" else noted.state


def sweep_names(runs_dir: str) -> list[str]:
    """The sweeps in a folder, in order of their names."""
    try:
        names = os.listdir(runs_dir)
    except OSError:
        return []
    return sorted(name for name in names if os.path.isfile(os.path.join(runs_dir, name, "sweep.json")))


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def this_machine() -> str:
    return platform.node()
