"""What is asked of a target, and what comes back? RunSpec, its command line, and Run."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msggan.commands.options import Hardware, to_argv
from msggan.commands.program import EXIT_CODES
from msggan.config import TrainConfig
from msggan.errors import UsageError
from orchestration.data_source import FILE_SUFFIXES, path_of

LONGEST_NAME = 63
# In the folder of a sweep, here and on Azure: what was asked, and the trials' run folders.
SWEEP_NOTE = "sweep.json"
TRIALS_FOLDER = "trials"
GOES_ON = ("queued", "preparing", "running")  # of the states of a run, those before its end


@dataclass(frozen=True)
class RunSpec:
    """A run to be: what to train, on which images, under which name. `hardware`: the part of the machine to use."""

    config: TrainConfig
    data: str | Path
    name: str
    hardware: Hardware = field(default_factory=Hardware)

    def __post_init__(self) -> None:
        problems = name_problems(self.name)
        if problems:
            raise UsageError(problems)

    def command(self, *, data: str, run_dir: str, python: str = "python") -> list[str]:
        """The command line that is the run. A target says where it finds the images and where it keeps the run."""
        program = [python, "-m", "msggan.train", "--data", data, "--run-dir", run_dir]
        return [*program, *to_argv(self.config), *self.hardware.to_argv()]


@dataclass(frozen=True)
class Run:
    """What became of a run, in the words that scripts read.

    notice: for people. That there was nothing to do, and the run stands as it was recorded before; else empty.
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
    notice: str = ""

    @property
    def exit_code(self) -> int:
        """What `submit` ends with: neither a run that goes on without it nor one with nothing to do is a failure."""
        return 0 if self.notice else EXIT_CODES.get(self.state, 0)

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "notice"}


@dataclass(frozen=True)
class RunStatus(Run):
    """How a run stands, whoever started it. Times in UTC, ISO 8601; `images_total` is how many it is to see."""

    images_total: int | None = None
    created: str | None = None
    ended: str | None = None
    reason: str = ""

    def as_submitted(self) -> Run:
        """Of it what `submit` tells."""
        return Run(**{name: getattr(self, name) for name in Run.__dataclass_fields__})


@dataclass(frozen=True)
class Download:
    """What was copied out of a run, and to where."""

    files: int
    bytes: int
    path: str


def name_problems(name: str) -> list[str]:
    """Every complaint about the text of --name: it names a folder here and a job on Azure, and both are particular."""
    if len(name) > LONGEST_NAME:
        return [f"--name {name}: has {len(name)} characters; at most {LONGEST_NAME} are allowed."]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        return [f"--name {name}: must be letters, digits, - and _, and start with a letter or digit."]
    return []


def default_name(data: str | Path) -> str:
    """A name from the data's own: the same images again are the same run again."""
    path = Path(os.path.abspath(path_of(str(data))))
    name = path.stem if path.suffix.lower() in FILE_SUFFIXES else path.name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", plain).lstrip("-_")[:LONGEST_NAME].rstrip("-_")
    # A name in another script leaves nothing; a few digits of its hash keep two such names apart.
    return slug or f"run-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"


def trial_named(text: str) -> tuple[str, int] | None:
    """The sweep and the number that SWEEP/NUMBER names, None for other texts."""
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]*)/([0-9]{1,4})", text)
    return (found[1], int(found[2])) if found else None


def name_of_trial(sweep: str, number: int) -> str:
    """What a trial is called among runs: what goes on from it, or is copied of it."""
    return f"{sweep}-trial-{number}"


def trial_path(sweep: str | Path, number: int) -> Path:
    """Where a trial's run folder lies in the folder of its sweep on this machine."""
    return Path(sweep) / TRIALS_FOLDER / f"{number:03d}"


def sweep_hint(name: str) -> str:
    """What to type where a run is wanted and a sweep was named."""
    return f"See its trials: msggan-aml status {name}. Copy the best: msggan-aml sweep best {name} --download FOLDER"
