"""The state of a run: `run.json` in its folder, and a lock that is released when its process ends.

Mounts of blob storage have no locks, or locks that another machine does not see. So each process that starts the run
also writes an ID of its own to `run.json`: the newest owns the run, and one that finds another ID has lost it.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from glob import glob
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, SoftFileLock, Timeout

from msggan.errors import RunFolderError, SupersededError
from msggan.runs.files import write_whole
from msggan.runs.folder import RunFolder

# Asking whether a run is running holds its lock for a moment, which must not turn away a process that starts it.
PATIENCE_SECONDS = 1.0
# Errors of mounts without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
DIED = "Its process was killed, or the machine went down."


@dataclass(frozen=True)
class RunState:
    """The content of `run.json`. state: running, completed, failed, cancelled or interrupted; times in UTC, ISO 8601.

    attempt: the ID of the process that started last, by which it recognizes that the run is still its own.
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


def begin(folder: RunFolder, *, data: str, images_seen: int) -> RunState:
    """Records that this process starts or resumes the run."""
    before = read_note(folder)
    state = RunState(
        state="running",
        data=os.path.abspath(data),
        process=os.getpid(),
        machine=platform.node(),
        created=before.created if before else now(),
        images_seen=images_seen,
        attempt=uuid4().hex,
    )
    return _write(folder, state)


def ensure_ours(folder: RunFolder, started: RunState) -> None:
    """Raises `SupersededError` if another process has started this run since, `OSError` if its folder is gone."""
    if not folder.state.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder.state))
    note = read_note(folder)
    if note is not None and note.attempt != started.attempt:
        raise SupersededError(
            f"{folder}: process {note.process} on {note.machine} has taken over this run. No lock prevented it. "
            "This process has stopped and writes nothing more.",
            f"Follow the other one: msggan-aml logs {folder} --follow.",
        )


def end(folder: RunFolder, started: RunState, state: str, *, images_seen: int, reason: str = "") -> RunState:
    """Records how the run ended."""
    return _write(folder, replace(started, state=state, ended=now(), images_seen=images_seen, reason=reason))


def state_of(folder: RunFolder) -> RunState | None:
    """The state of the run, None if it has not started. One whose process was killed is `interrupted`."""
    note = read_note(folder)
    if note is None or note.state != "running" or is_owned(folder):
        return note
    note = read_note(folder) or note  # it may have ended in between
    if note.state != "running":
        return note
    return _died(folder, note)


def read_note(folder: RunFolder) -> RunState | None:
    """The content of `run.json`, None if it is missing or unreadable. Fields of a newer version are ignored."""
    try:
        values = json.loads(folder.state.read_bytes())
        return RunState(**{name: value for name, value in values.items() if name in RunState.__dataclass_fields__})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


@contextmanager
def owned(folder: RunFolder) -> Iterator[None]:
    """Within, the run belongs to this process. Raises `RunFolderError` if it belongs to another."""
    lock = FileLock(folder.lock)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        _acquire(lock, patience_seconds=PATIENCE_SECONDS)
    except Timeout:
        raise taken(folder) from None
    except OSError as error:
        raise folder.unwritable(error) from error
    try:
        _record_killed(folder)
        yield
    finally:
        lock.release()


def is_owned(folder: RunFolder) -> bool:
    """Whether a process, this one or another, is training the run."""
    if not folder.lock.exists():
        return False
    lock = FileLock(folder.lock)
    try:
        _acquire(lock, patience_seconds=0)
    except Timeout:
        return True
    except OSError:  # a read-only folder: no process can own it
        return False
    lock.release()
    return False


def terminate_holder(lock: Path, process: int) -> bool:
    """Sends SIGTERM to a process if it has the lock file open; returns whether it was sent.

    A process number alone may belong to another program: another machine or container may have the same name, and
    numbers are reused.
    """
    if not _has_open(process, lock):
        return False
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(process, signal.SIGTERM)
        return True
    return False


def _has_open(process: int, path: Path) -> bool:
    """Whether a process of this machine has the file open: from /proc if there is one, else from POSIX's fuser."""
    if os.path.isdir("/proc/self/fd"):
        return any(_is_same_file(link, path) for link in glob(f"/proc/{process}/fd/*"))
    fuser = shutil.which("fuser", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    return fuser is not None and process in _processes_with(fuser, path)


def _processes_with(fuser: str, path: Path) -> list[int]:
    result = subprocess.run([fuser, str(path)], capture_output=True, encoding="utf-8", check=False)  # noqa: S603 - as a list
    return [int(word) for word in result.stdout.split()]


def _is_same_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # closed since, or of another kind
        return False


def _acquire(lock: FileLock, *, patience_seconds: float) -> None:
    """Raises `Timeout` if another process has it. Without locks no process has: see `ensure_ours`."""
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


def _record_killed(folder: RunFolder) -> None:
    """Records that the process in `run.json` was killed, since this one holds the lock and has not started yet."""
    note = read_note(folder)
    if note is not None and note.state == "running":
        _write(folder, _died(folder, note))


def taken(folder: RunFolder) -> RunFolderError:
    note = read_note(folder)
    by = f"process {note.process} on {note.machine}" if note else "another process"
    return RunFolderError(
        f"{folder}: {by} is training this run.",
        f"Follow it: msggan-aml logs {folder} --follow. Stop it: msggan-aml cancel {folder}.",
    )


def _write(folder: RunFolder, state: RunState) -> RunState:
    write_whole(folder.state, json.dumps(asdict(state), indent=1).encode())
    return state


def _died(folder: RunFolder, note: RunState) -> RunState:
    return replace(note, state="interrupted", ended=_last_sign_of_life(folder), reason=DIED)


def _last_sign_of_life(folder: RunFolder) -> str:
    newest = max(path.stat().st_mtime for path in (folder.state, folder.metrics, folder.log) if path.exists())
    return _as_text(datetime.fromtimestamp(newest, timezone.utc))


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return _as_text(datetime.now(timezone.utc))


def _as_text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
