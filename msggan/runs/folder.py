"""The run folder: its layout, its configuration, its state in `run.json`, and the lock of the process that trains it.

Mounts of blob storage have no locks, or locks that another machine does not see. So each process that starts the run
also writes an ID of its own to `run.json`: the newest owns the run, and one that finds another ID has lost it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from msggan.config import TrainConfig, changed_for_resume, flag, resolve
from msggan.errors import CheckpointError, DataError, RunFolderError, SupersededError, UsageError
from msggan.runs.files import recover, write_whole

if TYPE_CHECKING:
    from filelock import FileLock
    from torch import nn

    from msggan.networks import Generator

FORMAT_VERSION = 1
GENERATOR = "generator.safetensors"
BEST_GENERATOR = "generator_best.safetensors"
UNREADABLE_HINT = (
    "Use the msggan that started this run, restore the file from a copy, or use another name or run folder."
)
# Asking whether a run is running holds its lock for a moment, which must not turn away a process that starts it.
PATIENCE_SECONDS = 1.0
# Errors of mounts without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
DIED = "Its process was killed, or the machine went down."


class RunFolder:
    """The paths of one run's files. Nothing is written before `prepare`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "log.txt"
        self.state = self.path / "run.json"
        self.lock = self.path / "run.lock"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        self.generator = self.path / GENERATOR
        self.best = self.path / BEST_GENERATOR

    def __str__(self) -> str:
        return str(self.path)

    def recover(self) -> None:
        """Restores the files that a process was replacing when it died, on a mount that cannot replace a file."""
        for path in (self.config, self.metrics, self.state, self.generator, self.best):
            recover(path)

    def load_config(self) -> TrainConfig | None:
        """The resolved configuration of the run, or None if there is none. Raises `RunFolderError` if unreadable."""
        if not self.config.exists():
            return None
        try:
            values = json.loads(self.config.read_bytes())
            version = values.pop("format_version")
            if version == FORMAT_VERSION:
                return TrainConfig(**stored_fields(values))
        except UsageError as error:
            problem = f"cannot be read: {error.message.rstrip('.')}."
            raise RunFolderError(f"{self.config}: {problem}", UNREADABLE_HINT) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = "is not a configuration written by msggan."
            raise RunFolderError(f"{self.config}: {problem}", UNREADABLE_HINT) from error
        raise RunFolderError(
            f"{self.config}: was written by another version of msggan (format {version}, this one has "
            f"{FORMAT_VERSION}).",
            UNREADABLE_HINT,
        )

    def continued(self, requested: TrainConfig) -> TrainConfig | None:
        """The configuration to resume with: the stored one with what may change taken from `requested`; None if new.

        Raises `RunFolderError` that names the changed fields that may not change.
        """
        stored = self.load_config()
        if stored is None:
            return None
        config, refused = changed_for_resume(stored, requested)
        if refused:
            differences = [
                f"{flag(name)} is {getattr(stored, name)}, not {getattr(requested, name)}" for name in refused
            ]
            raise RunFolderError(
                f"{self}: is a run with another configuration: {', '.join(differences)}.",
                "Omit these options to resume that run, or use another name or run folder.",
            )
        return config

    def prepare(self, config: TrainConfig, networks: dict[str, nn.Module]) -> None:
        """Creates the folder with its configuration and the networks' printouts.

        Files that have this content already are not written again, so that nothing can happen to them.
        Raises `RunFolderError` if the folder cannot be written.
        """
        contents = {self.config: _stored(config)}
        for name, network in networks.items():
            contents[self.path / f"{name}_config.txt"] = printout(network)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path, content in contents.items():
                if not path.exists() or path.read_bytes() != content.encode():
                    write_whole(path, content.encode())
        except OSError as error:
            raise self.unwritable(error) from error

    def change_config(self, config: TrainConfig) -> None:
        """Stores another configuration of the same run."""
        write_whole(self.config, _stored(config).encode())

    def prepare_imported(self, generator: Generator) -> dict[str, Any]:
        """Creates the folder for a generator that BMSG-GAN trained; returns the configuration stored in it."""
        config = TrainConfig(
            recipe="bmsg",
            resolution=2 << generator.depth,
            latent_size=generator.latent_size,
            equalized=generator.equalized,
        )
        config = resolve(config, shorter_side_px=config.resolution, device="cpu", has_fast_bfloat16=False)
        self.prepare(config, {"generator": generator})
        return asdict(config)

    def forget_snapshots_after(self, images_seen: int) -> None:
        """Removes the snapshots of steps that will be repeated."""
        for path in self.snapshots.glob("*.safetensors"):
            if (snapshot_images(f"snapshots/{path.name}") or 0) > images_seen:
                path.unlink(missing_ok=True)

    def unwritable(self, error: OSError) -> RunFolderError:
        return RunFolderError(
            f"{self}: cannot be written ({error.strerror}).", "Use a folder that you may write to, or free some space."
        )


