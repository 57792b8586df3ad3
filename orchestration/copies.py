"""Copying run folders, and checking the folder to download to."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msggan.errors import CheckpointError, UsageError
from msggan.runs.files import write_whole
from msggan.runs.folder import RunFolder, read_state
from orchestration.status import Download

COPY_FILE = "azure.json"  # in a copy of a run on Azure: the run, and the version of its weights
Progress = Callable[[int, int], None]  # bytes done, bytes in all

DOWNLOAD_FILE = ".msggan-download.json"  # marks a folder that a download has filled
SAVE_SECONDS = 5.0
HINT = "Give a new or an empty folder."


def copy_run(folder: RunFolder, to: Path, *, weights: bool, force: bool, progress: Progress) -> Download:
    """Copies a run folder, or with `weights` just its weights. Raises `UsageError` or `CheckpointError`.

    The same download again copies only what has changed.
    """
    if weights and not folder.generator.is_file():
        raise CheckpointError(
            f"{folder.generator}: no such file.", "Weights are written with the first checkpoint of a run."
        )
    if Path(os.path.realpath(to)).is_relative_to(os.path.realpath(folder.path)):
        raise UsageError([f"{to}: is inside the run's own folder."], HINT)
    found: dict[str, list[int]] = {}
    for path in [folder.generator, folder.best] if weights else files_of(folder):
        with suppress(FileNotFoundError):  # a running run may remove an old checkpoint at any time
            found[path.relative_to(folder.path).as_posix()] = _size_and_time(path)
    recorded = read_state(folder)  # distinguishes this run from one started in the same folder later
    source = os.path.realpath(folder.path) + (f", created {recorded.created}" if recorded else "")
    copy = CopyFolder(to, source)
    total = sum(size for size, _ in found.values())
    copied = done = 0
    copy.prepare({name: _version(size_and_time) for name, size_and_time in found.items()}, force=force)
    with copy.recording():
        for name in found:
            with suppress(FileNotFoundError):
                done += _copy_newer(folder.path / name, copy, name)
                copied += 1
            progress(done, total)
    return Download(copied, done, str(to))


def files_of(folder: RunFolder) -> list[Path]:
    """The files of a run folder except its lock and unfinished files."""
    return sorted(
        path
        for path in folder.path.rglob("*")
        if path.is_file() and path.suffix != ".part" and path != folder.lock and not path.name.startswith(".")
    )


def is_copy(folder: str | Path) -> bool:
    """Whether a folder is a copy of a run on Azure. Once it is trained on this machine, it is a local run."""
    return os.path.isfile(os.path.join(folder, COPY_FILE)) and not os.path.exists(os.path.join(folder, "run.json"))


class CopyFolder:
    """A folder to download a run to: a new one, an empty one, or one that holds an earlier download of the same run.

    source: identifies the run. DOWNLOAD_FILE records it and, per file, the version in the run and the size and time of
    the copy; nothing for a file that is being copied, so that the next download may overwrite it. It is saved every few
    seconds: files copied after the last save are copied again if the process is killed.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        record = self._read_record()
        self._recorded_source: str | None = record.get("source")
        self._files: dict[str, list[Any]] = record.get("files", {}) if self._recorded_source == source else {}
        self._saved_at = 0.0

    def prepare(self, versions: Mapping[str, str], *, force: bool) -> None:
        """Creates the folder. Raises `UsageError`, before anything is written, if it cannot be downloaded to.

        versions: by file to be written. A file that was changed since its download is an error too, unless `force`.
        """
        self._refuse_other_folders()
        changed = [name for name in versions if (self.path / name).exists() and not self._may_be_overwritten(name)]
        if changed and not force:
            more = f" {len(changed) - 1} more files have changed too." if len(changed) > 1 else ""
            raise UsageError(
                [f"{self.path / changed[0]}: has changed since it was downloaded.{more}"],
                "Use --force to overwrite, or give another folder.",
            )
        self._files |= {name: [] for name, version in versions.items() if not self.has(name, version)}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write_record()
        except OSError as error:
            raise UsageError([f"{self.path}: cannot be written: {error.strerror}."], "Give another folder.") from error

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within, files may be added. Their record is saved at the end, also after an error."""
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the disk may be full; the first error is reported
                self._write_record()
            raise
        self._write_record()

    def has(self, name: str, version: str) -> bool:
        """Whether this version of a file was downloaded and is unchanged since."""
        return self._is_as_downloaded(name) and self._files[name][:1] == [version]

    def add(self, name: str, version: str) -> None:
        """Records that this version of a file was downloaded. Within `recording`."""
        self._files[name] = [version, *_size_and_time(self.path / name)]
        if time.monotonic() - self._saved_at > SAVE_SECONDS:
            self._write_record()

    def _refuse_other_folders(self) -> None:
        if self.path.is_file():
            raise UsageError([f"{self.path}: is a file, not a folder."], HINT)
        if self.path.is_symlink() and not self.path.exists():
            raise UsageError([f"{self.path}: is a broken symbolic link."], HINT)
        if self._recorded_source not in (None, self.source):
            raise UsageError([f"{self.path}: contains a download of another run: {self._recorded_source}."], HINT)
        if RunFolder(self.path).lock.exists():
            raise UsageError([f"{self.path}: is the folder of a run that was trained on this machine."], HINT)
        is_new = not self.path.exists() or not any(self.path.iterdir())
        if self._recorded_source is None and not is_new and not is_copy(self.path):
            raise UsageError([f"{self.path}: is not empty and was not created by download."], HINT)

    def _may_be_overwritten(self, name: str) -> bool:
        return self._files.get(name) == [] or self._is_as_downloaded(name)

    def _is_as_downloaded(self, name: str) -> bool:
        path = self.path / name
        return name in self._files and path.is_file() and self._files[name][1:] == _size_and_time(path)

    def _read_record(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            record = json.loads((self.path / DOWNLOAD_FILE).read_bytes())
            return record if isinstance(record, dict) else {}
        return {}

    def _write_record(self) -> None:
        write_whole(self.path / DOWNLOAD_FILE, json.dumps({"source": self.source, "files": self._files}).encode())
        self._saved_at = time.monotonic()


def forget_download(folder: Path) -> None:
    """Turns a downloaded folder into an ordinary one, which no download writes to."""
    (folder / DOWNLOAD_FILE).unlink(missing_ok=True)


def _copy_newer(source: Path, copy: CopyFolder, name: str) -> int:
    """Copies a file unless this version of it was copied before. Returns its size in bytes."""
    version = _version(_size_and_time(source))
    destination = copy.path / name
    if not copy.has(name, version):
        destination.parent.mkdir(parents=True, exist_ok=True)
        unfinished = destination.with_name(destination.name + ".part")
        try:
            shutil.copyfile(source, unfinished)
            unfinished.replace(destination)
        finally:
            unfinished.unlink(missing_ok=True)
        copy.add(name, version)
    return destination.stat().st_size


def _version(size_and_time: list[int]) -> str:
    """The version of a file, from its size and modification time."""
    return "-".join(map(str, size_and_time))


def _size_and_time(path: Path) -> list[int]:
    """Size in bytes and modification time in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
