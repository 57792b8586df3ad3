"""The data types of targets: RunSpec, RunStatus, Download and ProvisionPlan; and the names of runs and trials."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msggan.commands.options import Hardware, to_argv
from msggan.commands.program import EXIT_CODES
from msggan.config import TrainConfig
from msggan.errors import UsageError
from orchestration.data_source import FILE_SUFFIXES, path_of
from orchestration.errors import RefusedError

LONGEST_NAME = 63
# In the folder of a sweep, local and on Azure: its specification, and the run folders of its trials.
SWEEP_NOTE = "sweep.json"
TRIALS_FOLDER = "trials"
GOES_ON = ("queued", "preparing", "running")  # the states of a run before its end


@dataclass(frozen=True)
class RunSpec:
    """The specification of a run: configuration, images, name. `hardware`: the device and threads to use."""

    config: TrainConfig
    data: str | Path
    name: str
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        problems = name_problems(self.name)
        if problems:
            raise UsageError(problems)

    def command(self, *, data: str, run_dir: str, python: str = "python") -> list[str]:
        """The command line of the run, with the target's locations of the images and of the run folder."""
        program = [python, "-m", "msggan.train", "--data", data, "--run-dir", run_dir]
        return [*program, *to_argv(self.config), *self.hardware.to_argv()]


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    state: one of queued, preparing, running, completed, failed, cancelled, interrupted. images_total: the number of
    images that the run is to be trained on. next: commands to run next. created, ended: in UTC, ISO 8601. notice: the
    message that nothing was left to train, else empty.
    """

    name: str
    target: str
    state: str
    run_dir: str
    job_id: str | None = None
    portal_url: str | None = None
    images_seen: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    next: list[str] = field(default_factory=list)
    images_total: int | None = None
    created: str | None = None
    ended: str | None = None
    reason: str = ""
    notice: str = ""

    @property
    def exit_code(self) -> int:
        """The exit code of `submit`: 0 if nothing was left to train, or if the run continues."""
        return 0 if self.notice else EXIT_CODES.get(self.state, 0)

    def as_json(self) -> dict[str, Any]:
        """What `status` prints."""
        return {name: value for name, value in asdict(self).items() if name != "notice"}

    def as_submitted(self) -> dict[str, Any]:
        """What `submit` prints."""
        left_out = ("images_total", "created", "ended", "reason")
        return {name: value for name, value in self.as_json().items() if name not in left_out}


@dataclass(frozen=True)
class Download:
    """The result of a download: the number of files and bytes, and the folder."""

    files: int
    bytes: int
    path: str


# --- What `provision` does --------------------------------------------------------------------------------------------

Change = Mapping[str, Any]  # "from" and "to"


def changes_between(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Change]:
    """The changes from the existing values, {} for a new resource, to the wanted ones."""
    return {name: {"from": before.get(name), "to": to} for name, to in wanted.items() if before.get(name) != to}


SIGNS = {"create": "+ create", "change": "~ change", "keep": "  keep", "refuse": "! refuse", "delete": "- delete"}


@dataclass(frozen=True)
class Item:
    """One resource of a plan. action: create, change, keep, refuse or delete. hint: the next step if it is refused.

    costs: what it costs and until when, one sentence each.
    """

    kind: str
    name: str
    action: str
    changes: Mapping[str, Change] = field(default_factory=dict)
    reason: str = ""
    hint: str = ""
    costs: tuple[str, ...] = ()

    @property
    def is_to_do(self) -> bool:
        return self.action not in ("keep", "refuse")

    @property
    def full_reason(self) -> str:
        """The reason and what differs, as the end of a sentence."""
        changes = (f"{name} is {change['from']}, not {change['to']}" for name, change in self.changes.items())
        return "; ".join([self.reason.removesuffix("."), *changes])

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "action": self.action,
            "changes": {name: dict(change) for name, change in self.changes.items()},
            "reason": self.reason,
        }

    def as_lines(self) -> list[str]:
        lines = [f"{SIGNS[self.action]} {self.kind} {self.name}" + (f": {self.reason}" if self.reason else "")]
        for name, change in self.changes.items():
            before = "" if change["from"] is None else f"{_written(change['from'])} → "
            lines.append(f"      {name}: {before}{_written(change['to'])}")
        return lines + [f"      {sentence}" for sentence in self.costs]


def _written(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Step:
    """An item of a plan, and the function that applies it. apply(report): report(line) prints progress."""

    item: Item
    apply: Callable[[Callable[[str], None]], Any] | None = None


@dataclass(frozen=True, repr=False)
class ProvisionPlan:
    """The plan of `provision`. Its repr, which a notebook shows, has one line per item and per change."""

    steps: tuple[Step, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(step.item for step in self.steps)

    @property
    def to_do(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.item.is_to_do)

    @property
    def refusal(self) -> RefusedError | None:
        """The error if an item is refused, else None."""
        refused = [item for item in self.items if item.action == "refuse"]
        if not refused:
            return None
        lines = [f"{item.kind} {item.name}: {item.full_reason}." for item in refused]
        return RefusedError("\n".join(lines), "\n".join(item.hint for item in refused if item.hint))

    def as_json(self, *, applied: bool) -> dict[str, Any]:
        return {"plan": [item.as_json() for item in self.items], "applied": applied}

    def as_lines(self) -> list[str]:
        return [line for item in self.items for line in item.as_lines()]

    def __repr__(self) -> str:
        return "\n".join(self.as_lines())


# --- Names ------------------------------------------------------------------------------------------------------------


def name_problems(name: str) -> list[str]:
    """Every problem with --name, which must be valid as the name of a folder and of a job on Azure."""
    if len(name) > LONGEST_NAME:
        return [f"--name {name}: has {len(name)} characters; at most {LONGEST_NAME} are allowed."]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        return [f"--name {name}: must be letters, digits, - and _, and start with a letter or digit."]
    return []


def default_name(data: str | Path) -> str:
    """The name of a run derived from the data: the same data gives the same name."""
    path = Path(os.path.abspath(path_of(str(data))))
    name = path.stem if path.suffix.lower() in FILE_SUFFIXES else path.name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", plain).lstrip("-_")[:LONGEST_NAME].rstrip("-_")
    # Nothing is left of a name without Latin letters; a few digits of its hash distinguish such names.
    return slug or f"run-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"


def trial_named(text: str) -> tuple[str, int] | None:
    """The sweep and the number of SWEEP/NUMBER, None for other texts."""
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]*)/([0-9]{1,4})", text)
    return (found[1], int(found[2])) if found else None


def name_of_trial(sweep: str, number: int) -> str:
    """The name of a run that continues a trial, or of a copy of a trial."""
    return f"{sweep}-trial-{number}"


def trial_path(sweep: str | Path, number: int) -> Path:
    """The run folder of a trial in the folder of its sweep on this machine."""
    return Path(sweep) / TRIALS_FOLDER / f"{number:03d}"


def sweep_hint(name: str) -> str:
    """The hint of an error where a sweep was given instead of a run."""
    return (
        f"Show its trials: msggan-aml status {name}. Download the best: msggan-aml sweep best {name} --download FOLDER"
    )
