"""What to train: the value of --data, the names of runs and trials, and `RunSpec`."""

from __future__ import annotations

import os
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from msggan.commands.options import PACK_SUFFIX, Hardware, argv_of, data_problems, to_argv
from msggan.config import TrainConfig, resolve
from msggan.errors import UsageError
from msggan.resources import Plan, plan
from orchestration.data_source import CONTAINER_BEFORE_HOST, FORMS, DataAsset, is_remote, read_address

TARGETS = ("auto", "local", "azure")
LONGEST_NAME = 63
# In the folder of a sweep, local and on Azure: its specification, and the run folders of its trials.
SWEEP_FILE = "sweep.json"
TRIALS_FOLDER = "trials"


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

    def command(self, *, data: str, run_dir: str, init_file: str = "", python: str = "python") -> list[str]:
        """The command line of the run, with the target's locations of the images, the run folder and the weights."""
        weights = ["--init-file", init_file] if init_file else []
        program = [python, "-m", "msggan.train", "--data", data, *weights, "--run-dir", run_dir]
        return [*program, *to_argv(self.config), *argv_of(self.hardware)]

    def needs(self, *, device: str) -> Plan | None:
        """What the run needs if its images are large, None if that depends on them. device: what `auto` chooses."""
        device = {"auto": device}.get(self.hardware.device, self.hardware.device).split(":")[0]
        with suppress(UsageError):
            resolved = resolve(self.config, shorter_side_px=1024, device=device, has_fast_bfloat16=False)
            return plan(resolved, device=device)
        return None


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
    address = read_address(str(data))
    path = Path(os.path.abspath(address.name if isinstance(address, DataAsset) else data))
    name = path.stem if path.suffix.lower() in FILE_SUFFIXES else path.name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", plain).lstrip("-_")[:LONGEST_NAME].rstrip("-_")
    if slug:
        return slug
    from hashlib import sha256

    # Nothing is left of a name without Latin letters; a few digits of its hash distinguish such names.
    return f"run-{sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"


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


# --- The value of --data ----------------------------------------------------------------------------------------------

SECRET = re.compile(r"[?&;#](?:sig|sv|se|sp)=|AccountKey=|SharedAccess\w*=|//[^/]*@", re.IGNORECASE)
FILE_SUFFIXES = (".zip", PACK_SUFFIX)


def source_problems(data: str | None) -> list[str]:
    """Every problem with the text of --data that is found without opening it. Secrets are not repeated."""
    if not data or os.path.exists(data):
        return data_problems(data)
    plain = data
    while (decoded := unquote(plain)) != plain:  # percent-encoding may have been applied several times
        plain = decoded
    if SECRET.search(CONTAINER_BEFORE_HOST.sub(r"\1://", plain)):
        start = re.split(r"[?#&;=%]", re.sub(r"//[^/]*@", "//***@", data))[0]  # up to where a secret could begin
        return [
            f"--data {start}: contains a secret. Command lines are visible to every user of this machine. "
            "Remove the secret; the job reads with the datastore's or your own identity."
        ]
    if not is_remote(data):
        return data_problems(data)
    if read_address(data) is not None:
        return []
    return [f"--data {data}: is not an address that a job can read. {FORMS}"]


def is_file(uri: str) -> bool:
    """Whether an address refers to one file, judging by its suffix."""
    return uri.lower().endswith(FILE_SUFFIXES)