def marks_run(name: str, read: Callable[[], bytes]) -> bool:
    """Whether a file of this name, whose content `read` returns, makes its folder a run folder.

    Other programs have a config.json too. A folder with weights alone counts: `generated` in it has their pictures.
    """
    keys = {"config.json": {"format_version", "latent_size"}, "run.json": {"state", "images_seen"}}
    if name not in keys:
        return name == GENERATOR
    try:
        content = json.loads(read())
    except (DataError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and keys[name] <= content.keys()


def weights_file(names: Iterable[str], *, best: bool = False, at_kimg: float | None = None) -> str:
    """The file of a run that has its newest weights, the best, or those of the snapshot nearest to `at_kimg`.

    names: the files of the run folder, as paths in it. A snapshot is of the first step that reached its interval, so it
    may be a tenth away. Raises `CheckpointError` if there is none, and `UsageError` for both at once.
    """
    if best and at_kimg is not None:
        raise UsageError(["--best: cannot be combined with --at."])
    if at_kimg is None:
        name = BEST_GENERATOR if best else GENERATOR
        if best and name not in names:
            raise CheckpointError(
                "This run has no best weights yet.",
                "The first evaluation finds them, and the next checkpoint writes them.",
            )
        return name
    snapshots = {images / 1000: name for name in names if (images := snapshot_images(name)) is not None}
    nearest = min(snapshots, key=lambda kimg: abs(kimg - at_kimg), default=math.inf)
    if abs(nearest - at_kimg) <= at_kimg / 10:
        return snapshots[nearest]
    there = f"at {', '.join(f'{kimg:g}' for kimg in sorted(snapshots))} kimg" if snapshots else "none"
    hint = "Use one of these." if snapshots else "Train with --snapshot-kimg N to keep the generator of every N kimg."
    raise CheckpointError(f"--at {at_kimg:g}: there is no snapshot there. Snapshots of this run: {there}.", hint)


def snapshot_images(name: str) -> int | None:
    """The number of images of a snapshot, by its path in the run folder; None for another file."""
    found = re.fullmatch(r"snapshots/(\d{9,})\.safetensors", name)
    return int(found[1]) if found else None


def _stored(config: TrainConfig) -> str:
    return json.dumps({"format_version": FORMAT_VERSION, **asdict(config)}, indent=2)


def stored_fields(values: Mapping[str, Any], *, needed: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a stored configuration; those that its version did not have get the value that describes it.

    needed: the fields that must be there, by default all. Raises `UsageError` that names the fields that are missing or
    unknown to this version.
    """
    older = {spec.name: spec.metadata["absent"] for spec in fields(TrainConfig)}
    found = {**{name: value for name, value in older.items() if value is not None}, **values}
    unknown = [repr(name) for name in values if name not in older]
    missing = [repr(name) for name in needed or older if found.get(name) is None]
    problems = [f"unknown field {', '.join(unknown)}, written by a newer msggan"] if unknown else []
    problems += [f"missing field {', '.join(missing)}"] if missing else []
    if problems:
        raise UsageError(["; ".join(problems)])
    return found


def printout(network: nn.Module) -> str:
    """The layers of a network and its number of parameters."""
    return f"{network}\n\n{sum(parameter.numel() for parameter in network.parameters()):,} parameters\n"


# --- The state and the lock -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunState:
    """The content of `run.json`. state: running, completed, failed, cancelled or interrupted; times in UTC, ISO 8601.

    attempt: the ID of the process that started last, by which it recognizes that the run is still its own. classes: the
    names of those in the data, in order, with --labels.
    """

    state: str
    data: str
    process: int
    machine: str
    created: str
    ended: str | None = None
    images_seen: int = 0
    reason: str = ""
    attempt: str = ""
    classes: Sequence[str] = ()


def record_start(folder: RunFolder, *, data: str, images_seen: int, classes: Sequence[str] = ()) -> RunState:
    """Records that this process starts or resumes the run."""
    before = read_state(folder)
    state = RunState(
        state="running",
        data=os.path.abspath(data),
        process=os.getpid(),
        machine=platform.node(),
        created=before.created if before else now(),
        images_seen=images_seen,
        attempt=uuid4().hex,
        classes=classes,
    )
    return _write(folder, state)


def record_end(folder: RunFolder, started: RunState, state: str, *, images_seen: int, reason: str = "") -> RunState:
    """Records how the run ended."""
    return _write(folder, replace(started, state=state, ended=now(), images_seen=images_seen, reason=reason))


def _write(folder: RunFolder, state: RunState) -> RunState:
    values = {name: value for name, value in asdict(state).items() if name != "classes" or value}
    write_whole(folder.state, json.dumps(values, indent=1).encode())
    return state


def read_state(folder: RunFolder) -> RunState | None:
    """The content of `run.json`, None if it is missing or unreadable. Fields of a newer version are ignored."""
    try:
        values = json.loads(folder.state.read_bytes())
        return RunState(**{name: value for name, value in values.items() if name in RunState.__dataclass_fields__})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def attempt_of(folder: RunFolder) -> str:
    """The ID of the process that started the run last, empty if none has."""
    state = read_state(folder)
    return state.attempt if state else ""


def state_of(folder: RunFolder) -> RunState | None:
    """The state of the run, None if it has not started. One whose process was killed is `interrupted`."""
    state = read_state(folder)
    if state is None or state.state != "running" or is_owned(folder):
        return state
    state = read_state(folder) or state  # it may have ended in between
    return _killed(folder, state) if state.state == "running" else state


def _killed(folder: RunFolder, state: RunState) -> RunState:
    """The state of a run whose process was killed, at the time of its newest file."""
    newest = max(path.stat().st_mtime for path in (folder.state, folder.metrics, folder.log) if path.exists())
    ended = _as_text(datetime.fromtimestamp(newest, timezone.utc))
    return replace(state, state="interrupted", ended=ended, reason=DIED)


@contextmanager
def owned(folder: RunFolder) -> Iterator[None]:
    """Within, the run belongs to this process. Raises `RunFolderError` if it belongs to another."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.lock)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        _acquire(lock, patience_seconds=PATIENCE_SECONDS)
    except Timeout:
        raise in_use_error(folder) from None
    except OSError as error:
        raise folder.unwritable(error) from error
    try:
        recorded = read_state(folder)
        if recorded is not None and recorded.state == "running":  # its process no longer has the lock: it was killed
            _write(folder, _killed(folder, recorded))
        yield
    finally:
        lock.release()


def in_use_error(folder: RunFolder) -> RunFolderError:
    state = read_state(folder)
    process = f"process {state.process} on {state.machine}" if state else "another process"
    return RunFolderError(
        f"{folder}: {process} is training this run.",
        f"Follow it: msggan-aml logs {folder} --follow. Stop it: msggan-aml cancel {folder}.",
    )


def is_owned(folder: RunFolder) -> bool:
    """Whether a process, this one or another, is training the run."""
    return is_held(folder.lock)


def is_held(path: Path) -> bool:
    """Whether a process, this one or another, holds the lock at `path`."""
    if not path.exists():
        return False
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        _acquire(lock, patience_seconds=0)
    except Timeout:
        return True
    except OSError:  # a read-only folder: no process can hold it
        return False
    lock.release()
    return False


def _acquire(lock: FileLock, *, patience_seconds: float) -> None:
    """Raises `Timeout` if another process has it. Without locks no process has: see `ensure_ours`."""
    from filelock import SoftFileLock, Timeout

    try:
        lock.acquire(timeout=patience_seconds)
    except Timeout:
        if not isinstance(lock, SoftFileLock):  # filelock's fallback without locks: a file that outlives its owner
            raise
    except NotImplementedError:  # raised by older versions of filelock
        return
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def version_of(path: Path) -> tuple[int, ...]:
    """What changes when the file is replaced; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def ensure_ours(folder: RunFolder, started: RunState) -> None:
    """Raises `SupersededError` if another process has started this run since, `OSError` if its folder is gone."""
    if not folder.state.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder.state))
    state = read_state(folder)
    if state is not None and state.attempt != started.attempt:
        raise SupersededError(
            f"{folder}: process {state.process} on {state.machine} has taken over this run. No lock prevented it. "
            "This process has stopped and writes nothing more.",
            f"Follow the other one: msggan-aml logs {folder} --follow.",
        )


def terminate_holder(lock: Path, process: int) -> bool:
    """Sends SIGTERM to a process if it has the lock file open; returns whether it was sent.

    A process number alone may belong to another program: another machine or container may have the same name, and
    numbers are reused.
    """
    with suppress(ProcessLookupError):  # it has just ended
        if _has_open(process, lock):
            os.kill(process, signal.SIGTERM)
            return True
    return False


def _has_open(process: int, path: Path) -> bool:
    """Whether a process of this machine has the file open: from /proc if there is one, else from POSIX's fuser."""
    if os.path.isdir("/proc/self/fd"):
        for link in glob(f"/proc/{process}/fd/*"):
            with suppress(OSError):  # closed since, or of another kind
                if os.path.samefile(link, path):
                    return True
        return False
    fuser = shutil.which("fuser", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if fuser is None:
        return False
    result = subprocess.run([fuser, str(path)], capture_output=True, encoding="utf-8", check=False)  # noqa: S603 - as a list
    return str(process) in result.stdout.split()


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return _as_text(datetime.now(timezone.utc))


def _as_text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
