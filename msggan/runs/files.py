"""How does a file reach the disk whole or not at all?"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What mounts answer that put no file in the place of another: blob storage, and shares of other systems.
CANNOT_REPLACE = (errno.EEXIST, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
# What mounts answer whose files reach the disk in no other way than by being closed.
CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file at once: whoever reads it sees the old content or the new, never half.

    Raises `OSError` that names the file. Where a mount replaces no file, there is none for a moment; if the process
    dies in it, `recover` brings the old one back.
    """
    aside = temp_path(path)
    with naming(path):
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                sync(file.fileno())
            atomic_replace(aside, path)
        finally:
            with suppress(OSError):  # what went wrong before is what matters
                aside.unlink(missing_ok=True)  # a full disk would keep half of it


def temp_path(path: Path) -> Path:
    """Where a file is written before it is whole."""
    return path.with_name(path.name + ".part")


def atomic_replace(aside: Path, path: Path) -> None:
    """Gives a file that is whole its name, in place of one that has it."""
    try:
        os.replace(aside, path)
    except OSError as error:
        if error.errno not in CANNOT_REPLACE or not path.exists():
            raise
        old = _old_of(path)
        old.unlink(missing_ok=True)
        os.rename(path, old)
        os.rename(aside, path)
        old.unlink()


def recover(path: Path) -> None:
    """Brings back the old file where a process died between taking it away and giving the new one its name."""
    old = _old_of(path)
    if old.exists() and not path.exists():
        old.rename(path)


def _old_of(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def sync(descriptor: int) -> None:
    """Waits until what was written is on the disk, where the mount can tell."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, an `OSError` names the file that it is about: a full disk, met as one writes, names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
