"""From what did a job come? Its tags: the run, the package's version, the caller's checkout, the configuration."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

from orchestration.azure.jobs import CONFIGURATION_TAG, RUN_TAG

GIT_PATIENCE_S = 5


def build_tags(run: str, configuration: str, folder: Path) -> dict[str, str]:
    """The tags of a job. folder: where the caller is."""
    return {
        RUN_TAG: run,
        CONFIGURATION_TAG: configuration,
        "msggan.version": version("msggan"),
        **checkout_tags(folder),
    }


def checkout_tags(folder: Path) -> dict[str, str]:
    """The commit of the checkout that a folder lies in and whether files differ from it; {} outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"msggan.git_commit": commit, "msggan.git_dirty": str(changes != "").lower()}


def _git(folder: Path, *words: str) -> str | None:
    """What git says, None where it fails, is not there or takes too long."""
    try:
        told = subprocess.run(  # noqa: S603 - fixed words
            ["git", "-C", str(folder), *words],  # noqa: S607 - whichever git the person uses
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=GIT_PATIENCE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip()
