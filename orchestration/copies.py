"""How is the result of a run copied out of its folder?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msggan.errors import CheckpointError, UsageError
from msggan.run_folder import RunFolder
from orchestration.spec import Download

Tell = Callable[[int, int], None]  # bytes done, bytes in all


def copy_run(folder: RunFolder, to: Path, *, weights: bool, force: bool, tell: Tell) -> Download:
    """Copies a run folder, or with `weights` just its generator. Raises `UsageError` or `CheckpointError`."""
    if weights and not folder.generator.is_file():
        raise CheckpointError(f"{folder.generator}: no such file.", "Weights are there after a run's first checkpoint.")
    sources = [folder.generator] if weights else files_of(folder)
    refuse_to_overwrite(to, [to / path.relative_to(folder.path) for path in sources], inside=folder.path, force=force)
    total = sum(path.stat().st_size for path in sources)
    copied = done = 0
    for source in sources:
        destination = to / source.relative_to(folder.path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # a running run has removed an old checkpoint meanwhile
            done += _copy_whole(source, destination)
            copied += 1
        tell(done, total)
    return Download(copied, done, str(to))


def files_of(folder: RunFolder) -> list[Path]:
    """What is worth keeping of a run folder: all but its lock, and what was only half written."""
    return sorted(
        path
        for path in folder.path.rglob("*")
        if path.is_file() and path.suffix != ".part" and path != folder.lock and not path.name.startswith(".")
    )


def refuse_to_overwrite(to: Path, files: list[Path], *, inside: Path | None, force: bool) -> None:
    """Raises `UsageError` where `to` cannot be written to, or what is there would be overwritten."""
    if to.exists() and not to.is_dir():
        raise UsageError([f"{to}: is a file, not a folder."])
    if inside is not None and Path(os.path.abspath(to)).is_relative_to(os.path.abspath(inside)):
        raise UsageError([f"{to}: lies in the run's own folder."], "Give another folder.")
    existing = [path for path in files if path.exists()]
    if existing and not force:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError([f"{existing[0]}: is there already{more}."], "Give --force to overwrite, or another folder.")


def _copy_whole(source: Path, destination: Path) -> int:
    aside = destination.with_name(destination.name + ".part")
    try:
        shutil.copyfile(source, aside)
        size = aside.stat().st_size
        aside.replace(destination)
    finally:
        aside.unlink(missing_ok=True)
    return size
