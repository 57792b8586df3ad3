"""A small disk of its own, which fills up like a real one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MOUNT, UMOUNT = shutil.which("mount") or "/bin/mount", shutil.which("umount") or "/bin/umount"


@dataclass(frozen=True)
class Disk:
    """A small disk of its own, in memory."""

    path: Path

    def resize(self, *, kib: int) -> None:
        """Has room for so much from now on, what is on it included."""
        subprocess.run([MOUNT, "-o", f"remount,size={kib}k", str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of two MiB, where this machine lets us mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = [MOUNT, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield Disk(path)
    subprocess.run([UMOUNT, "--lazy", str(path)], check=True)
