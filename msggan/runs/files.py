"""Files written whole or not at all, also on mounts of blob storage; and folder trees. It needs no torch."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Errors of mounts that cannot replace or rename a file: blob storage, and shares of other systems.
CANNOT_REPLACE = (errno.EEXIST, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
# Errors of mounts whose files are written to the disk only when they are closed.
CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file atomically: readers see the old content or the new, never a part. See `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; the whole file then replaces the one at `path`, unless writing failed.

    Raises `OSError` that names the file. On a mount that cannot replace a file, there is none for a moment; if the
    process dies in it, `recover` restores the old one.
    """
    temporary = path.with_name(path.name + ".part")
    with naming(path):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                sync(file.fileno())
            atomic_replace(temporary, path)
        finally:
            with suppress(OSError):  # an earlier error is what matters
                temporary.unlink(missing_ok=True)  # a full disk would keep a part of it


def atomic_replace(temporary: Path, path: Path) -> None:
    """Renames a whole file, replacing an existing one."""
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in CANNOT_REPLACE:
            raise
        old = _old_of(path)
        old.unlink(missing_ok=True)
        if path.exists():
            _move(path, old)
        _move(temporary, path)
        old.unlink(missing_ok=True)


def _move(source: Path, target: Path) -> None:
    """Renames a file, or copies it on a mount that cannot rename."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in CANNOT_REPLACE:
            raise
        shutil.copyfile(source, target)
        source.unlink()


def recover(path: Path) -> None:
    """Restores the old file if a process died before the new one had replaced it."""
    old = _old_of(path)
    if old.exists():  # removed last: the new file may be incomplete
        path.unlink(missing_ok=True)
        _move(old, path)


def _old_of(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def sync(descriptor: int) -> None:
    """Waits until what was written is on the disk, if the mount supports that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, an `OSError` names the file: one from a full disk, raised while writing, names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    from hashlib import sha256

    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def walk_visible(
    folder: str | Path, *, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Each folder of a tree that is not hidden, and the names of its files.

    Links are followed; each folder is walked once, so that loops of links end. on_error: called for a folder that
    cannot be listed, which is skipped by default.
    """
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        about = os.stat(path)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield path, names
